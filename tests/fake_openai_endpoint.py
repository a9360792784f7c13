"""The scripted server without its wires: what each request is answered, and what is counted.

Verdicts come from fake_openai_judge.py, faults from fake_openai_faults.py; sockets are fake_openai.py's business.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tests.fake_openai_faults import Answer, Settings, draw_fault, error, rate_limited, strike, uniform, unsupported
from tests.fake_openai_judge import generator_reply, judge, logprobs, read_request, text_of, tokens_of

CREATED = 1_700_000_000
LOG_SIZE = 300
BEARER = re.compile(rb"\r\nauthorization:[ \t]*bearer[ \t]+([^\r\n]*)", re.IGNORECASE)


class Endpoint:
    """What all connections share: settings, statistics and the answer to each request."""

    def __init__(self, settings: Settings, api_key: str, models: list[str]) -> None:
        self.settings, self.api_key, self.models = settings, api_key, models
        self.baselines: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        """Forget counts, attempts, baselines and the log; the settings stay."""
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.completed_by: Counter[str] = Counter()
        self.completed: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.log: deque[dict[str, Any]] = deque(maxlen=LOG_SIZE)
        self.baselines.clear()
        self.inside = getattr(self, "inside", 0)
        self.max_concurrent = self.inside
        self.bucket, self.bucket_at = 1e18, time.monotonic()
        self.cpu_before = time.process_time()

    def stats(self) -> dict[str, Any]:
        """Counts since the last reset; `completed`: well-formed answers written in full to a client still there."""
        names = (
            "received", "abandoned", "billed", "obeyed", "broken_blocks", "biased", "unauthorised", "unknown_model",
            "unsupported", "real_rate_limited", "over_concurrent", "tokens_in", "tokens_out", "connections",
            "after_half_close",
        )  # fmt: skip
        completed = self.completed.total()
        return {
            **{name: self.counts[name] for name in names},
            "completed": completed,
            "distinct_completed": len(self.completed),
            "repeated_completed": completed - len(self.completed),
            "completed_by": dict(self.completed_by),
            "faults": dict(self.faults),
            "statuses": {str(status): n for status, n in self.statuses.items()},
            "verdicts": dict(self.verdicts),
            "distinct_received": len(self.attempts),
            "system_prompts": len({key.partition("\x1e")[2] for key in self.baselines}),
            "concurrent": self.inside,
            "max_concurrent": self.max_concurrent,
            "cpu_s": round(time.process_time() - self.cpu_before, 3),
        }

    def answer(self, head: bytes, body: bytes) -> tuple[Answer, str, dict[str, Any]]:
        """The response to one chat request, the SHA-256 of its body, and its line of the log."""
        self.counts["received"] += 1
        digest = hashlib.sha256(body).hexdigest()
        attempt = self.attempts[digest]
        self.attempts[digest] += 1
        entry = {"time": time.time(), "sha256": digest, "attempt": attempt, "fault": None, "body": body}
        self.log.append(entry)
        refused, request = self._refuse(head, body)
        if refused is None:
            assert request is not None
            fault = draw_fault(self.settings, digest, attempt)
            if fault is None:
                completion = self.complete(request, digest, entry)
                refused = Answer(200, json.dumps(completion).encode(), billed=True, usable=True)
            else:
                self.faults[fault] += 1
                entry["fault"] = fault
                point = uniform(self.settings.seed, digest, attempt, "form")
                refused = strike(fault, lambda: self.complete(request, digest, entry), self.settings, point)
        entry["status"] = refused.status
        self.counts["billed"] += refused.billed
        request_id = hashlib.sha256(f"{self.settings.seed}/{digest}/{attempt}".encode()).hexdigest()[:32]
        refused.headers["x-request-id"] = f"req_{request_id}"
        return refused, digest, entry

    def _refuse(self, head: bytes, body: bytes) -> tuple[Answer | None, dict[str, Any] | None]:
        """The error that a working endpoint answers before any fault, or the request."""
        settings, invalid = self.settings, "invalid_request_error"
        key = BEARER.search(head)
        if self.api_key and (key is None or key[1].decode("latin-1") != self.api_key):
            self.counts["unauthorised"] += 1
            given = key[1].decode("latin-1") if key else ""
            shown = f"{given[:8]}{'*' * max(len(given) - 12, 0)}{given[-4:]}"
            message = f"Incorrect API key provided: {shown}. You can find your API key at https://platform.openai.com."
            return error(401, message, invalid, "invalid_api_key"), None
        try:
            request = json.loads(body)
            messages = request["messages"]
            well_formed = isinstance(messages, list) and all(isinstance(m, dict) for m in messages) and messages
        except (ValueError, KeyError, TypeError, RecursionError):
            well_formed = False
        if not well_formed or request.get("stream"):
            return error(400, "We could not parse the JSON body of your request.", invalid, None), None
        model = str(request.get("model"))
        if self.models and model not in self.models:
            self.counts["unknown_model"] += 1
            message = f"The model `{model}` does not exist or you do not have access to it."
            return error(404, message, invalid, "model_not_found"), None
        refusal = unsupported(request, settings)
        if refusal is not None:
            self.counts["unsupported"] += 1
            return refusal, None
        if settings.max_concurrent and self.inside > settings.max_concurrent:
            self.counts["over_concurrent"] += 1
            return error(503, "The engine is currently overloaded, please try again later", "server_error", None), None
        wait_s = self._bucket_wait_s()
        if wait_s > 0:
            self.counts["real_rate_limited"] += 1
            return rate_limited(settings, wait_s, model), None
        return None, request

    def _bucket_wait_s(self) -> float:
        """Token bucket of one second's worth (at least one request): 0 when there was a token, else the wait."""
        per_s = self.settings.real_rate_limit / 60
        if not per_s:
            return 0.0
        now = time.monotonic()
        self.bucket = min(max(per_s, 1.0), self.bucket + (now - self.bucket_at) * per_s)
        self.bucket_at = now
        if self.bucket >= 1:
            self.bucket -= 1
            return 0.0
        return max((1 - self.bucket) / per_s, 0.001)

    def complete(self, request: Mapping[str, Any], digest: str, entry: dict[str, Any]) -> dict[str, Any]:
        """The honest chat completion of a request."""
        messages = request["messages"]
        reading = read_request(messages)
        wanted = request.get("response_format")
        if reading is None:
            reply = generator_reply(messages)
        else:
            wants_json = isinstance(wanted, dict) and wanted.get("type") in ("json_schema", "json_object")
            baseline = self.baselines.setdefault(reading.baseline_key, reading.remainder)
            schema = wanted.get("json_schema", {}).get("schema", {}) if isinstance(wanted, dict) else {}
            reply = judge(reading, baseline, self.settings, digest, wants_json, schema.get("properties"))
            self.verdicts[reply.value or "none"] += 1
            self.counts.update(obeyed=reply.obeyed, broken_blocks=reply.broken, biased=reply.biased)
        entry.update(mode=reply.mode, value=reply.value, obeyed=reply.obeyed)
        tokens, position = tokens_of(reply)
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or len(tokens)
        finish = "length" if limit < len(tokens) else "stop"
        tokens = tokens[:limit]
        tokens_in = sum(3 + len(text_of(message.get("content"))) // 4 for message in messages)
        entry["tokens"] = (tokens_in, len(tokens))
        logs = None
        if request.get("logprobs"):
            logs = logprobs(tokens, position, reply, int(request.get("top_logprobs") or 0))
        message = {"role": "assistant", "content": "".join(tokens), "refusal": None, "annotations": []}
        return {
            "id": f"chatcmpl-{digest[:24]}",
            "object": "chat.completion",
            "created": CREATED,
            "model": request.get("model"),
            "choices": [{"index": 0, "message": message, "logprobs": logs, "finish_reason": finish}],
            "usage": {
                "prompt_tokens": tokens_in,
                "completion_tokens": len(tokens),
                "total_tokens": tokens_in + len(tokens),
                "prompt_tokens_details": {"cached_tokens": 0},
            },
            "system_fingerprint": "fp_scripted",
        }

    def finished(self, answer: Answer, digest: str, entry: Mapping[str, Any]) -> None:
        """The last byte of a response was written to a client still there."""
        if not answer.usable:
            return
        self.completed[digest] += 1
        self.completed_by[entry["fault"] or "ok"] += 1
        self.counts.update(tokens_in=entry["tokens"][0], tokens_out=entry["tokens"][1])

    def admin(self, method: str, path: str, body: bytes) -> Answer:
        """The tests' own verbs."""
        path, _, query = path.partition("?")
        done: Any = {"ok": True}
        try:
            if (method, path) == ("GET", "/admin/stats"):
                done = self.stats()
            elif (method, path) == ("GET", "/admin/log"):
                count = int(query.removeprefix("n=") or 100)
                done = [{**e, "body": e["body"].decode("utf-8", "replace")} for e in list(self.log)[-count:]]
            elif (method, path) == ("GET", "/v1/models"):
                names = self.models or ["scripted"]
                rows = [{"id": n, "object": "model", "created": CREATED, "owned_by": "tests"} for n in names]
                done = {"object": "list", "data": rows}
            elif (method, path) == ("POST", "/admin/reset"):
                self.reset()
            elif (method, path) == ("POST", "/admin/faults"):
                self.settings.change(json.loads(body or b"{}"))
                done = asdict(self.settings)
            elif (method, path) == ("POST", "/admin/baseline"):
                reading = read_request(json.loads(body)["messages"])
                if reading is None:
                    raise ValueError("no user message gives a code")
                self.baselines[reading.baseline_key] = reading.remainder
            else:
                return error(404, f"Unknown request URL: {method} {path}.", "invalid_request_error", "unknown_url")
        except (ValueError, KeyError, TypeError) as problem:
            return error(400, str(problem), "invalid_request_error", None)
        return Answer(200, json.dumps(done).encode())
