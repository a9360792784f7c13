"""Endpoints: where a key may go, and what may not be configured."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from engine.config_endpoint import OpenAIJudgeConfig
from engine.paid.prices import price_of, usd_of


def judge(**settings: Any) -> OpenAIJudgeConfig:
    return OpenAIJudgeConfig(**{"model": "gpt-4o-mini", **settings})


def test_the_openai_key_goes_to_openai_alone() -> None:
    assert judge().api_key_env == "OPENAI_API_KEY"
    assert judge(base_url="https://api.openai.com/v1/").api_key_env == "OPENAI_API_KEY"
    assert judge(base_url="https://gateway.example/v1").api_key_env is None
    assert judge(base_url="https://gateway.example/v1", api_key_env="GATEWAY_KEY").api_key_env == "GATEWAY_KEY"


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "http://gateway.example/v1", "api_key_env": "KEY"},
        {"base_url": "http://169.254.169.254/v1"},
        {"base_url": "http://2852039166/v1"},
        {"base_url": "http://[::ffff:169.254.169.254]/v1"},
        {"base_url": "http://[fd00:ec2::254]/v1"},
        {"base_url": "http://metadata.google.internal/v1"},
        {"base_url": "file:///etc/passwd"},
        {"base_url": "https://user:pass@gateway.example/v1"},
        {"base_url": "https://gateway.example/v1?key=1"},
        {"api_key_env": "sk-proj-abcdefgh"},
        {"api_key_env": "gsk_abcdefghijklmnop"},
        {"api_key_env": "AIzaSyAbCdEfGh"},
        {"extra_body": {"max_completion_tokens": 9}},
        {"extra_body": {"tools": []}},
    ],
)
def test_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        judge(**settings)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://10.0.0.7:8000/v1", "http://vllm:8000/v1"])
def test_a_near_server_may_have_a_key_without_tls(url: str) -> None:
    assert judge(base_url=url, api_key_env="KEY").api_key_env == "KEY"


def test_prices_come_from_the_table_by_endpoint_and_from_the_config() -> None:
    listed = price_of(judge())
    assert listed is not None
    assert usd_of(listed, 1e6 / 100, 1e6 / 100) == pytest.approx((listed.tokens_in + listed.tokens_out) / 100)
    assert price_of(judge(base_url="https://gateway.example/v1")) is None
    own = price_of(judge(base_url="https://gateway.example/v1", price={"input": 1, "output": 2}))
    assert own is not None
    assert usd_of(own, 500_000, 1000) == pytest.approx(0.502)


def test_long_prompts_cost_what_the_dearest_tier_costs() -> None:
    tiered = price_of(judge(model="gemini-2.5-pro", base_url="https://generativelanguage.googleapis.com/v1beta/openai"))
    if tiered is None:
        pytest.skip("the table does not know this endpoint")
    assert tiered.long_in > tiered.tokens_in
