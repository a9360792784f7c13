"""What training costs at a stated price, and what a tokenizer changes about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from engine.errors import ConfigError
from engine.report.savings import Prices, chars_per_token, savings, selection_cost

CHARS = {"pool": 8_000_000, "selected": 2_000_000}
SPENT: dict[str, float] = {}


def test_a_price_by_the_gpu_hour_is_one_by_the_token() -> None:
    prices = Prices(usd_per_gpu_hour=3.6, tokens_per_gpu_second=1000.0)
    assert prices.per_million == pytest.approx(1.0)
    assert savings(CHARS, None, prices, SPENT)["usd"] == pytest.approx({"pool": 2.0, "selected": 0.5, "saved": 1.5})


def test_without_a_price_there_are_only_characters() -> None:
    found = savings(CHARS, None, Prices(), SPENT)
    assert found["unit"] == "characters" and found["usd"] is None and found["share"] == 0.25 and not found["assumed"]


def test_a_tokenizer_counts_tokens(small_pool: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_pool.parent / "encoder")
    texts = ["the river", "a mountain and the river"]
    tokens = sum(len(tokenizer.tokenize(text)) for text in texts)
    ratio = chars_per_token(texts, tokenizer)
    assert ratio == sum(map(len, texts)) / tokens
    found = savings(CHARS, {"pool": 4.0, "selected": 2.0}, Prices(usd_per_million_tokens=1.0), SPENT)
    assert (found["unit"], found["pool"], found["selected"]) == ("tokens", 2_000_000, 1_000_000)
    assert found["usd"]["saved"] == pytest.approx(1.0) and not found["assumed"]


def test_gpu_time_of_the_selection_is_priced_at_the_same_rate() -> None:
    prices = Prices(usd_per_gpu_hour=2.0, tokens_per_gpu_second=1000.0)
    summary = {"seconds": 1800.0, "workers": 4, "calls": {"calls": 3, "usd": 0.5}}
    found = selection_cost(summary, {"runtime": {"gpus": 0.5}}, prices)
    assert found["gpu_hours"] == 1.0 and found["usd_gpu"] == 2.0 and found["usd_calls"] == 0.5
    assert selection_cost(summary, {"runtime": {"gpus": 0.0}}, prices)["gpu_hours"] is None


@pytest.mark.parametrize("half", [{"usd_per_gpu_hour": 1.0}, {"tokens_per_gpu_second": 1.0}])
def test_half_a_price_and_two_prices_are_refused(half: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="two ways"):
        Prices(**half)
    with pytest.raises(ConfigError, match="two ways"):
        Prices(usd_per_million_tokens=1.0, usd_per_gpu_hour=1.0, tokens_per_gpu_second=1.0)
