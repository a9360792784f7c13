"""The paid judge with its ledger and limits, beside a bare asyncio loop on the same scripted server."""

from __future__ import annotations

import argparse

from benchmarks import judge
from benchmarks.figures import Figure, Measured, Scope, against_peer

TARGET = 0.9


def measure(scope: Scope) -> Measured:
    """`benchmarks.judge` at the size of the scope."""
    arguments = argparse.Namespace(
        rows=min(scope.rows or 300, 2000), words=120, latency_s=0.03, concurrency=64, rounds=scope.rounds
    )
    found = judge.on_server(arguments)
    return Measured(
        [
            *against_peer("asyncio and AsyncOpenAI", found["times"], TARGET),
            Figure("calls/s", round(found["ours_calls_per_s"]), "calls/s", "higher"),
            Figure("limiter alone", round(found["limiter_pairs_per_s"]), "calls/s", "higher"),
        ],
        found,
    )
