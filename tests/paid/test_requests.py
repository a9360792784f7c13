"""Keys say what is asked and never how; the wire form follows what the endpoint accepts."""

from dataclasses import replace

import pytest

from engine.paid.replies import BrokenReply, Reply, read_reply
from engine.paid.requests import Dialect, Request, wire_body

REQUEST = Request(
    model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=8, seed=0, schema={"type": "object"},
    structured="auto", logprobs=True, prompt="pairwise/v1 00",
)  # fmt: skip


def test_the_key_changes_with_everything_that_is_asked_and_with_nothing_else() -> None:
    key = REQUEST.key("http://x/v1")
    changed = [
        replace(REQUEST, **change)
        for change in (
            {"model": "n"}, {"messages": [{"role": "user", "content": "ho"}]}, {"max_tokens": 9}, {"temperature": 1.0},
            {"seed": 1}, {"schema": None}, {"structured": "text"}, {"logprobs": False}, {"tools": [{}]},
            {"extra": {"top_p": 0.5}}, {"prompt": "pairwise/v2 11"}, {"retry": 1},
        )
    ]  # fmt: skip
    keys = [request.key("http://x/v1") for request in changed] + [REQUEST.key("http://y/v1")]
    assert len({key, *keys}) == len(keys) + 1
    assert replace(REQUEST).key("http://x/v1") == key
    assert len(key) == 64


def test_a_lone_surrogate_has_a_key() -> None:
    assert len(replace(REQUEST, messages=[{"role": "user", "content": "\ud800"}]).key("u")) == 64


def test_the_dialect_gives_way_one_parameter_at_a_time() -> None:
    full = Dialect()
    assert wire_body(REQUEST, full)["response_format"]["type"] == "json_schema"
    assert wire_body(REQUEST, full)["logprobs"] is True
    objects = full.after_refusal("'response_format' of type 'json_schema' is not supported with this model")
    assert objects is not None
    assert wire_body(REQUEST, objects)["response_format"] == {"type": "json_object"}
    text = objects.after_refusal("response_format is not supported")
    assert text is not None
    assert "response_format" not in wire_body(REQUEST, text)
    assert text.after_refusal("response_format is not supported") is None
    quiet = full.after_refusal("You are not allowed to request logprobs from this model")
    assert quiet is not None
    assert "logprobs" not in wire_body(REQUEST, quiet)
    longer = full.after_refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    assert longer is not None
    assert wire_body(REQUEST, longer)["max_completion_tokens"] == 8
    assert "max_tokens" not in wire_body(REQUEST, longer)
    assert full.after_refusal("This model's maximum context length is 10 tokens") is None


def test_a_form_that_was_asked_for_stays() -> None:
    fixed = replace(REQUEST, structured="json_object")
    assert wire_body(fixed, Dialect())["response_format"] == {"type": "json_object"}


def test_tokens_are_bounded_by_bytes() -> None:
    text = "a" * 100 + "\u4e2d" * 10
    assert replace(REQUEST, messages=[{"role": "user", "content": text}]).most_tokens_in() >= 130


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"[]", b"null", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": {"a": 1}}',
        b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": 3}}]}', b'{"choices": [{"message": {"content": "hi"}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_body_that_is_no_completion_is_broken(body: bytes) -> None:
    with pytest.raises(BrokenReply):
        read_reply(body)


def test_a_reply_survives_the_ledger() -> None:
    body = b"""{"model": "m-2", "system_fingerprint": "fp", "choices": [{"finish_reason": "length", "message":
        {"content": "hi"}, "logprobs": {"content": [{"token": "hi", "logprob": -0.1, "top_logprobs": []}]}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1}}"""
    reply = replace(read_reply(body, "req-1"), usd=0.5)
    again = Reply.of_ledger(reply.payload())
    assert again == replace(reply, calls=0)
    assert (reply.text, reply.finish, reply.tokens_in, reply.tokens_out) == ("hi", "length", 5, 1)


def test_refusals_and_filters_are_answers_without_text() -> None:
    refused = read_reply(b'{"choices": [{"message": {"content": null, "refusal": "no"}, "finish_reason": "stop"}]}')
    assert (refused.finish, refused.text, refused.usage) == ("refusal", "", False)
    filtered = read_reply(b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}')
    assert (filtered.finish, filtered.text) == ("content_filter", "")


def test_tool_calls_are_sent_in_the_form_that_endpoints_demand() -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "Ä", "at": 1}}}
    messages = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "mine"}]},
        {"role": "tool", "content": "12"},
        {"role": "tool", "content": "13", "tool_call_id": "mine"},
    ]
    request = replace(REQUEST, messages=messages)
    key = request.key("http://x/v1")
    sent = wire_body(request, Dialect())["messages"]
    first, second = sent[1]["tool_calls"]
    assert first["function"] == second["function"] == {"name": "clock", "arguments": '{"at":1,"zone":"Ä"}'}
    assert sent[2]["tool_call_id"] == first["id"] and sent[3]["tool_call_id"] == second["id"] == "mine"
    assert sent[0] == messages[0] and request.key("http://x/v1") == key and "tool_call_id" not in messages[2]
