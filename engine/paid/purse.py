"""What one member holds of the run's limits, what waits for it, and what it has to report: bookkeeping only.

Starting a call takes from what was granted before; the next ask says what is kept and what is wanted. No clock and no
input or output: engine/paid/lease_client.py has both, engine/paid/limits.py grants. It does not know what a call is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from engine.paid.flow import NOTHING, Ask, Grant, Limits, Outcomes

HEARTBEAT_S = 5.0  # of a member that holds something and has nothing to say
REPORT_S = 0.25  # outcomes wait so long for an ask to travel with
GAP_S = 0.01  # between two asks
AHEAD_S = 0.2  # of the recent use is asked for beyond what waits
MOST_AHEAD = 10_000

Outcome = Literal["ok", "limited", "failed"]


@dataclass(eq=False, slots=True)
class Permit:
    """Leave to make one call, for as much as was reserved."""

    tokens: int
    nano_usd: int
    released: bool = False


class Purse:
    """What a member holds, what waits for it, and what it has to report. Times are the caller's, in seconds.

    Args:
        member, writer, endpoint, limits: as in `Limiter.register`.
    """

    def __init__(self, member: str, writer: str, endpoint: str, limits: Limits) -> None:
        self.member, self.writer, self.endpoint, self.limits = member, writer, endpoint, limits
        self.round = 0
        self.by_request = limits.requests_per_minute is not None
        self.by_token = limits.tokens_per_minute is not None
        self.metered = True
        self.slots = self.share = self.in_flight = 0
        self.requests = self.tokens = self.spare = 0  # granted and unused; spare: nano-dollars
        self.reserved = 0  # nano-dollars of the calls that run
        self.low_requests = self.low_tokens = self.low_spare = 0  # below these more is asked for
        self.queue: deque[tuple[int, int, Any]] = deque()  # tokens, nano-dollars, whoever waits
        self.queued_tokens = self.queued_nano = 0
        self.started = self.started_tokens = self.unused_tokens = 0
        self.counts = dict.fromkeys(("ok", "limited", "failed"), 0)
        self.tokens_in = self.tokens_out = self.spent = 0
        self.retry_at = self.paused_until = 0.0
        self.reported = NOTHING
        self.number, self.asked_at, self.not_before, self.reason = 0, -math.inf, 0.0, ""
        self.peak = 0  # calls at once, lately
        self.use_at, self.use_started, self.rate = -math.inf, 0, 0.0  # calls started a second, lately
        self.call_tokens = self.call_nano = 0  # of a recent call

    def fits(self, tokens: int, nano: int) -> bool:
        """Whether a call may start now, were it the first in the queue and nothing paused."""
        return (
            self.in_flight < self.slots
            and self.in_flight < self.share
            and (not self.by_request or self.requests > 0)
            and (not self.by_token or self.tokens >= tokens)
            and (not self.metered or self.spare >= nano)
        )

    def take(self, tokens: int, nano: int) -> Permit:
        self.in_flight += 1
        if self.in_flight > self.peak:
            self.peak = self.in_flight
        if self.by_request:
            self.requests -= 1
        if self.by_token:
            self.tokens -= tokens
        if self.metered:
            self.spare -= nano
        self.reserved += nano
        self.started += 1
        self.started_tokens += tokens
        self.call_tokens, self.call_nano = tokens, nano
        return Permit(tokens, nano)

    def give(self, permit: Permit, outcome: Outcome, tokens_in: int, tokens_out: int, nano: int) -> None:
        """Ends a call. What it cost less than reserved is there for the next one at once."""
        permit.released = True
        self.in_flight -= 1
        self.reserved -= permit.nano_usd
        if self.metered:
            self.spare += max(0, permit.nano_usd - nano)
        self.unused_tokens += permit.tokens - tokens_in - tokens_out
        self.counts[outcome] += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.spent += nano

    def wait(self, tokens: int, nano: int, who: Any) -> None:
        self.queue.append((tokens, nano, who))
        self.queued_tokens += tokens
        self.queued_nano += nano

    def starters(self, now: float, gone: Callable[[Any], bool]) -> Iterator[tuple[Permit, Any]]:
        """Starts what waits, first come first served, as far as the purse goes. `gone`: does not wait any more."""
        while self.queue and now >= self.paused_until:
            tokens, nano, who = self.queue[0]
            if not gone(who) and not self.fits(tokens, nano):
                return
            self._dequeue()
            if not gone(who):
                yield self.take(tokens, nano), who

    def drain(self) -> list[Any]:
        """Empties the queue; those who waited."""
        waited = [who for _, _, who in self.queue]
        self.queue.clear()
        self.queued_tokens = self.queued_nano = 0
        return waited

    def _dequeue(self) -> None:
        tokens, nano, _ = self.queue.popleft()
        self.queued_tokens -= tokens
        self.queued_nano -= nano

    @property
    def low(self) -> bool:
        return (
            (self.by_request and self.requests < self.low_requests)
            or (self.by_token and self.tokens < self.low_tokens)
            or (self.metered and self.spare < self.low_spare)
        )

    @property
    def holds(self) -> bool:
        return bool(self.slots or self.requests or self.tokens or self.spare or self.reserved)

    def due(self, now: float) -> float:
        """When to ask next; infinity while there is no reason to."""
        gap = self.asked_at + GAP_S
        blocked = max(gap, self.not_before)
        times = [math.inf]
        if self.queue:
            room = self.in_flight < min(self.slots, self.share)
            times.append(gap if room and self.reason == "slots" else blocked)  # it lacks something new
        elif self.low:
            times.append(blocked if self.reason != "slots" else gap)
        if self.in_flight < self.slots and self.slots > self.share:
            times.append(gap)  # others lack what this member does not use
        if self.holds:
            times.append(self.asked_at + HEARTBEAT_S)
        if self._outcomes() != self.reported or (not self.queue and self._unused()):
            times.append(self.asked_at + REPORT_S)
        return min(times)

    def _unused(self) -> bool:
        return self.in_flight < self.slots or bool(self.requests or self.tokens or self.spare)

    def _outcomes(self) -> Outcomes:
        return Outcomes(
            started=self.started,
            started_tokens=self.started_tokens,
            unused_tokens=self.unused_tokens,
            nano_usd=self.spent,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            **self.counts,
        )

    def _watch_use(self, now: float) -> int:
        """Calls to ask for ahead: what is used in AHEAD_S, judged by the last quarter of a second or so."""
        elapsed = now - self.use_at
        rate = (self.started - self.use_started) / max(elapsed, REPORT_S / 4)
        if elapsed >= REPORT_S:
            self.rate, self.use_at, self.use_started = rate, now, self.started
        return min(MOST_AHEAD, int(max(rate, self.rate) * AHEAD_S))

    def ask(self, now: float) -> Ask:
        """The next message. A member whose first call cannot start gives back all that it does not use: two that wait
        for each other's rest would wait for ever."""
        fresh_peak = now - self.use_at >= REPORT_S
        ahead = self._watch_use(now)
        ahead_slots = math.ceil(self.peak / 4) if ahead or self.queue else 0
        if self.queue:
            keep = self.in_flight
            self.requests = self.tokens = self.spare = 0
            tokens, nano = self.queue[0][:2]
            call_tokens = math.ceil(self.queued_tokens / len(self.queue))
            call_nano = math.ceil(self.queued_nano / len(self.queue))
        else:
            keep = max(self.in_flight, min(self.share, self.peak + ahead_slots))
            tokens = nano = 0
            call_tokens, call_nano = self.call_tokens, self.call_nano
            self.requests = min(self.requests, 2 * ahead)
            self.tokens = min(self.tokens, 2 * ahead * call_tokens)
            self.spare = min(self.spare, 2 * ahead * call_nano)
        self.slots = min(self.slots, keep)
        if fresh_peak:
            self.peak = self.in_flight
        self.low_requests = ahead // 2
        self.low_tokens, self.low_spare = self.low_requests * call_tokens, self.low_requests * call_nano
        self.number, self.asked_at, self.reported = self.number + 1, now, self._outcomes()
        return Ask(
            member=self.member,
            writer=self.writer,
            endpoint=self.endpoint,
            limits=self.limits,
            round=self.round,
            number=self.number,
            outcomes=self.reported,
            in_flight=self.in_flight,
            slots=self.slots,
            requests=self.requests,
            tokens=self.tokens,
            nano_usd=self.reserved + self.spare,
            waiting=len(self.queue),
            first_tokens=tokens,
            first_nano=nano,
            call_tokens=call_tokens,
            call_nano=call_nano,
            ahead=max(0, ahead - self._kept_calls(call_tokens, call_nano)),
            ahead_slots=ahead_slots,
            retry_after_s=max(0.0, self.retry_at - now),
        )

    def _kept_calls(self, call_tokens: int, call_nano: int) -> int:
        """Calls that what it keeps is enough for."""
        kept = [self.requests] if self.by_request else []
        kept += [self.tokens // call_tokens] if self.by_token and call_tokens > 0 else []
        kept += [self.spare // call_nano] if self.metered and call_nano > 0 else []
        return min(kept, default=0)

    def apply(self, grant: Grant, now: float) -> None:
        self.metered = grant.metered
        self.slots += grant.slots
        self.share = grant.share
        if self.by_request:
            self.requests += grant.requests
        if self.by_token:
            self.tokens += grant.tokens
        if self.metered:
            self.spare += grant.nano_usd
        self.reason, self.not_before = grant.reason, now + grant.wait_s
        self.paused_until = now + grant.pause_s
