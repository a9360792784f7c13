"""What came back from a paid call, and reading it from bytes that may be anything. Knows nothing of networks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEPT = (
    "text", "finish", "tokens", "tokens_in", "tokens_out", "usage", "usd", "model", "fingerprint", "request_id",
    "attempts",
)  # fmt: skip


class BrokenReply(ValueError):
    """A 200 whose body is not a chat completion."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answered call.

    Attributes:
        text: the message, "" when the model refused or was filtered.
        finish: "stop", "length", "content_filter", "refusal" or what the endpoint says.
        tokens: `logprobs.content` of the answer, empty when there are none.
        tokens_in, tokens_out: as billed, estimated when the endpoint does not say (`usage` is then False).
        usd: what it cost.
        calls: paid calls made for it now: 1, or 0 when it came out of the ledger.
        attempts: how often it was sent.
    """

    text: str
    finish: str
    tokens: Sequence[Mapping[str, Any]] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    usage: bool = True
    usd: float = 0.0
    model: str = ""
    fingerprint: str = ""
    request_id: str = ""
    calls: int = 1
    attempts: int = 1

    def payload(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {name: value for name in KEPT if (value := getattr(self, name)) not in ("", (), [], None)}

    @staticmethod
    def of_ledger(payload: Mapping[str, Any]) -> Reply:
        fields = {name: payload[name] for name in KEPT if name in payload}
        return Reply(**{"text": "", "finish": "stop", **fields}, calls=0)


class RowFailed(Exception):
    """A row that gets no answer, verdict or rating; the message goes to the error column.

    Attributes:
        replies: what was paid for it all the same.
    """

    def __init__(self, why: str, replies: Sequence[Reply] = ()) -> None:
        super().__init__(why)
        self.replies = list(replies)


def read_reply(body: bytes, request_id: str = "") -> Reply:
    """The reply in the body of a 200.

    Raises:
        BrokenReply: not JSON, cut, or without a message; the reason is short and holds none of the body.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BrokenReply(f"the body of {len(body)} bytes is not JSON") from error
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    message = choice.get("message") if choice else None
    if choice is None or not isinstance(message, dict):
        raise BrokenReply("the body has no choices[0].message")
    finish = str(choice.get("finish_reason") or "stop")
    text, refusal = message.get("content"), message.get("refusal")
    if isinstance(refusal, str) and refusal and not text:
        finish, text = "refusal", ""
    if text is None and finish in ("content_filter", "length"):  # a reasoning model may spend its tokens unseen
        text = ""
    if not isinstance(text, str):
        raise BrokenReply("choices[0].message.content is not text")
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return Reply(
        text=text.encode("utf-8", "replace").decode(),  # half a surrogate pair cannot be stored
        finish=finish,
        tokens=[token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else (),
        tokens_in=tokens_in or 0,
        tokens_out=tokens_out or 0,
        usage=tokens_in is not None and tokens_out is not None,
        model=str(data.get("model") or ""),
        fingerprint=str(data.get("system_fingerprint") or ""),
        request_id=request_id,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 else None
