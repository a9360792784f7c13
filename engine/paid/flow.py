"""The pure parts of the limits of paid calls: the messages between a member and the limiter, fair shares, a token
bucket, and how many calls at once an endpoint takes. Times are passed in; nothing here knows of ledgers or members.

Sources: token buckets (Turner 1986); shares are max-min fair (Bertsekas and Gallager 1992, 6.5.2); the answer to 429
is DCTCP's (Alizadeh et al. 2010), W <- W * (1 - share / 2) with a moving average of the share, instead of halving.
Deviation: a window with at most 5 % of 429 still grows, else a few stray ones would wear large windows down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from engine.errors import BudgetReached

NANO = 1_000_000_000  # nano-dollars in a dollar: money is counted in integers
WINDOW_OUTCOMES, WINDOW_S = 20, 0.5
GAIN, STRAY = 0.5, 0.05  # of the moving average; share of 429 that does not stop growth
MOST_RETRY_AFTER_S = 120.0

Reason = Literal["", "slots", "rate", "money", "pause"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an endpoint allows the whole run; None: no such limit."""

    concurrency: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class Outcomes(NamedTuple):
    """What became of a writer's calls since it began; every field only grows.

    started_tokens sums the estimates of the started calls, unused_tokens what estimates of finished ones were too high
    by (it may shrink), nano_usd is real cost.
    """

    started: int = 0
    started_tokens: int = 0
    unused_tokens: int = 0
    ok: int = 0
    limited: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    nano_usd: int = 0

    def plus(self, other: Outcomes) -> Outcomes:
        return Outcomes(*(a + b for a, b in zip(self, other, strict=True)))

    def since(self, earlier: Outcomes) -> Outcomes:
        return Outcomes(*(a - b for a, b in zip(self, earlier, strict=True)))


NOTHING = Outcomes()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A member's message. All it says about holdings is absolute: it replaces what the limiter believed.

    Attributes:
        number: 1, 2, ...: a repeated one gets the same grant.
        in_flight, slots: calls that run, and how many it will not exceed until the grant comes.
        requests, tokens: unused ones it keeps.
        nano_usd: money it keeps: reserved for what runs, and unused.
        waiting: calls that wait; the first needs first_tokens and first_nano, one on average call_tokens, call_nano.
        ahead, ahead_slots: calls and slots it would like beyond them.
        retry_after_s: the longest wait that 429s have asked for, from now.
        leaving: gives everything back and is heard of no more.
    """

    member: str
    writer: str
    endpoint: str
    limits: Limits
    round: int
    number: int
    outcomes: Outcomes = NOTHING
    in_flight: int = 0
    slots: int = 0
    requests: int = 0
    tokens: int = 0
    nano_usd: int = 0
    waiting: int = 0
    first_tokens: int = 0
    first_nano: int = 0
    call_tokens: int = 0
    call_nano: int = 0
    ahead: int = 0
    ahead_slots: int = 0
    retry_after_s: float = 0.0
    leaving: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What a member gets beyond what it keeps.

    Attributes:
        share: calls at once it must come down to (and may still go up to).
        metered: money is limited at all.
        wait_s: asking again for what was not granted makes no sense before; `reason` names what lacked.
        pause_s: nothing may start for so long.
        stop: the first waiting call cannot be afforded, nor will be.
        replaced: another incarnation of this member has registered.
    """

    slots: int = 0
    share: int = 0
    requests: int = 0
    tokens: int = 0
    nano_usd: int = 0
    metered: bool = False
    wait_s: float = 0.0
    reason: Reason = ""
    pause_s: float = 0.0
    stop: BudgetReached | None = None
    replaced: bool = False


NO_GRANT = Grant()


def to_nano(usd: float) -> int:
    return round(usd * NANO)


def fair_shares(total: int, wants: Mapping[str, int], first: Sequence[str]) -> dict[str, int]:
    """Integer max-min fair division: nobody gets more than it wants, nobody could get more without one with less.

    Args:
        total: units there are.
        wants: units by name.
        first: all names; units that do not divide evenly go in this order.

    Returns:
        Units by name; nobody's exceed ceil(total / those who want some) unless others want less.
    """
    shares = dict.fromkeys(wants, 0)
    unmet = [name for name in first if wants[name] > 0]
    while total and unmet:
        level = total // len(unmet)
        for name in unmet[: len(unmet) if level else total]:
            units = min(max(level, 1), wants[name] - shares[name])
            shares[name] += units
            total -= units
        unmet = [name for name in unmet if shares[name] < wants[name]]
    return shares


class Bucket:
    """A token bucket that holds at most a second's worth, or one call. What members keep counts as still inside."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_s = per_minute / 60
        self.burst = self.level = max(1.0, self.per_s)
        self.at = now

    def refill(self, now: float, outside: float) -> None:
        self.level = min(self.level + (now - self.at) * self.per_s, self.burst - outside)
        self.at = now

    def seconds_until(self, level: float) -> float:
        return max(0.0, (level - self.level) / self.per_s)


class Place:
    """One endpoint: how many calls at once it takes at the moment, and its buckets."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.allowed = float(limits.concurrency)
        self.share = 0.0  # moving average of the share of calls that were answered 429
        self.seen = self.limited = 0
        self.window_at = self.retry_at = self.paused_until = now
        self.fill(now)

    def fill(self, now: float) -> None:
        per_minute = (self.limits.requests_per_minute, self.limits.tokens_per_minute)
        self.requests, self.tokens = (Bucket(rate, now) if rate is not None else None for rate in per_minute)

    def adopt(self, limits: Limits, now: float) -> None:
        """Other limits for the same endpoint; what was learned about it stays."""
        if limits != self.limits:
            self.allowed = max(1.0, self.allowed * limits.concurrency / self.limits.concurrency)
            self.limits = limits
            self.fill(now)

    def observe(self, answered: int, limited: int, retry_after_s: float, now: float) -> None:
        """Counts outcomes; at the end of a window adapts `allowed` to them."""
        if self.seen == 0:
            self.window_at = now
        self.seen += answered + limited
        self.limited += limited
        if limited:
            self.retry_at = max(self.retry_at, now + min(retry_after_s, MOST_RETRY_AFTER_S))
        if self.seen < WINDOW_OUTCOMES or now - self.window_at < WINDOW_S:
            return
        share = self.limited / self.seen
        self.share += GAIN * (share - self.share)
        if self.limited:
            self.allowed = max(1.0, self.allowed * (1 - self.share / 2))
        if share <= STRAY:
            step = max(1.0, self.limits.concurrency / 20)
            self.allowed = min(float(self.limits.concurrency), self.allowed + step)
        if share >= 0.5:
            self.paused_until = max(self.paused_until, self.retry_at)
        self.seen = self.limited = 0


@dataclass(slots=True)
class Member:
    """What the limiter believes of one member."""

    name: str
    writer: str
    endpoint: str
    round: int
    heard: float
    number: int = 0
    grant: Grant = NO_GRANT
    outcomes: Outcomes = NOTHING
    slots: int = 0
    in_flight: int = 0
    want: int = 0  # slots it could use now
    requests: int = 0  # unused
    tokens: int = 0
    ahead_requests: int = 0  # of those, not for calls that start at once
    ahead_tokens: int = 0
    nano_usd: int = 0
    first_tokens: int = 0
    first_nano: int = 0
    waits_for: Reason = ""
    since: float = math.inf  # it waits with nothing granted
    asks_by: float = 0.0  # one that waits and has not asked by then does not wait any more

    @property
    def holds(self) -> bool:
        return bool(self.slots or self.requests or self.tokens or self.nano_usd)
