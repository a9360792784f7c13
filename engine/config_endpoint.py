"""Settings of an OpenAI-compatible endpoint, as generator, judge or rater.

`EXECUTION` names the fields that say how calls are made; all others determine what comes back and are hashed into the
steps and into the key of every paid call.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from engine.config_base import Fraction, PathOrName, Strict

OPENAI_URL = "https://api.openai.com/v1"

EXECUTION = frozenset(
    {
        "api_key_env", "price", "requests_per_minute", "tokens_per_minute", "concurrency", "processes", "parts",
        "call_timeout_s", "max_attempts", "give_up_after_s", "mode", "batch_discount",
    }
)  # fmt: skip


METADATA_HOSTS = ("metadata.google.internal", "metadata")


def numeric_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host name spells in numbers, in any notation that a resolver takes; None for a name."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))  # 2852039166 and 0xa9fea9fe are 169.254.169.254 too
        except OSError:
            return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def is_metadata(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether cloud providers serve credentials there."""
    return address.is_link_local or str(address) == "fd00:ec2::254"


def is_near(host: str) -> bool:
    """Whether a host is this machine or in a private network: an address that says so, or a name without a dot."""
    address = numeric_address(host)
    return address.is_private or address.is_loopback if address is not None else "." not in host


class Price(Strict):
    """USD per million tokens."""

    input: float = Field(ge=0.0, description="USD per million prompt tokens")
    output: float = Field(ge=0.0, description="USD per million answer tokens")


class EndpointConfig(Strict):
    model: str = Field(min_length=1, description="Model name as the endpoint knows it")
    base_url: str = Field(default=OPENAI_URL, description="Any OpenAI-compatible endpoint, such as vLLM or a gateway")
    api_key_env: str | None = Field(
        default="OPENAI_API_KEY",
        description="Name of the environment variable with the key; null: no key. Default at other base_urls: null",
    )
    temperature: float = Field(default=0.0, ge=0.0, le=2.0, description="Sampling temperature")
    sampling_seed: int | None = Field(default=0, description="`seed` of the request; null: not sent")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="Further request fields, passed verbatim")
    price: Price | None = Field(default=None, description="USD per million tokens; default: from genai-prices")
    requests_per_minute: float | None = Field(default=None, gt=0.0, description="Limit of the whole run")
    tokens_per_minute: float | None = Field(default=None, gt=0.0, description="Limit of the whole run")
    concurrency: int = Field(default=64, ge=1, description="Most calls in flight in the whole run")
    processes: int = Field(default=1, ge=1, description="Processes that make the calls, sharing all limits")
    parts: int = Field(default=4, ge=1, description="Parts each process works on at a time, so that none idles")
    call_timeout_s: float = Field(default=120.0, gt=0.0, description="Wall-clock limit of one attempt")
    max_attempts: int = Field(default=6, ge=1, description="Attempts before a row becomes an error row")
    give_up_after_s: float = Field(
        default=600.0, gt=0.0, description="The run stops when nothing was answered for so long"
    )
    mode: Literal["online", "batch"] = Field(
        default="online", description="batch: write request files, stop, and take the answers file back"
    )
    batch_discount: Fraction = Field(default=0.5, description="Share that the provider takes off in batches")

    @field_validator("base_url")
    @classmethod
    def _safe_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must be an http or https address, got {value!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError("base_url must not carry a user, a password or a query: keys come from api_key_env")
        address = numeric_address(parts.hostname)
        if parts.hostname in METADATA_HOSTS or (address is not None and is_metadata(address)):
            raise ValueError(f"base_url points at {parts.hostname}, where cloud metadata lives")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _name_not_key(cls, value: str | None) -> str | None:
        """A key pasted here would be written to config.yaml; what cannot be a variable's name is refused unseen."""
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", value):
            raise ValueError("api_key_env is the NAME of an environment variable (A-Z, 0-9, _), not the key itself")
        return value

    @model_validator(mode="before")
    @classmethod
    def _key_for_openai_only(cls, values: Any) -> Any:
        """$OPENAI_API_KEY goes to OpenAI; any other endpoint gets a key only when its variable is named."""
        url = values.get("base_url") if isinstance(values, dict) else None
        if url and "api_key_env" not in values and str(url).rstrip("/") != OPENAI_URL:
            return {**values, "api_key_env": None}
        return values

    @model_validator(mode="after")
    def _key_over_tls(self) -> EndpointConfig:
        parts = urlsplit(self.base_url)
        if self.api_key_env is not None and parts.scheme == "http" and not is_near(parts.hostname or ""):
            raise ValueError("a key would travel unencrypted: use https, or api_key_env: null")
        return self

    @field_validator("extra_body")
    @classmethod
    def _body_without_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = {
            "model", "messages", "temperature", "seed", "stream", "stream_options", "n", "response_format", "logprobs",
            "top_logprobs", "max_tokens", "max_completion_tokens", "tools", "tool_choice",
        }  # fmt: skip
        if found := sorted(ours & value.keys()):
            raise ValueError(f"extra_body must not set {', '.join(found)}: the engine does")
        return value


class OpenAIGeneratorConfig(EndpointConfig):
    kind: Literal["openai"] = "openai"
    max_tokens: int = Field(default=512, ge=1, description="Longest answer, in tokens")
    system: str | None = Field(default=None, description="System message for rows that have none")


class JudgingConfig(Strict):
    """What is asked of a judge model, whatever serves it."""

    prompt: PathOrName = Field(
        default="pairwise", description="Prompt: name, name/version, or the path of your own file"
    )
    orders: Literal["both", "alternate", "decisive"] = Field(
        default="both", description="both; one, by id (alternate); or the second only if the first is not decisive"
    )
    decisive: Fraction = Field(default=0.95, description="orders decisive: probability from which one order is enough")
    structured: Literal["auto", "json_schema", "json_object", "text"] = Field(
        default="auto", description="Form of the reply; auto takes the strictest one that the endpoint accepts"
    )
    logprobs: bool = Field(default=True, description="Ask for token probabilities, which become soft labels")
    max_tokens: int = Field(default=32, ge=1, description="Longest reply, in tokens")
    canaries: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        default=0.01, description="Share of rows that bring along a pair with a known verdict, to watch the judge"
    )
    suspects: Literal["skip", "judge"] = Field(
        default="skip", description="Rows whose text talks to the judge: not judged, or judged like any other"
    )


class OpenAIJudgeConfig(EndpointConfig, JudgingConfig):
    kind: Literal["openai"] = "openai"


class AskingConfig(EndpointConfig):
    """An endpoint that is asked one prompt about each row."""

    kind: Literal["openai"] = "openai"
    prompt: PathOrName = Field(description="Prompt: name, name/version, or the path of your own file")
    structured: Literal["auto", "json_schema", "json_object", "text"] = Field(
        default="auto", description="Form of the reply; auto takes the strictest one that the endpoint accepts"
    )
    max_tokens: int = Field(default=32, ge=1, description="Longest reply, in tokens")
    suspects: Literal["skip", "judge"] = Field(
        default="skip", description="Rows whose text talks to the judge: error rows, or asked about like any other"
    )


class OpenAICheckerConfig(AskingConfig):
    prompt: PathOrName = Field(description="Prompt of kind rules: name, name/version, or the path of your own file")
    rules: dict[str, str] | None = Field(default=None, description="Name and text of each rule; default: the prompt's")
    max_tokens: int = Field(default=256, ge=1, description="Longest reply, in tokens")

    @field_validator("rules")
    @classmethod
    def _named(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        from engine.judging.prompts import wrong_rules

        if value is not None and (why := wrong_rules(value)):
            raise ValueError(f"rules {why}")
        return value


class OpenAITaggerConfig(AskingConfig):
    prompt: PathOrName = Field(default="tags", description="Prompt: name, name/version, or the path of your own file")
    max_tokens: int = Field(default=256, ge=1, description="Longest reply, in tokens")
    turns: Literal["last", "all"] = Field(
        default="all", description="Which user messages of a conversation are tagged, each in a call of its own"
    )


class OpenAIRewriterConfig(AskingConfig):
    prompt: PathOrName = Field(
        default="rewrite", description="Prompt: name, name/version, or the path of your own file"
    )
    max_tokens: int = Field(default=2048, ge=1, description="Longest reply, in tokens: a new task and its response")


class OpenAITreeConfig(AskingConfig):
    prompt: PathOrName = Field(default="tree", description="Prompt: name, name/version, or the path of your own file")
    max_tokens: int = Field(default=2048, ge=1, description="Longest reply, in tokens; a tree that breaks off is none")
    turns: Literal["last", "mean", "sum"] = Field(
        default="last", description="Which user messages have a tree: the last one, or all, their sizes put together so"
    )


class OpenAIChooserConfig(AskingConfig):
    prompt: PathOrName = Field(default="choice", description="Prompt: name, name/version, or the path of your own file")
    max_tokens: int = Field(default=256, ge=1, description="Longest reply, in tokens")


class OpenAIRaterConfig(AskingConfig):
    prompt: PathOrName = Field(default="rating", description="Prompt: name, name/version, or the path of your own file")
    turns: Literal["last", "mean", "sum"] = Field(
        default="last", description="Which answers of a conversation are rated: the last one, or all, put together so"
    )
    expectation: bool = Field(
        default=False,
        description="Mean of the scores weighted by their token probabilities (whole scores from 0 to 9 only)",
    )
