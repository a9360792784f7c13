"""What training on the selection costs instead of training on the pool, at a price the user states, and what selecting
cost.

One epoch is counted. Tokens are those of a tokenizer the user names; without one there are only characters, and a price
per token then rests on CHARS_PER_TOKEN, which the page says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import ConfigError

CHARS_PER_TOKEN = 4.0  # of English; other languages and code differ widely
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Prices:
    """What the user states.

    Attributes:
        usd_per_million_tokens: of training.
        usd_per_gpu_hour: of one GPU; also prices the selection's own GPU time.
        tokens_per_gpu_second: tokens one GPU trains on in a second; needed with usd_per_gpu_hour.
        tokenizer: folder or name of a Hugging Face tokenizer.

    Raises:
        ConfigError: E277, two prices, or half of one.
    """

    usd_per_million_tokens: float | None = None
    usd_per_gpu_hour: float | None = None
    tokens_per_gpu_second: float | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        by_hour = (self.usd_per_gpu_hour, self.tokens_per_gpu_second)
        if (None in by_hour and by_hour != (None, None)) or (
            self.usd_per_million_tokens is not None and by_hour != (None, None)
        ):
            raise ConfigError(
                "the price of training is stated in one of two ways",
                fix="give --usd-per-million-tokens, or both --usd-per-gpu-hour and --tokens-per-gpu-second",
                code="E277",
            )

    @property
    def per_million(self) -> float | None:
        """USD per million tokens, by whichever of the two."""
        if self.usd_per_gpu_hour is None or self.tokens_per_gpu_second is None:
            return self.usd_per_million_tokens
        return self.usd_per_gpu_hour * 1e6 / (SECONDS_PER_HOUR * self.tokens_per_gpu_second)

    def stated(self) -> str:
        """The price in words, "" when there is none."""
        if self.usd_per_gpu_hour is not None:
            return f"${self.usd_per_gpu_hour:g} per GPU-hour, {self.tokens_per_gpu_second:,g} tokens per GPU-second"
        if self.usd_per_million_tokens is not None:
            return f"${self.usd_per_million_tokens:g} per million tokens"
        return ""


def savings(
    chars: Mapping[str, int], chars_per_token: Mapping[str, float] | None, prices: Prices, spent: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of the section.

    Args:
        chars: "pool" and "selected", characters of prompts and responses.
        chars_per_token: of the same two by the tokenizer; None without one.
        spent: of `selection_cost`.

    Returns:
        `unit` ("tokens" or "characters"), `pool` and `selected` in it, `share`, `usd` (pool, selected, saved) or None,
        `price` and `assumed` in words, `spent`.
    """
    ratios = chars_per_token or dict.fromkeys(chars, CHARS_PER_TOKEN)
    tokens = {name: count / ratios[name] if ratios[name] else 0.0 for name, count in chars.items()}
    amounts = chars if chars_per_token is None else {name: round(value) for name, value in tokens.items()}
    usd = None
    if prices.per_million is not None:
        cost = {name: value * prices.per_million / 1e6 for name, value in tokens.items()}
        usd = {**cost, "saved": cost["pool"] - cost["selected"]}
    return {
        "unit": "characters" if chars_per_token is None else "tokens",
        **amounts,
        "share": amounts["selected"] / amounts["pool"] if amounts["pool"] else None,
        "usd": usd,
        "price": prices.stated(),
        "assumed": f"{CHARS_PER_TOKEN:g} characters per token" if usd and chars_per_token is None else "",
        "tokenizer": prices.tokenizer,
        "spent": dict(spent),
    }


def selection_cost(summary: Mapping[str, Any], config: Mapping[str, Any], prices: Prices) -> dict[str, Any]:
    """What selecting took: seconds of the last invocation, paid calls in USD, and GPU time at the stated rate.

    Returns:
        `seconds`, `calls`, `usd_calls`, `gpu_hours` (workers x GPUs of each x time, None on CPUs), `usd_gpu`.
    """
    calls = summary.get("calls") or {}
    gpus = config["runtime"]["gpus"] * (summary["workers"] or 1)
    hours = gpus * summary["seconds"] / SECONDS_PER_HOUR if gpus else None
    rate = prices.usd_per_gpu_hour
    return {
        "seconds": summary["seconds"],
        "calls": calls.get("calls", 0),
        "usd_calls": calls.get("usd", 0.0),
        "gpu_hours": hours,
        "usd_gpu": hours * rate if hours is not None and rate is not None else None,
    }


def chars_per_token(texts: Sequence[str], tokenizer: Any) -> float:
    """Characters of texts over their tokens, those that a tokenizer adds around a text left out."""
    tokens = sum(len(tokens) for tokens in tokenizer(list(texts), add_special_tokens=False)["input_ids"])
    return sum(map(len, texts)) / tokens if tokens else 0.0
