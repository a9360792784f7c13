"""What a million tokens cost: from the config, else from the table of the genai-prices package. No network."""

from __future__ import annotations

from functools import lru_cache

from engine.config_endpoint import EndpointConfig


def price_of(config: EndpointConfig) -> tuple[float, float] | None:
    """USD per million (prompt, answer) tokens, None when nobody knows.

    The table is asked by endpoint and model: the same model costs something else at another provider, and a server of
    one's own is in no table.
    """
    if config.price is not None:
        return config.price.input, config.price.output
    return _listed(config.base_url, config.model)


@lru_cache
def _listed(base_url: str, model: str) -> tuple[float, float] | None:
    from genai_prices import Usage, calc_price

    tokens = 1000  # short of every threshold for long prompts
    try:
        found = calc_price(Usage(input_tokens=tokens, output_tokens=tokens), model_ref=model, provider_api_url=base_url)
    except LookupError:
        return None
    return float(found.input_price) * 1e6 / tokens, float(found.output_price) * 1e6 / tokens
