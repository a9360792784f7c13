"""What tokens cost: from the config, else from the table of the genai-prices package. No network."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from engine.config_endpoint import EndpointConfig

LONG_PROMPT_TOKENS = 100_000  # above this the dearest tier counts; tables have their thresholds at 128,000 and above


class Prices(NamedTuple):
    """USD per million tokens in and out, and the same for long prompts, which cost more at some providers."""

    tokens_in: float
    tokens_out: float
    long_in: float
    long_out: float


def usd_of(price: Prices | None, tokens_in: float, tokens_out: float) -> float:
    """USD of one call; 0 without a price."""
    if price is None:
        return 0.0
    per_in, per_out = price[2:] if tokens_in > LONG_PROMPT_TOKENS else price[:2]
    return (tokens_in * per_in + tokens_out * per_out) / 1e6


def price_of(config: EndpointConfig) -> Prices | None:
    """What an endpoint takes, None when nobody knows.

    The table is asked by endpoint and model: the same model costs something else at another provider, and a server of
    one's own is in no table.
    """
    if config.price is not None:
        own = config.price.input, config.price.output
        return Prices(*own, *own)
    return _listed(config.base_url, config.model)


@lru_cache
def _listed(base_url: str, model: str) -> Prices | None:
    from genai_prices import Usage, calc_price

    found: list[float] = []
    for tokens in (1000, 1_000_000):
        usage = Usage(input_tokens=tokens, output_tokens=1000)
        try:
            price = calc_price(usage, model_ref=model, provider_api_url=base_url)
        except LookupError:
            return None
        found += [float(price.input_price) * 1e6 / tokens, float(price.output_price) * 1e6 / 1000]
    return Prices(*found)
