"""Provider batch files: a step's missing calls as JSON Lines to submit, and the answers taken back into the ledger.

The form is OpenAI's Batch API (`custom_id, method, url, body`), which `vllm run-batch` and other providers read too.
`custom_id` is the key of the ledger, so answers may come back in any order, in parts, from another run or twice. It
submits nothing itself.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fsspec

from engine.errors import BudgetReached, DataError
from engine.paid.ledger import Kind, LedgerIndex, LedgerWriter, Record
from engine.paid.prices import Prices, usd_of
from engine.paid.replies import BrokenReply, Reply, read_reply
from engine.paid.requests import Dialect, Request, wire_body
from engine.paid.retry import classify
from engine.store import Store

FILE_REQUESTS, FILE_BYTES = 50_000, 200_000_000  # OpenAI's limits of one file
FOLDER, CALLS_FILE = "batches", "calls.jsonl"
WRITE_RECORDS = 256


class NotAnswered(Exception):
    """A call whose answer is not in the ledger yet."""


@dataclass(frozen=True)
class Missing:
    """A call that a batch has to make."""

    key: str
    request: Request
    purpose: str
    round: int


class BatchClient:
    """Stands in for PaidClient where calls are to be collected: answers from the ledger, or notes what is missing."""

    def __init__(self, base_url: str, ledger: Store) -> None:
        self.base_url, self.index = base_url, LedgerIndex(ledger)
        self.index.refresh()
        self.round = 0
        self.missing: dict[str, Missing] = {}
        self.answered = 0

    async def begin(self, round_number: int) -> None:
        self.round = round_number

    async def call(self, request: Request, purpose: str) -> Reply:
        """The answer on record.

        Raises:
            NotAnswered: there is none; the call is noted.
        """
        key = request.key(self.base_url)
        found = self.index.done(key)
        if found is None:
            self.missing[key] = Missing(key, request, purpose, self.round)
            raise NotAnswered(key)
        self.answered += 1
        return Reply.of_ledger(found)

    async def close(self) -> None:
        """Holds nothing."""


def write_batch(
    store: Store, step: str, missing: Sequence[Missing], price: Prices | None, discount: float, run: str
) -> list[str]:
    """Writes the request files of a step, and what the answers will be booked as.

    Files of an earlier attempt are replaced, the calls that they asked stay known: their answers may still come.

    Args:
        store: the run folder.
        step: name of the step that waits.
        missing: its calls, at least one.
        price: before the discount; None when it is not known, which counts as nothing.
        discount: share that the provider takes off for batches.
        run: the run's name in the ledger.

    Returns:
        Paths of the files, relative to the run folder.
    """
    folder = f"{FOLDER}/{step.replace('/', '-')}"
    paid = None if price is None else [part * (1.0 - discount) for part in price]
    calls = [
        {
            "key": call.key, "purpose": call.purpose, "round": call.round, "run": run, "asked": call.request.model,
            "prompt": call.request.prompt, "most_tokens_in": call.request.most_tokens_in(), "price": paid,
        }
        for call in missing
    ]  # fmt: skip
    known = {**_calls_of(store, folder), **{call["key"]: call for call in calls}}
    store.write_bytes(f"{folder}/{CALLS_FILE}", "".join(json.dumps(call) + "\n" for call in known.values()).encode())
    written = []
    for number, lines in enumerate(_files(missing)):
        written.append(f"{folder}/requests-{number:05d}.jsonl")
        store.write_bytes(written[-1], b"".join(lines))
    for name in store.list(folder):
        if name != CALLS_FILE and f"{folder}/{name}" not in written:
            store.remove(f"{folder}/{name}")  # submitted again, it would be paid twice
    return written


def _files(missing: Sequence[Missing]) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    size = 0
    for call in missing:
        body = wire_body(call.request, Dialect())
        line = {"custom_id": call.key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        data = json.dumps(line).encode() + b"\n"
        if lines and (len(lines) >= FILE_REQUESTS or size + len(data) > FILE_BYTES):
            yield lines
            lines, size = [], 0
        lines.append(data)
        size += len(data)
    yield lines


def waiting_for_batch(store: Store, files: Sequence[str], calls: int) -> BudgetReached:
    """What stops the run until the answers are there; exit code 5."""
    return BudgetReached(
        f"{calls:,} calls wait for a batch; their requests are in {', '.join(store.path(file) for file in files)}",
        fix=f"submit these files (or `vllm run-batch`), take the answers back with "
        f"`iterselect ledger import {store.root} ANSWERS.jsonl`, then run the same command again",
        code="E520",
    )


def import_answers(store: Store, ledger: Store, files: Sequence[str]) -> dict[str, Any]:
    """Books the answers of batch output files in the ledger.

    A request that the provider refused for good becomes a recorded refusal, so that its row is an error row; one that
    expired or failed on their side is not recorded and is written into the next request file.

    Args:
        store: the run folder whose requests were submitted.
        ledger: where its calls are recorded.
        files: answer files, any fsspec path.

    Returns:
        Counts: `booked`, `refused`, `already` (in the ledger before), `again` (to be asked again), `foreign` (answers
        to somebody else's requests) and why (`reasons`).

    Raises:
        DataError: E455, a file cannot be read, a line is no batch answer, or no line belongs to this run; E453, the
            run never wrote requests.
    """
    if not store.list(FOLDER):
        raise DataError(
            f"no batch was written in {store.root}", fix="give the folder of a run with mode: batch", code="E453"
        )
    calls = {key: call for name in store.list(FOLDER) for key, call in _calls_of(store, f"{FOLDER}/{name}").items()}
    index = LedgerIndex(ledger)
    index.refresh()
    writer = LedgerWriter(ledger)
    counts, reasons = Counter[str](), Counter[str]()
    records: list[Record] = []
    seen: set[str] = set()
    try:
        for line in _answer_lines(files):
            call = calls.get(str(line.get("custom_id")))
            if call is None:
                counts["foreign"] += 1
                continue
            reply, reason = _read_line(line)
            reasons.update([reason] if reason else [])
            if reply is None:
                counts["again"] += 1
            elif call["key"] in seen or index.done(call["key"]) is not None:
                counts["already"] += 1
            else:
                seen.add(call["key"])
                counts["refused" if reason else "booked"] += 1
                records.append(_record(call, reply))
            if len(records) >= WRITE_RECORDS:
                writer.write(records)
                records = []
        writer.write(records)
    finally:
        writer.close()
    if counts["foreign"] == counts.total():
        raise DataError(
            f"none of the {counts['foreign']:,} answers belongs to a request of {store.root}"
            if counts["foreign"]
            else "there are no answers",
            where=", ".join(files),
            fix="give the output of the request files in its `batches` folder",
            code="E455",
        )
    names = ("booked", "refused", "already", "again", "foreign")
    return {**{name: counts[name] for name in names}, "reasons": dict(reasons.most_common())}


def _calls_of(store: Store, folder: str) -> dict[str, dict[str, Any]]:
    """What was asked in a folder of requests, by key."""
    if not store.exists(f"{folder}/{CALLS_FILE}"):
        return {}
    calls = map(json.loads, store.read_bytes(f"{folder}/{CALLS_FILE}").splitlines())
    return {call["key"]: call for call in calls}


def _answer_lines(files: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for file in files:
        try:
            with fsspec.open(file, "rb") as stream:
                for number, data in enumerate(stream, 1):  # pyright: ignore[reportArgumentType]
                    if data.strip():
                        yield _json_object(data, f"{file}:{number}")
        except OSError as error:
            raise DataError(f"cannot read answers: {error}", where=file, code="E455") from error


def _json_object(data: bytes, where: str) -> Mapping[str, Any]:
    try:
        line = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(
            "the line is not JSON", where=where, fix="give the provider's output file", code="E455"
        ) from error
    if not isinstance(line, dict) or "custom_id" not in line or not ("response" in line or "error" in line):
        what = "a request, not its answer" if isinstance(line, dict) and "body" in line else "not a batch answer"
        fix = "give the provider's output files: their lines have custom_id, response and error"
        raise DataError(f"the line is {what}", where=where, fix=fix, code="E455")
    return line


def _read_line(line: Mapping[str, Any]) -> tuple[Reply | None, str]:
    """(the reply, ""), (a recorded refusal, why) or (None, why it has to be asked again)."""
    response = line.get("response")
    if not isinstance(response, dict):
        error = line.get("error")
        return None, str(error.get("code") or "error") if isinstance(error, dict) else "error"
    status, body = response.get("status_code"), response.get("body")
    if status == 200:
        try:
            return read_reply(json.dumps(body).encode(), str(response.get("request_id") or "")), ""
        except BrokenReply as error:
            return None, str(error)
    failure = classify(int(status or 500), body, {})
    return (Reply(text="", finish="refused"), failure.code) if failure.what == "row" else (None, failure.code)


def _record(call: Mapping[str, Any], reply: Reply) -> Record:
    price = None if call["price"] is None else Prices(*call["price"])
    usd = usd_of(price, reply.tokens_in, reply.tokens_out)
    payload = {
        "t": time.time(), "asked": call["asked"], "prompt": call["prompt"], "batch": True,
        **replace(reply, usd=usd).payload(),
    }  # fmt: skip
    return Record(
        kind=Kind.DONE, key=call["key"], payload=payload, purpose=call["purpose"], round=call["round"],
        run=call["run"], cost_usd=usd, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out,
    )  # fmt: skip
