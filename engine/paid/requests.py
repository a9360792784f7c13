"""A paid request: its key, and its form on the wire.

The key is the SHA-256 of what is asked (endpoint, model, messages, sampling, prompt version), never of how: an
endpoint that refuses `response_format` is asked in another form, and the answer is still the answer to the same
request. It knows nothing of rows, prompts or networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.schema import canonical_json

MESSAGE_OVERHEAD_TOKENS = 8  # roles and separators that a chat template adds to each message, generously


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked.

    Attributes:
        model: name at the endpoint.
        messages: chat messages, `role` and `content` at least.
        max_tokens: longest reply.
        temperature, seed: sampling; None: not sent.
        schema: JSON schema of the reply, None for free text.
        structured: form of a reply with a schema: "auto", "json_schema", "json_object" or "text".
        logprobs: whether token probabilities are wanted.
        tools: tool definitions of the conversation, passed on.
        extra: further request fields, verbatim.
        prompt: name, version and hash of the prompt file.
        about: tells apart calls that ask the same: a canary is asked anew for each row that brings it.
        retry: above 0 a failed row is asked anew although its reply is in the ledger.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    temperature: float | None = 0.0
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    structured: str = "text"
    logprobs: bool = False
    tools: Sequence[Any] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    about: str = ""
    retry: int = 0

    def key(self, endpoint: str) -> str:
        """64 hex digits; the same request has the same key in every run, process and order of rows."""
        asked = [
            endpoint, self.model, self.messages, self.max_tokens, self.temperature, self.seed, self.schema,
            self.structured, self.logprobs, self.tools, self.extra, self.prompt, self.about, self.retry,
        ]  # fmt: skip
        return hashlib.sha256(canonical_json(asked).encode("utf-8", "backslashreplace")).hexdigest()

    def most_tokens_in(self) -> int:
        """An upper bound of the prompt's tokens: a token of a byte-level vocabulary is at least one byte."""
        said = [self.messages, self.schema, self.tools, self.extra]
        size = len(canonical_json(said).encode("utf-8", "replace"))
        return size + MESSAGE_OVERHEAD_TOKENS * (len(self.messages) + 1)


@dataclass(frozen=True)
class Dialect:
    """What an endpoint accepts; learned from its refusals.

    Attributes:
        structured: the strictest form of structured output it takes: "json_schema", "json_object" or "text".
        logprobs: it gives token probabilities.
        limit: name of the parameter for the longest reply.
        seed: it takes `seed`.
        temperature: it takes a temperature (reasoning models refuse it).
    """

    structured: str = "json_schema"
    logprobs: bool = True
    limit: str = "max_tokens"
    seed: bool = True
    temperature: bool = True

    def after_refusal(self, message: str) -> Dialect | None:
        """A dialect without what a 400 complains about; None when it complains about something else.

        Args:
            message: text of the error, which names the parameter on OpenAI, vLLM and the gateways in use.
        """
        text = message.lower()
        if "max_completion_tokens" in text and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if "logprobs" in text and self.logprobs:
            return replace(self, logprobs=False)
        if any(word in text for word in ("response_format", "json_schema", "json_object", "structured output")):
            weaker = {"json_schema": "json_object", "json_object": "text"}
            return replace(self, structured=weaker[self.structured]) if self.structured in weaker else None
        if "temperature" in text and self.temperature:
            return replace(self, temperature=False)
        if "seed" in text and self.seed:
            return replace(self, seed=False)
        return None


def wire_body(request: Request, dialect: Dialect) -> dict[str, Any]:
    """The JSON body of POST /chat/completions."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": wire_messages(request.messages),
        dialect.limit: request.max_tokens,
    }
    if request.temperature is not None and dialect.temperature:
        body["temperature"] = request.temperature
    if request.seed is not None and dialect.seed:
        body["seed"] = request.seed
    if request.tools:
        body["tools"] = list(request.tools)
    if request.logprobs and dialect.logprobs:
        body |= {"logprobs": True, "top_logprobs": 10}
    form = dialect.structured if request.structured == "auto" else request.structured
    if request.schema is not None and form == "json_schema":
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": dict(request.schema)},
        }
    elif request.schema is not None and form == "json_object":
        body["response_format"] = {"type": "json_object"}
    return {**body, **request.extra}


def wire_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Chat messages as endpoints take them: a tool call's arguments are JSON text, and it has an id, which its result
    names. (The pool holds arguments as objects, which is what chat templates want.)"""
    sent: list[dict[str, Any]] = []
    waiting: list[str] = []  # ids of calls without a result
    for place, message in enumerate(messages):
        made = dict(message)
        if made.get("tool_calls"):
            calls = [{"id": f"call_{place}_{number}", **call} for number, call in enumerate(made["tool_calls"])]
            waiting = [call["id"] for call in calls]
            made["tool_calls"] = [{**call, "function": _with_text(call["function"])} for call in calls]
        elif made.get("role") == "tool" and waiting:
            made.setdefault("tool_call_id", waiting[0])
            waiting = [one for one in waiting if one != made["tool_call_id"]]
        sent.append(made)
    return sent


def _with_text(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments", {})
    return {**function, "arguments": arguments if isinstance(arguments, str) else canonical_json(arguments)}
