"""A real S3-compatible server on this machine: moto's, over HTTP, counting its requests and failing when it is told to.

Conditional writes are atomic, as in S3: requests enter the application one at a time, once their body is here.
"""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

BUCKET = "bucket"
FAULT = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>told to fail</Message></Error>"


class S3Server:
    """Serves until `close`.

    Attributes:
        url: endpoint.
        requests: HTTP method -> number.
        bytes_out: of the bodies of GET answers.
        faults: how many of the next requests to fail, and how.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.requests: Counter[str] = Counter()
        self.bytes_out = 0
        self.faults: tuple[int, int, bytes] = (0, 500, b"InternalError")
        self._lock = threading.Lock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="s3", daemon=True)
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """How a client finds it: fsspec's and botocore's own variables."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fail(self, number: int, status: int, code: bytes) -> None:
        """Answers the next `number` requests with an error; 0 ends it."""
        with self._lock:
            self.faults = (number, status, code)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self._lock:
            self.requests[environ["REQUEST_METHOD"]] += 1
            left, status, code = self.faults
            if left:
                self.faults = (left - 1, status, code)
                start_response(f"{status} told", [("Content-Type", "application/xml")])
                return [FAULT % code]
            answer = list(self._app({**environ, "wsgi.input": io.BytesIO(body)}, start_response))
            if environ["REQUEST_METHOD"] == "GET":
                self.bytes_out += sum(map(len, answer))
            return answer
