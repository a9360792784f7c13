"""A scripted endpoint that speaks OpenAI's chat protocol over real HTTP/1.1, for tests of paid calls.

    python -m tests.fake_openai --port 0 --latency-s 0.02 --api-key K      prints {"port": N}

`POST /v1/chat/completions`, `GET /v1/models`, and for the tests `POST /admin/faults | /admin/baseline | /admin/reset`,
`GET /admin/stats | /admin/log?n=`. The same requests in any order get the same answers (see Settings.seed): what is
said comes from fake_openai_endpoint.py, what goes wrong from fake_openai_faults.py. This file knows bytes and
connections only. HTTP as far as clients need it: RFC 9112 with Content-Length requests and keep-alive; no request
bodies in chunks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import fields
from http import HTTPStatus
from typing import Any

from tests.fake_openai_endpoint import Endpoint
from tests.fake_openai_faults import CHOICES, FAULTS, Answer, Settings, uniform

LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One client connection: requests in, one response at a time out."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.buffer = bytearray()
        self.due: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self.busy = self.closing = self.deaf = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.endpoint.counts["connections"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self.due is not None:
            self.due.cancel()
        if self.busy:
            self.endpoint.counts["abandoned"] += 1
            self._leave()

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            self.endpoint.counts["after_half_close"] += 1
            return
        self.buffer += data
        self.pump()

    def pump(self) -> None:
        """Handle the next request if all of it has arrived."""
        while not self.busy and not self.transport.is_closing():
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end])
            length = LENGTH.search(head)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < total:
                return
            body = bytes(self.buffer[end + 4 : total])
            del self.buffer[:total]
            method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            self.closing = CLOSE.search(head) is not None
            if (method, path) == ("POST", "/v1/chat/completions"):
                self.chat(head, body)
            else:
                self.send(self.endpoint.admin(method, path, body))

    def chat(self, head: bytes, body: bytes) -> None:
        endpoint = self.endpoint
        self.busy = True
        endpoint.inside += 1
        endpoint.max_concurrent = max(endpoint.max_concurrent, endpoint.inside)
        answer, digest, entry = endpoint.answer(head, body)
        settings = endpoint.settings
        delay = settings.latency_s + settings.jitter_s * uniform(settings.seed, digest, entry["attempt"], "latency")
        if delay > 0 and answer.billed:
            self.due = asyncio.get_running_loop().call_later(delay, self.deliver, answer, digest, entry)
        else:
            self.deliver(answer, digest, entry)

    def deliver(self, answer: Answer, digest: str, entry: Mapping[str, Any]) -> None:
        self.due = None
        way, half = answer.delivery, len(answer.body) // 2
        if way in ("hang", "drip"):
            if way == "drip":
                self.due = asyncio.get_running_loop().create_task(self.drip(answer, digest, entry))
            return
        self._leave()
        self.busy = False
        if way == "reset_before":
            return self.reset_connection()
        self.endpoint.statuses[answer.status] += 1
        if way in ("whole", "twice", "half_close"):
            if self.send(answer):
                self.endpoint.finished(answer, digest, entry)
            if way == "twice":
                self.transport.write(self.head(answer) + answer.body)
                self.transport.close()
            elif way == "half_close":
                self.transport.write_eof()
                self.deaf = True  # what comes in on this connection now is never answered
            elif self.buffer:
                asyncio.get_running_loop().call_soon(self.pump)
            return None
        if way == "chunked":
            part = answer.body[:half]
            self.transport.write(self.head(answer, chunked=True) + b"%x\r\n%s\r\n" % (len(part), part))
        else:
            self.transport.write(self.head(answer) + answer.body[:half])
        if way == "reset_after":
            # A moment for the half to arrive: a reset may discard what the client's kernel has not yet handed over.
            asyncio.get_running_loop().call_later(0.05, self.reset_connection)
        else:
            self.transport.close()
        return None

    async def drip(self, answer: Answer, digest: str, entry: Mapping[str, Any]) -> None:
        """The body a byte at a time."""
        pause_s = self.endpoint.settings.slow_drip_s / max(len(answer.body), 1)
        self.transport.write(self.head(answer))
        for position in range(len(answer.body)):
            await asyncio.sleep(pause_s)
            self.transport.write(answer.body[position : position + 1])
        self.due, self.busy = None, False
        self._leave()
        self.endpoint.statuses[answer.status] += 1
        if not self.transport.is_closing():
            self.endpoint.finished(answer, digest, entry)
        self.pump()

    def head(self, answer: Answer, chunked: bool = False) -> bytes:
        size = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(answer.body)}"
        lines = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            size,
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        if self.closing:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def send(self, answer: Answer) -> bool:
        """Write a whole response; False when the client turned out to be gone."""
        self.transport.write(self.head(answer) + answer.body)
        there = not self.transport.is_closing()
        if self.closing:
            self.transport.close()
        return there

    def reset_connection(self) -> None:
        """Close with RST: linger for zero seconds (RFC 9293, abort)."""
        connection: socket.socket | None = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _leave(self) -> None:
        self.endpoint.inside -= 1


async def serve(options: argparse.Namespace, settings: Settings) -> None:
    """Listen, say on which port, and serve until told to stop."""
    models = [name for name in options.models.split(",") if name]
    endpoint = Endpoint(settings, options.api_key, models)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(endpoint), "127.0.0.1", options.port, backlog=4096)
    stop = asyncio.Event()
    if options.watch_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.read1(4096) or stop.set())
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await stop.wait()


def main() -> None:
    """Every field of Settings is an option, every fault a rate."""
    parser = argparse.ArgumentParser(prog="fake_openai")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--api-key", default="", help="401 for any other key")
    parser.add_argument("--models", default="", help="comma-separated; 404 for any other model")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when standard input is closed")
    names = [entry.name for entry in fields(Settings) if entry.name != "rates"]
    for name in names:
        default = getattr(Settings(), name)
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default), default=default, choices=CHOICES.get(name))
    for name in FAULTS:
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=0.0, metavar="RATE")
    options = parser.parse_args()
    settings = Settings()
    settings.change({name: getattr(options, name) for name in (*names, *FAULTS)})
    asyncio.run(serve(options, settings))


if __name__ == "__main__":
    main()
