"""Where calls go and how they are made; its key, read where it is needed, and the HTTP clients that carry it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from engine.config_endpoint import OPENAI_URL
from engine.errors import EnvironmentProblem
from engine.paid.limits import Limits
from engine.paid.prices import Prices, usd_of

POOL_CONNECTIONS = 8


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where calls go and how they are made. Plain values, so that it travels to any worker; the key does not.

    Attributes:
        price: of its tokens; None when it is not known, which counts as nothing.
        api_key_env: name of the variable with the key; None: no key.
    """

    base_url: str
    api_key_env: str | None
    price: Prices | None
    limits: Limits
    call_timeout_s: float
    max_attempts: int
    give_up_after_s: float

    def usd(self, tokens_in: int, tokens_out: int) -> float:
        """What a call costs; nothing where the price is not known."""
        return usd_of(self.price, tokens_in, tokens_out)


def api_key(endpoint: Endpoint) -> str:
    """The key, from the environment of this process.

    Raises:
        EnvironmentProblem: E362, it is not set here, or no HTTP header can carry it.
    """
    name = endpoint.api_key_env
    if name is None:
        return "not-needed"
    key = os.environ.get(name, "").strip()
    if not key:
        raise EnvironmentProblem(
            f"the environment variable {name} is not set",
            why="it names the key of the endpoint; on a cluster it must be set where the calls are made",
            fix=f"export {name}=..., or set api_key_env: null for a server that needs no key",
            code="E362",
        )
    if not (key.isascii() and key.isprintable()):
        raise EnvironmentProblem(f"the key in ${name} has characters that no key has", fix="set it again", code="E362")
    return key


def openai_clients(endpoint: Endpoint, key: str) -> list[Any]:
    """Clients with a few connections each: for every request a client looks at all of its idle connections."""
    import httpx2
    from openai import AsyncOpenAI, Omit

    room, total_s = endpoint.limits.concurrency, endpoint.call_timeout_s
    # To connect takes less than to answer: a call that found nobody must not look like one that was lost.
    timeout = httpx2.Timeout(total_s, connect=min(10.0, total_s / 2))
    foreign = {}
    if endpoint.base_url != OPENAI_URL:  # what the library sends along from the environment is meant for OpenAI
        custom = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
        names = ["OpenAI-Organization", "OpenAI-Project", *(line.split(":")[0].strip() for line in custom)]
        foreign = {name: Omit() for name in names if name}
    return [
        AsyncOpenAI(
            api_key=key,
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=timeout,
            default_headers=foreign,  # pyright: ignore[reportArgumentType]
            http_client=httpx2.AsyncClient(
                limits=httpx2.Limits(max_connections=POOL_CONNECTIONS, max_keepalive_connections=POOL_CONNECTIONS),
                timeout=timeout,
                follow_redirects=False,  # a redirect would carry the key to another host
            ),
        )
        for _ in range(-(-room // POOL_CONNECTIONS))
    ]
