"""The scripted server does on the wire what it says, counts right, and is quick enough to load a cluster with."""

from __future__ import annotations

import asyncio
import email.utils
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.fake_openai_faults import FAULTS
from tests.fake_server import FakeServer

PATH = "/v1/chat/completions"
JSON_MODE = {"response_format": {"type": "json_object"}}


@dataclass
class Wire:
    """What came back on a raw connection, and how it ended: "open", "fin" or "reset"."""

    status: int
    headers: dict[str, str]
    body: bytes
    ended: str


def raw(server: FakeServer, request: dict[str, Any], wait_s: float = 0.02, first_s: float = 9.0, key: str = "") -> Wire:
    """One request on a socket of its own.

    Everything that comes back until `wait_s` passes without a byte, or `first_s` without the first.
    """
    body = json.dumps(request).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(first_s)
        connection.sendall(head.encode() + body)
        data, ended = b"", "open"
        try:
            while part := connection.recv(65536):
                data += part
                connection.settimeout(wait_s)
            ended = "fin"
        except TimeoutError:
            pass
        except ConnectionResetError:
            ended = "reset"
    if not data:
        return Wire(0, {}, b"", ended)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Wire(int(first.split()[1]), headers, body, ended)


def ask(text: str = "Say something.", **extra: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **extra}


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer(slow_drip_s=0.5) as server:
        yield server


@pytest.fixture
def server(shared: FakeServer) -> FakeServer:
    shared.faults(
        style="json", position_bias=0, tie_margin=0, latency_s=0, retry_after="seconds", retry_after_s=1,
        wrong_schema_form="any", content_filter_form="any", seed=0, real_rate_limit=0, max_concurrent=0,
    )  # fmt: skip
    shared.reset()
    return shared


def test_the_answer_has_the_form_of_openai(server: FakeServer) -> None:
    wire = raw(server, ask())
    reply = json.loads(wire.body)
    assert wire.status == 200 and wire.ended == "open" and wire.headers["content-type"] == "application/json"
    assert wire.headers["x-request-id"].startswith("req_") and int(wire.headers["content-length"]) == len(wire.body)
    assert reply["object"] == "chat.completion" and reply["system_fingerprint"] and reply["id"].startswith("chatcmpl-")
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["message"]["content"].startswith("quality=")
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert json.loads(raw(server, ask()).body) == reply  # the same answer again
    cut = json.loads(raw(server, ask(max_tokens=5)).body)
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 5


def test_keep_alive_and_requests_cut_anywhere(server: FakeServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    for _ in range(3):
        connection.request("POST", PATH, json.dumps(ask()))
        assert connection.getresponse().read().startswith(b'{"id"')
    connection.request("GET", "/v1/models")
    assert json.load(connection.getresponse())["data"][0]["id"] == "scripted"
    body = json.dumps(ask()).encode()
    data = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    before = server.stats()["completed"]
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(0, len(data), 7):
            slow.sendall(data[position : position + 7])
        slow.sendall(data)  # a second request before the first answer was read
        slow.settimeout(1)
        received = b""
        while received.count(b"chatcmpl-") < 2:
            received += slow.recv(65536)
    assert server.stats()["completed"] == before + 2


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_does_on_the_wire_what_it_says(server: FakeServer, fault: str) -> None:
    whole = raw(server, ask())
    server.reset()
    server.faults(**{fault: 1})
    start = time.monotonic()
    wire = raw(server, ask(), wait_s=0.5, first_s=0.5)
    took_s = time.monotonic() - start
    declared = int(wire.headers.get("content-length", -1))
    statuses = {
        "rate_limited": (429, "rate_limit_exceeded"), "insufficient_quota": (429, "insufficient_quota"),
        "server_error_500": (500, None), "unavailable_503": (503, None),
        "bad_request": (400, "context_length_exceeded"),
    }  # fmt: skip
    paid = 1
    if fault in statuses:
        assert (wire.status, json.loads(wire.body)["error"]["code"]) == statuses[fault] and wire.ended == "open"
        paid = 0
    elif fault == "hang":
        assert (wire.body, wire.ended, wire.status) == (b"", "open", 0)
        paid = 0
    elif fault == "reset_before":
        assert (wire.body, wire.ended, wire.status) == (b"", "reset", 0)
        paid = 0
    elif fault in ("reset_after", "truncated"):
        assert wire.status == 200 and whole.body.startswith(wire.body) and 0 < len(wire.body) < declared
        assert wire.ended == ("reset" if fault == "reset_after" else "fin")
    elif fault == "truncated_chunked":
        size, _, part = wire.body.partition(b"\r\n")
        assert wire.headers["transfer-encoding"] == "chunked" and wire.ended == "fin"
        assert whole.body.startswith(part[: int(size, 16)]) and b"\r\n0\r\n" not in wire.body
    elif fault == "malformed_json":
        assert declared == len(wire.body)
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|Extra"):
            json.loads(wire.body)
    elif fault == "not_json":
        assert wire.status == 200 and wire.body.startswith(b"<!DOCTYPE") and "html" in wire.headers["content-type"]
        paid = 0
    elif fault == "wrong_content_type":
        assert wire.headers["content-type"].startswith("text/plain") and wire.body == whole.body
    elif fault == "slow_drip":
        assert wire.body == whole.body and took_s >= 0.5
    elif fault == "duplicated":
        assert wire.body.startswith(whole.body + b"HTTP/1.1 200") and wire.ended == "fin"
        assert wire.body.endswith(whole.body) and declared == len(whole.body)
    elif fault == "half_close":
        assert wire.body == whole.body and wire.ended == "fin" and "connection" not in wire.headers
    stats = server.stats()
    complete = fault in ("wrong_content_type", "slow_drip", "duplicated", "half_close", "refusal", "unparsable")
    if fault != "content_filter":  # its form is drawn, see below
        assert stats["completed"] == int(complete) and stats["billed"] == paid
    assert stats["faults"] == {fault: 1} and stats["received"] == 1
    assert stats["abandoned"] == (1 if fault == "hang" else 0) and stats["concurrent"] == 0


def test_the_forms_of_a_fault_can_be_chosen(server: FakeServer) -> None:
    def once(**options: Any) -> Wire:
        server.faults(**options)
        return raw(server, ask())

    assert once(rate_limited=1, retry_after="seconds", retry_after_s=3).headers["retry-after"] == "3"
    assert once(rate_limited=1, retry_after="ms", retry_after_s=0.25).headers["retry-after-ms"] == "250"
    date = once(rate_limited=1, retry_after="date", retry_after_s=5).headers["retry-after"]
    assert 3 <= email.utils.parsedate_to_datetime(date).timestamp() - time.time() <= 6
    assert not {"retry-after", "retry-after-ms"} & set(once(rate_limited=1, retry_after="none").headers)
    finish = json.loads(once(content_filter=1, content_filter_form="finish").body)["choices"][0]
    assert finish["finish_reason"] == "content_filter" and finish["message"]["content"] == ""
    wire = once(content_filter=1, content_filter_form="bad_request")
    assert wire.status == 400 and json.loads(wire.body)["error"]["code"] == "content_filter"
    assert "choices" not in json.loads(once(wrong_schema=1, wrong_schema_form="no_choices").body)
    assert json.loads(once(wrong_schema=1, wrong_schema_form="empty_choices").body)["choices"] == []
    empty = json.loads(once(wrong_schema=1, wrong_schema_form="null_content").body)["choices"][0]
    assert empty["message"]["content"] is None
    refusal = json.loads(once(refusal=1).body)["choices"][0]["message"]
    assert refusal["content"] is None and "sorry" in refusal["refusal"]
    with pytest.raises(OSError, match="400"):
        server.faults(no_such_fault=1)
    with pytest.raises(OSError, match="400"):
        server.faults(hang=0.7, truncated=0.7)


def test_faults_are_drawn_by_hash_so_runs_repeat_and_retries_succeed(server: FakeServer) -> None:
    def statuses() -> list[int]:
        server.reset()
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda n: raw(server, ask(str(n))).status, range(60)))

    server.faults(rate_limited=0.3, server_error_500=0.2, seed=1)
    first = statuses()
    assert first == statuses()
    assert 5 < first.count(429) < 35 and 3 < first.count(500) < 25
    bad = first.index(429)
    server.reset()
    tries = [raw(server, ask(str(bad))).status for _ in range(12)]
    assert tries[0] == 429 and 200 in tries
    server.faults(rate_limited=0.3, server_error_500=0.2, seed=2)
    assert statuses() != first


def test_real_limits(server: FakeServer) -> None:
    server.faults(real_rate_limit=600)  # ten at once, then one every 0.1 s
    wires = [raw(server, ask(str(n)), wait_s=0.001) for n in range(60)]
    assert [wire.status for wire in wires[:10]] == [200] * 10
    limited = next(wire for wire in wires if wire.status == 429)
    assert limited.headers["retry-after"] == "1"
    assert 0 < int(limited.headers["retry-after-ms"]) <= 100
    time.sleep(0.12)
    assert raw(server, ask("later")).status == 200
    server.faults(real_rate_limit=0, max_concurrent=3, latency_s=0.7)
    with ThreadPoolExecutor(6) as pool:
        codes = list(pool.map(lambda n: raw(server, ask(str(n))).status, range(6)))
    assert sorted(codes) == [200] * 3 + [503] * 3
    stats = server.stats()
    assert stats["over_concurrent"] == 3 and stats["real_rate_limited"] == stats["statuses"]["429"] > 0


def test_a_client_that_leaves_is_not_counted_as_served(server: FakeServer) -> None:
    server.faults(latency_s=0.3)
    assert raw(server, ask(), first_s=0.1).status == 0
    time.sleep(0.4)
    stats = server.stats()
    assert (stats["received"], stats["billed"], stats["completed"], stats["abandoned"]) == (1, 1, 0, 1)
    raw(server, ask())
    raw(server, ask())
    stats = server.stats()
    assert (stats["completed"], stats["distinct_completed"], stats["repeated_completed"]) == (2, 1, 1)
    log = server.log(2)
    assert [entry["attempt"] for entry in log] == [1, 2] and json.loads(log[0]["body"]) == ask()


def test_what_an_endpoint_may_refuse() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    flags = ("no_json_schema", "no_json_object", "no_logprobs", "only_max_completion_tokens")
    with FakeServer(api_key="k-secret-key-1234", models=["m", "n"], **dict.fromkeys(flags, True)) as server:

        def refused(request: dict[str, Any], key: str = "k-secret-key-1234") -> tuple[int, dict[str, Any]]:
            wire = raw(server, request, key=key)
            return wire.status, json.loads(wire.body).get("error")

        status, body = refused(ask(), key="k-wrong")
        assert status == 401 and body["code"] == "invalid_api_key"
        status, body = refused({**ask(), "model": "other"})
        assert status == 404 and body["code"] == "model_not_found"
        status, body = refused(ask(response_format=schema))
        assert status == 400 and "'response_format' of type 'json_schema' is not supported" in body["message"]
        status, body = refused(ask(**JSON_MODE))
        assert status == 400 and "'response_format' of type 'json_object' is not supported" in body["message"]
        status, body = refused(ask(max_tokens=3))
        assert (status, body["code"], body["param"]) == (400, "unsupported_parameter", "max_tokens")
        status, body = refused(ask(logprobs=True))
        assert (status, body["code"], body["param"]) == (400, "unsupported_parameter", "logprobs")
        server.faults(logprobs_status=403)
        status, body = refused(ask(logprobs=True))
        assert status == 403 and body["message"] == "You are not allowed to request logprobs from this model"
        server.faults(dialect="vllm")
        for extra in (JSON_MODE, {"max_tokens": 3}, {"logprobs": True}):
            wire = raw(server, ask(**extra), key="k-secret-key-1234")
            assert wire.status == 400 and json.loads(wire.body)["type"] == "BadRequestError"
        assert refused(ask(max_completion_tokens=3))[0] == 200
        assert refused({"model": "m", "messages": []})[0] == 400
        assert server.stats()["unauthorised"] == 1 and server.stats()["unknown_model"] == 1


def test_through_the_openai_client(server: FakeServer) -> None:
    errors = {
        "rate_limited": openai.RateLimitError, "insufficient_quota": openai.RateLimitError,
        "server_error_500": openai.InternalServerError, "unavailable_503": openai.InternalServerError,
        "bad_request": openai.BadRequestError, "hang": openai.APITimeoutError,
        "reset_before": openai.APIConnectionError, "reset_after": openai.APIConnectionError,
        "truncated": openai.APIConnectionError, "truncated_chunked": openai.APIConnectionError,
    }  # fmt: skip

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0, timeout=1.0) as client:

            async def call() -> Any:
                messages = [{"role": "user", "content": "Hello."}]
                return await client.chat.completions.create(model="m", messages=messages)  # pyright: ignore

            assert (await call()).choices[0].message.content.startswith("quality=")
            assert len((await client.models.list()).data) == 1
            for fault in FAULTS:
                server.faults(**{fault: 1}, content_filter_form="finish")
                if fault in errors:
                    with pytest.raises(errors[fault]):
                        await call()
                    print(f"{fault}: {errors[fault].__name__}")
                    continue
                try:
                    reply = await call()
                    print(f"{fault}: {type(reply).__name__} {str(reply)[:60]!r}")
                except (openai.OpenAIError, ValueError) as problem:
                    print(f"{fault}: {type(problem).__name__} {str(problem)[:60]!r}")
            server.faults()
            assert (await call()).choices[0].finish_reason == "stop"

    asyncio.run(run())


def test_throughput(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [{"role": "user", "content": "Say something about these words. " * 60}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (PATH.encode(), len(body), body)

    class Caller(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            transport.write(request)

        def data_received(self, data: bytes) -> None:
            if data.endswith(b"}"):
                self.transport.write(request)

    async def load(seconds: float) -> None:
        loop = asyncio.get_running_loop()
        callers = [await loop.create_connection(Caller, "127.0.0.1", server.port) for _ in range(32)]
        await asyncio.sleep(seconds)
        for transport, _ in callers:
            transport.close()

    start = time.monotonic()
    asyncio.run(load(1.5))
    stats, took_s = server.stats(), time.monotonic() - start
    per_s, per_cpu_s = stats["completed"] / took_s, stats["completed"] / stats["cpu_s"]
    with capsys.disabled():
        print(f"\n{len(body)} bytes: {per_s:.0f} requests/s, {per_cpu_s:.0f} per second of the server's processor time")
    assert per_cpu_s > 2000


def test_the_server_goes_when_its_starter_does() -> None:
    with FakeServer() as server:
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert server.process.wait(timeout=5) == 0
        server.process.stdin = None
