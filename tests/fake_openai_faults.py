"""What can go wrong on the way to the scripted server's answer: which fault a request meets, and its bytes.

A fault is drawn by a hash of (seed, request body, attempt number of that body), never by a random state, so runs
repeat and a retry can succeed. Nothing here knows what was asked. Wording of the errors: OpenAI's and vLLM's, as
reported in public issue threads of their users.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

FAULTS = (
    "rate_limited", "insufficient_quota", "server_error_500", "unavailable_503", "hang", "reset_before", "reset_after",
    "truncated", "truncated_chunked", "malformed_json", "not_json", "wrong_content_type", "wrong_schema", "slow_drip",
    "duplicated", "content_filter", "bad_request", "refusal", "unparsable", "half_close",
)  # fmt: skip
CHOICES = {
    "retry_after": ("seconds", "ms", "date", "none"),
    "wrong_schema_form": ("any", "no_choices", "empty_choices", "null_content"),
    "content_filter_form": ("any", "finish", "bad_request"),
    "style": ("json", "fenced", "prose", "brackets", "scores", "garbage"),
    "dialect": ("openai", "vllm"),
}


@dataclass
class Settings:
    """Everything that can be changed while the server runs; each is a command-line option too.

    Attributes:
        rates: probability of each fault of FAULTS, summing to at most 1.
        latency_s, jitter_s: answers leave after latency_s + jitter_s * (hash in [0, 1)).
        retry_after, retry_after_s: form and length of what a 429 asks for.
        real_rate_limit: requests per minute of a true token bucket that holds one second's worth, 0 = none.
        max_concurrent: 503 for every request above, 0 = none.
    """

    seed: int = 0
    latency_s: float = 0.0
    jitter_s: float = 0.0
    retry_after: str = "seconds"
    retry_after_s: float = 1.0
    slow_drip_s: float = 2.0
    wrong_schema_form: str = "any"
    content_filter_form: str = "any"
    style: str = "json"
    dialect: str = "openai"
    tie_margin: float = 0.0
    position_bias: float = 0.0
    real_rate_limit: float = 0.0
    max_concurrent: int = 0
    logprobs_status: int = 400
    no_json_schema: bool = False
    no_json_object: bool = False
    no_logprobs: bool = False
    only_max_completion_tokens: bool = False
    rates: dict[str, float] = field(default_factory=dict)

    def change(self, given: Mapping[str, Any]) -> None:
        """Set what is named; the fault rates are replaced as a whole. ValueError for names or values it cannot take."""
        kinds = {entry.name: type(getattr(self, entry.name)) for entry in fields(self) if entry.name != "rates"}
        rates, settings = {}, {}
        for name, value in given.items():
            if name in FAULTS:
                rates[name] = float(value)
            elif name not in kinds:
                raise ValueError(f"unknown setting or fault {name!r}")
            elif name in CHOICES and value not in CHOICES[name]:
                raise ValueError(f"{name} must be one of {CHOICES[name]}, not {value!r}")
            else:
                settings[name] = kinds[name](value)
        if any(rate < 0 for rate in rates.values()) or sum(rates.values()) > 1 + 1e-9:
            raise ValueError("fault rates must not be negative and sum to at most 1")
        for name, value in settings.items():
            setattr(self, name, value)
        self.rates = rates


@dataclass
class Answer:
    """One response and how it is delivered.

    Attributes:
        delivery: "whole", "hang", "reset_before", "reset_after", "truncated", "chunked", "drip", "twice", "half_close".
        billed: the model worked for it, so a provider would charge.
        usable: the whole bytes are a well-formed chat completion.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    delivery: str = "whole"
    billed: bool = False
    usable: bool = False


def uniform(seed: int, digest: str, attempt: int, purpose: str) -> float:
    """A number in [0, 1) fixed by its arguments."""
    raw = hashlib.blake2b(f"{seed}/{digest}/{attempt}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big") / 2**64


def draw_fault(settings: Settings, digest: str, attempt: int) -> str | None:
    """The fault this attempt meets, or None."""
    if not settings.rates:
        return None
    point = uniform(settings.seed, digest, attempt, "fault")
    for name in FAULTS:
        point -= settings.rates.get(name, 0.0)
        if point < 0:
            return name
    return None


def error(status: int, message: str, kind: str, code: str | None, param: str | None = None, **headers: str) -> Answer:
    """An error in OpenAI's form; `headers` with underscores for hyphens."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), named)


def vllm_error(status: int, message: str, kind: str = "BadRequestError") -> Answer:
    """An error in vLLM's form."""
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    return Answer(status, json.dumps(body).encode())


def rate_limited(settings: Settings, wait_s: float, model: str) -> Answer:
    """429 that asks to wait `wait_s`, in the form the settings choose."""
    headers: dict[str, str] = {}
    if settings.retry_after == "seconds":  # whole seconds only (RFC 9110); a fraction goes beside it, as OpenAI does
        headers["retry_after"] = str(math.ceil(wait_s))
        if wait_s != int(wait_s):
            headers["retry_after_ms"] = str(math.ceil(wait_s * 1000))
    elif settings.retry_after == "ms":
        headers["retry_after_ms"] = str(math.ceil(wait_s * 1000))
    elif settings.retry_after == "date":
        headers["retry_after"] = email.utils.formatdate(math.ceil(time.time() + wait_s), usegmt=True)
    message = f"Rate limit reached for {model} in organization org-test on requests per min (RPM): Limit 500, Used 500."
    if settings.retry_after != "none":
        message += f" Please try again in {wait_s:g}s."
    return error(429, message, "requests", "rate_limit_exceeded", None, **headers)


def unsupported(body: Mapping[str, Any], settings: Settings) -> Answer | None:
    """The 400 for a parameter this endpoint was told not to know, or None.

    OpenAI refuses logprobs in two ways, by model: 400 unsupported_parameter and 403; `logprobs_status` chooses.
    """
    wanted = body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    vllm = settings.dialect == "vllm"
    if (kind == "json_schema" and settings.no_json_schema) or (kind == "json_object" and settings.no_json_object):
        if vllm:
            return vllm_error(
                400,
                "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': "
                f"\"Input should be 'text'\", 'input': '{kind}'}}]",
            )
        message = f"Invalid parameter: 'response_format' of type '{kind}' is not supported with this model."
        if kind == "json_schema":
            message += (
                " Learn more about supported models at the Structured Outputs guide: "
                "https://platform.openai.com/docs/guides/structured-outputs"
            )
        return error(400, message, "invalid_request_error", None, "response_format")
    if settings.no_logprobs and (body.get("logprobs") or body.get("top_logprobs") is not None):
        if vllm:
            top = body.get("top_logprobs") or 1
            return vllm_error(400, f"Requested sample logprobs of {top}, which is greater than max allowed: 0")
        if settings.logprobs_status == 403:
            message = "You are not allowed to request logprobs from this model"
            return error(403, message, "invalid_request_error", None)
        return _unsupported_parameter("logprobs", "")
    if settings.only_max_completion_tokens and body.get("max_tokens") is not None:
        if vllm:
            return vllm_error(
                400,
                "[{'type': 'extra_forbidden', 'loc': ('body', 'max_tokens'), 'msg': 'Extra inputs are not permitted', "
                f"'input': {body['max_tokens']}}}]",
            )
        return _unsupported_parameter("max_tokens", " Use 'max_completion_tokens' instead.")
    return None


def _unsupported_parameter(name: str, hint: str) -> Answer:
    message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
    return error(400, message, "invalid_request_error", "unsupported_parameter", name)


def strike(fault: str, complete: Callable[[], dict[str, Any]], settings: Settings, point: float) -> Answer:
    """The response to a request that met `fault`.

    Args:
        fault: one of FAULTS.
        complete: makes the honest chat completion; called only when the model works for this answer.
        point: hash in [0, 1) that chooses among the forms of a fault when the settings leave it open.
    """
    if fault == "rate_limited":
        return rate_limited(settings, settings.retry_after_s, "the model")
    if fault == "insufficient_quota":
        message = (
            "You exceeded your current quota, please check your plan and billing details. For more information on this "
            "error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
        )
        return error(429, message, "insufficient_quota", "insufficient_quota")
    if fault == "server_error_500":
        message = "The server had an error while processing your request. Sorry about that!"
        return error(500, message, "server_error", None)
    if fault == "unavailable_503":
        return error(503, "The engine is currently overloaded, please try again later", "server_error", None)
    if fault == "bad_request":
        message = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
        return error(400, message, "invalid_request_error", "context_length_exceeded", "messages")
    if fault == "content_filter" and _form(settings.content_filter_form, ("finish", "bad_request"), point) != "finish":
        message = (
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please "
            "modify your prompt and retry."
        )
        return error(400, message, "invalid_request_error", "content_filter", "prompt")
    if fault in ("hang", "reset_before"):
        return Answer(200, b"", delivery=fault)
    return _spoil(fault, complete(), settings, point)


def _form(chosen: str, forms: tuple[str, ...], point: float) -> str:
    return forms[int(point * len(forms))] if chosen == "any" else chosen


def _spoil(fault: str, completion: dict[str, Any], settings: Settings, point: float) -> Answer:
    choice = completion["choices"][0]
    message = choice["message"]
    if fault == "content_filter":
        choice["finish_reason"], message["content"], choice["logprobs"] = "content_filter", "", None
    elif fault == "refusal":
        message["content"], message["refusal"] = None, "I'm sorry, but I can't help with that request."
        choice["logprobs"] = None
    elif fault == "unparsable":
        message["content"], choice["logprobs"] = "Hm. It depends on the weather, as so often; who can say?", None
    elif fault == "wrong_schema":
        form = _form(settings.wrong_schema_form, ("no_choices", "empty_choices", "null_content"), point)
        if form == "no_choices":
            del completion["choices"]
        elif form == "empty_choices":
            completion["choices"] = []
        else:
            message["content"] = None
    answer = Answer(200, json.dumps(completion).encode(), billed=True, usable=fault != "wrong_schema")
    if fault == "malformed_json":
        answer.body = answer.body[: len(answer.body) * 2 // 3] + b"}}]"
        answer.usable = False
    elif fault == "not_json":
        answer.body = b"<!DOCTYPE html><html><head><title>Please sign in</title></head><body>Portal</body></html>"
        answer.content_type, answer.usable, answer.billed = "text/html; charset=utf-8", False, False
    elif fault == "wrong_content_type":
        answer.content_type = "text/plain; charset=utf-8"
    ways = {"truncated_chunked": "chunked", "slow_drip": "drip", "duplicated": "twice"}
    if fault in ("reset_after", "truncated", "half_close", *ways):
        answer.delivery = ways.get(fault, fault)
    return answer
