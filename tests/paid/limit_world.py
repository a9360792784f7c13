"""Members and a limiter on one virtual clock: real purses, ledger and limiter; delays and deaths as the test wishes."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.paid.flow import Ask, Grant, to_nano
from engine.paid.ledger import Kind, LedgerWriter, Record
from engine.paid.limits import LEASE_S, Limiter, Limits
from engine.paid.purse import Permit, Purse
from engine.store import Store

RUN = "0123456789abcdef"
URL = "http://judge/v1"
KEYS = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(kind: Kind, usd: float, key: str | None = None, round_number: int = 0) -> Record:
    key = key if key is not None else f"{next(KEYS):064x}"
    facts: dict[str, Any] = {"purpose": "judge", "round": round_number, "run": RUN, "tokens_in": 1, "tokens_out": 1}
    return Record(kind=kind, key=key, payload={}, cost_usd=usd, **facts)


@dataclass
class Call:
    tokens: int
    usd: float  # reserved
    cost: float
    seconds: float
    limited: bool
    key: str = ""
    state: str = "waiting"


@dataclass
class Process:
    """One incarnation of a member: its purse, its ledger writer and the calls it was given."""

    name: str
    purse: Purse
    writer: LedgerWriter
    calls: list[Call]
    alive: bool = True
    in_rpc: bool = False
    running: list[tuple[Call, Permit]] = field(default_factory=list)


class World:
    """Processes, their messages with delays, and a limiter, in the order of one virtual clock."""

    def __init__(self, folder: Path, limits: Limits, cap: float | None, seed: int) -> None:
        self.clock, self.store, self.limits, self.cap = Clock(), Store(folder), limits, cap
        self.limiter = Limiter(self.store, RUN, cap, None, clock=self.clock)
        self.draws, self.events, self.sequence = random.Random(seed), [], itertools.count()
        self.processes: list[Process] = []
        self.starts: list[tuple[float, int]] = []
        self.spent = 0  # nano-dollars, whether the ledger knows or not

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.clock.now + seconds, next(self.sequence), what))

    def join(self, name: str, calls: list[Call]) -> None:
        writer = LedgerWriter(self.store)
        process = Process(name, Purse(name, writer.writer, URL, self.limits), writer, calls)
        self.limiter.register(name, writer.writer, URL, self.limits, 0)
        self.processes.append(process)
        for call in calls:
            call.state = "waiting"
            process.purse.wait(call.tokens, to_nano(call.usd), call)
        self.tick(process)

    def tick(self, process: Process) -> None:
        """Starts what can start, sends a message if one is due, looks again when the next one is."""
        if not process.alive:
            return
        now = self.clock.now
        for permit, call in process.purse.starters(now, lambda call: False):
            self.begin(process, call, permit)
        if process.in_rpc:
            return
        due = process.purse.due(now)
        if due > now:
            if due < math.inf:
                self.at(due - now + 1e-6, lambda: self.tick(process))
            return
        ask, process.in_rpc = process.purse.ask(now), True
        self.at(self.draws.random() * 0.01, lambda: self.serve(process, ask))

    def serve(self, process: Process, ask: Ask) -> None:
        if process.alive:
            grant = self.limiter.lease(ask)
            if self.draws.random() < 0.1:
                assert self.limiter.lease(ask) is grant
            self.at(self.draws.random() * 0.01, lambda: self.hear(process, grant))
        elif self.draws.random() < 0.5:
            self.limiter.lease(ask)  # it had been sent before the death, and nobody hears the grant

    def hear(self, process: Process, grant: Grant) -> None:
        process.in_rpc = False
        if process.alive:
            process.purse.apply(grant, self.clock.now)
            assert not grant.replaced
            if grant.stop is not None:
                for call in process.purse.drain():
                    call.state = "stopped"
            self.tick(process)

    def begin(self, process: Process, call: Call, permit: Permit) -> None:
        call.state, call.key = "running", f"{next(KEYS):064x}"
        process.running.append((call, permit))
        process.writer.write([record(Kind.INTENT, call.usd, call.key)])
        self.starts.append((self.clock.now, call.tokens))
        self.check()
        self.at(call.seconds, lambda: self.finish(process, call, permit))

    def finish(self, process: Process, call: Call, permit: Permit) -> None:
        if not process.alive:
            return
        process.running.remove((call, permit))
        cost = 0 if call.limited else to_nano(call.cost)
        tokens = 0 if call.limited else call.tokens
        self.spent += cost
        process.purse.give(permit, "limited" if call.limited else "ok", tokens, 0, cost)
        call.state = "done"
        kind = Kind.SPOILED if call.limited else Kind.DONE
        key, usd = call.key, cost / 1e9
        self.at(0.5, lambda: process.writer.write([record(kind, usd, key)]) if process.alive else None)
        self.tick(process)

    def restart_limiter(self) -> None:
        self.limiter = Limiter(self.store, RUN, self.cap, None, clock=self.clock)

    def kill(self, process: Process, comes_back: bool) -> None:
        if not process.alive:
            return
        process.alive = False
        self.spent += sum(to_nano(call.cost) for call, _ in process.running)  # the endpoint charges what was sent
        lost = [call for call in process.calls if call.state in ("waiting", "running")]
        if comes_back:
            self.at(self.draws.random() * 3, lambda: self.join(process.name, lost))
        else:
            self.at(LEASE_S + 1, lambda: self.join(process.name + "+", lost))

    def check(self) -> None:
        alive = [process for process in self.processes if process.alive]
        assert sum(process.purse.in_flight for process in alive) <= self.limits.concurrency
        assert sum(process.purse.slots for process in alive) <= self.limits.concurrency
        if self.cap is not None:
            assert self.spent + sum(process.purse.reserved for process in alive) <= to_nano(self.cap)

    def run(self) -> None:
        for _ in range(100_000):
            if not self.events:
                return
            when, _, what = heapq.heappop(self.events)
            if when > self.clock.now + 3600:
                raise AssertionError("nothing happens for an hour")
            self.clock.now = when
            what()
            self.check()
        raise AssertionError("it goes round in circles")
