"""What an unreliable endpoint costs paid judging in time, beyond what its faults cost by themselves.

    python -m benchmarks.judge_faults [--rows 2500 --concurrency 32 --latency-s 0.5 --rounds 3]

The same rows are judged without and with faults, in turn, by one process against a scripted server. What the faults
cost by themselves is computed in two ways. `perfect`: a client that loses no time is replayed on what was measured of
every call, how long each attempt took and how long it had to wait before the next (Retry-After, backoff); what it
needs more with faults than without is theirs. `sums`: seconds in which timeouts and slow replies held one of the
`concurrency` slots, plus seconds of waiting, both divided by the concurrency, plus the calls made again at the
faultless rate; since a call that waits holds no slot, this is a generous figure. The rest of the added time, as a share
of the faultless time, is ours: fewer calls at once, slots that idle, parts that wait for their last call.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import engine.paid.client as client
from benchmarks.record import write_record
from tests.fake_server import FakeServer
from tests.paid.paid_rows import judge_config, judge_rows, make_rows

RATES = {
    "rate_limited": 0.01, "server_error_500": 0.005, "unavailable_503": 0.005, "hang": 0.002, "reset_before": 0.003,
    "reset_after": 0.003, "truncated": 0.003, "truncated_chunked": 0.003, "malformed_json": 0.003, "not_json": 0.003,
    "wrong_schema": 0.003, "wrong_content_type": 0.003, "slow_drip": 0.003, "duplicated": 0.003, "half_close": 0.003,
    "unparsable": 0.004, "refusal": 0.003,
}  # fmt: skip
CALL_TIMEOUT_S, DRIP_S, RETRY_AFTER_S = 2.5, 0.5, 0.5
SHARES = ("added", "beyond_perfect", "beyond_sums")

# seconds of an attempt, and of the wait after it; of each call, in the order in which calls were first sent
Calls = list[list[tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency-s", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="judge_faults")
    arguments = parser.parse_args()
    result = measure(arguments)
    print_table(result)
    print(f"record: {write_record(arguments.name, result)}")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both loads by round, and what of the difference the faults account for."""
    load, rounds = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as folder:
        judge(Path(folder) / "unmeasured", 100, arguments, {})
        for number in range(arguments.rounds):
            runs: dict[str, dict[str, Any]] = {}
            for name in ("faultless", "faulty") if number % 2 == 0 else ("faulty", "faultless"):
                rates = RATES if name == "faulty" else {}
                runs[name] = judge(Path(folder) / f"{name}-{number}", arguments.rows, arguments, rates, seed=number)
            rounds.append(account(runs["faultless"], runs["faulty"], arguments.concurrency))
    return {
        "rows": arguments.rows,
        "concurrency": arguments.concurrency,
        "latency_s": arguments.latency_s,
        "rates": RATES,
        "call_timeout_s": CALL_TIMEOUT_S,
        "load_before": load,
        "rounds": rounds,
        **{name: statistics.median(one[name] for one in rounds) for name in SHARES},
    }


def judge(
    out: Path, rows: int, arguments: argparse.Namespace, rates: dict[str, float], seed: int = 0
) -> dict[str, Any]:
    """Judges the rows in a run folder of their own; wall seconds, what each call took, the server's counts."""
    settings = {"slow_drip_s": DRIP_S, "retry_after_s": RETRY_AFTER_S, "retry_after": "ms", "seed": seed}
    with FakeServer(latency_s=arguments.latency_s, **settings, **rates) as server:
        config = judge_config(server.url, concurrency=arguments.concurrency, call_timeout_s=CALL_TIMEOUT_S)
        with measured() as calls:
            started = time.perf_counter()
            table = judge_rows(out, make_rows(rows), config)
            seconds = time.perf_counter() - started
        stats = server.stats()
    errors = table.num_rows - table["error"].null_count
    return {"seconds": seconds, "calls": list(calls.values()), "errors": errors, "stats": stats}


@contextmanager
def measured() -> Iterator[dict[Any, list[tuple[float, float]]]]:
    """Attempts and waits by call: each call is a task of its own."""
    calls: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    send, drawn = client.PaidClient._send, client.backoff_s

    async def timed_send(self: client.PaidClient, body: dict[str, Any]) -> Any:
        attempts, started = calls[asyncio.current_task()], time.perf_counter()
        attempts.append((0.0, 0.0))
        try:
            return await send(self, body)
        finally:
            attempts[-1] = (time.perf_counter() - started, 0.0)

    def noted_backoff(attempt: int, asked_s: float | None) -> float:
        wait_s, attempts = drawn(attempt, asked_s), calls[asyncio.current_task()]
        attempts[-1] = (attempts[-1][0], wait_s)
        return wait_s

    client.PaidClient._send, client.backoff_s = timed_send, noted_backoff  # type: ignore[assignment]
    try:
        yield calls
    finally:
        client.PaidClient._send, client.backoff_s = send, drawn


def perfect_s(calls: Calls, concurrency: int) -> float:
    """Seconds of a client that starts the next call whenever a slot is free; calls made again go first."""
    slots, again, fresh, last = [0.0] * concurrency, [], 0, 0.0
    while again or fresh < len(calls):
        now = heapq.heappop(slots)
        if again and (again[0][0] <= now or fresh == len(calls)):
            ready, number, attempt = heapq.heappop(again)
            now = max(now, ready)
        else:
            number, attempt, fresh = fresh, 0, fresh + 1
        took_s, wait_s = calls[number][attempt]
        heapq.heappush(slots, now + took_s)
        last = max(last, now + took_s)
        if attempt + 1 < len(calls[number]):
            heapq.heappush(again, (now + took_s + wait_s, number, attempt + 1))
    return last


def account(faultless: dict[str, Any], faulty: dict[str, Any], concurrency: int) -> dict[str, Any]:
    """Where the added time of one round went; shares are of the faultless time."""
    base_s, stats = faultless["seconds"], faulty["stats"]
    perfect = {
        "faultless": perfect_s(faultless["calls"], concurrency),
        "faulty": perfect_s(faulty["calls"], concurrency),
    }
    theirs_s = perfect["faulty"] - perfect["faultless"]
    held_s = CALL_TIMEOUT_S * stats["faults"].get("hang", 0) + DRIP_S * stats["faults"].get("slow_drip", 0)
    waits_s = sum(wait_s for call in faulty["calls"] for _, wait_s in call)
    again = stats["received"] - faultless["stats"]["received"]
    sums_s = (held_s + waits_s) / concurrency + again * base_s / faultless["stats"]["received"]
    added_s = faulty["seconds"] - base_s
    return {
        "faultless_s": base_s,
        "faulty_s": faulty["seconds"],
        "faults": sum(stats["faults"].values()),
        "calls_again": again,
        "errors": faulty["errors"],
        "perfect_faultless_s": perfect["faultless"],
        "perfect_faulty_s": perfect["faulty"],
        "sums_s": sums_s,
        "added": added_s / base_s,
        "beyond_perfect": (added_s - theirs_s) / base_s,
        "beyond_sums": (added_s - sums_s) / base_s,
    }


def print_table(result: dict[str, Any]) -> None:
    title = "{rows:,} rows in both orders, {concurrency} calls at once, {latency_s:g} s each".format(**result)
    names = ("faultless_s", "faulty_s", "faults", "perfect_faultless_s", "perfect_faulty_s", "sums_s")
    table = Table(*(name.replace("_", " ") for name in (*names, *SHARES)), title=title)
    for one in result["rounds"]:
        table.add_row(*(f"{one[name]:.1f}" for name in names), *(f"{one[name]:.1%}" for name in SHARES))
    table.add_row("median", *[""] * (len(names) - 1), *(f"{result[name]:.1%}" for name in SHARES))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
