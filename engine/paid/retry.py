"""When to ask again, when to give a row up, and when to stop the run. Pure but for the breaker's clock.

Backoff is full jitter (Brooker 2015, "Exponential Backoff And Jitter"), never shorter than the server asked for.
It knows nothing of ledgers, limits or what the calls are for.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Literal

from engine.errors import BudgetReached, EnvironmentProblem, IterselectError

BASE_S, LONGEST_S = 0.5, 60.0
LONGEST_RETRY_AFTER_S = 600.0
NEVER_ANSWERED_S = 60.0  # an endpoint that never answered is more likely a wrong address than one that comes back
BREAKER_FAILURES = 20  # in a row, without one answer between them

Outcome = Literal["limited", "again", "row", "run"]
FLAGGED = ("flagged", "moderation", "content_policy", "content_filter", "content filter", "content policy")


@dataclass(frozen=True)
class Failure:
    """One attempt without an answer.

    Attributes:
        what: "limited" (429: wait), "again" (may work next time), "row" (this request never will), "run" (none will).
        code: short stable word, such as "http_500", "timeout", "content_filter".
        message: the endpoint's own words, cut.
        retry_after_s: how long the endpoint asked to wait, None when it did not say.
        maybe_paid: the request may have been worked on and charged.
    """

    what: Outcome
    code: str
    message: str
    retry_after_s: float | None = None
    maybe_paid: bool = False

    def text(self, attempts: int) -> str:
        """What the error column says."""
        return f"{self.code}: {self.message} ({attempts} attempt{'s' if attempts != 1 else ''})"


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the server asks to wait: `retry-after-ms`, or `Retry-After` as seconds or as an HTTP date (RFC 9110).

    Args:
        headers: of the response, case-insensitive.
        now: Unix time, for dates; default: the clock.

    Returns:
        Seconds in [0, 600], None when there is no usable header.
    """
    value = _seconds(headers.get("retry-after-ms"))
    seconds = None if value is None else value / 1000
    if seconds is None:
        text = headers.get("retry-after")
        seconds = _seconds(text)
        if seconds is None and text:
            try:
                date = email.utils.parsedate_to_datetime(text)
            except ValueError:
                return None
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            seconds = date.timestamp() - (time.time() if now is None else now)
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and value == value and abs(value) != float("inf") else None


def backoff_s(attempt: int, asked_s: float | None, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds before attempt number `attempt` (the first retry is 1).

    Without a wish of the server: uniform in [0, min(60, 0.5 * 2^attempt)]. With one: that, and up to a tenth more, so
    that those who were told the same do not come back together.
    """
    if asked_s is not None:
        return asked_s + uniform(0.0, 0.1 * asked_s + 0.05)
    return uniform(0.0, min(LONGEST_S, BASE_S * 2.0**attempt))


def classify(status: int, body: Any, headers: Mapping[str, str]) -> Failure:
    """What a response other than 200 means.

    Args:
        status: HTTP status.
        body: parsed JSON, or text.
        headers: of the response.
    """
    error = body.get("error", body) if isinstance(body, dict) else body
    code = str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
    message = str(error.get("message") or "") if isinstance(error, dict) else str(error or "")
    message = " ".join(message.split())[:300] or f"HTTP {status}"
    if code in ("insufficient_quota", "billing_hard_limit_reached") or status == 402:
        return Failure("run", "insufficient_quota", message)
    if status == 429:
        return Failure("limited", "http_429", message, retry_after_s(headers))
    if status < 500 and any(word in f"{code} {message}".lower() for word in FLAGGED):
        return Failure("row", "content_filter", message)
    if status == 401:  # the endpoint's own words may repeat part of the key
        return Failure("run", "http_401", "the key was not accepted")
    if status in (403, 404, 405) or status < 400:  # a redirect: base_url is not quite the endpoint
        return Failure("run", f"http_{status}", message)
    if status in (408, 409, 425) or status >= 500:
        return Failure("again", f"http_{status}", message, retry_after_s(headers))
    return Failure("row", f"http_{status}", message)


def run_error(failure: Failure, endpoint: str, key_name: str | None) -> IterselectError:
    """The error that stops the run when no request can succeed."""
    if failure.code == "insufficient_quota":
        return BudgetReached(
            f"{endpoint} says that the account has no quota left: {failure.message}",
            fix="add credit and run the same command again: answered calls are kept",
            code="E512",
        )
    fixes = {
        "http_401": f"check the key in ${key_name}" if key_name else "set api_key_env to the variable with the key",
        "http_403": f"check what the key in ${key_name} may use" if key_name else "set api_key_env",
        "http_404": "check model and base_url (it usually ends in /v1)",
        "http_405": "check base_url (it usually ends in /v1)",
    }
    if failure.code.startswith("http_3"):
        fixes[failure.code] = "check base_url: it redirects (http instead of https?)"
    return EnvironmentProblem(
        f"{endpoint} refuses the calls ({failure.code}): {failure.message}",
        fix=fixes.get(failure.code, "start the endpoint, then run the same command again: answered calls are kept"),
        code="E360",
    )


class Breaker:
    """Stops asking an endpoint that is down, and looks again from time to time.

    After 20 failures in a row without an answer every call waits; one at a time is let through, at growing intervals.

    Args:
        give_up_after_s: without any answer for so long the run stops.
        clock: seconds that only grow.
    """

    def __init__(self, give_up_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.give_up_after_s, self.clock = give_up_after_s, clock
        self.failures, self.waits = 0, 0
        self.ever_answered = False
        self.silent_since, self.next_probe = 0.0, 0.0
        self.limited_since: float | None = None
        self.gave_up: EnvironmentProblem | None = None

    async def wait(self) -> None:
        """Returns when a call may be made.

        Raises:
            EnvironmentProblem: E361, as `failed` did.
        """
        while self.failures >= BREAKER_FAILURES:
            if self.gave_up is not None:
                raise self.gave_up
            now = self.clock()
            if now >= self.next_probe:
                self.waits += 1
                self.next_probe = now + min(LONGEST_S, BASE_S * 2.0**self.waits)
                return  # this one is the probe
            await asyncio.sleep(min(self.next_probe - now, 1.0))

    def ok(self) -> None:
        self.ever_answered = True
        self.failures, self.waits, self.limited_since = 0, 0, None

    def limited(self, failure: Failure, endpoint: str) -> None:
        """Counts a 429.

        Raises:
            EnvironmentProblem: E363, it says nothing else for `give_up_after_s`.
        """
        now = self.clock()
        self.limited_since = now if self.limited_since is None else self.limited_since
        if now - self.limited_since >= self.give_up_after_s:
            raise EnvironmentProblem(
                f"{endpoint} has only said 429 for {now - self.limited_since:.0f} s",
                why=f"its own words: {failure.message}",
                fix="perhaps a limit per day: run the same command again later, answered calls are kept; or lower "
                "requests_per_minute, tokens_per_minute or concurrency",
                code="E363",
            )

    def failed(self, failure: Failure, endpoint: str) -> None:
        """Counts a failure.

        Raises:
            EnvironmentProblem: E361, nothing was answered for `give_up_after_s`, or for a minute since the start.
        """
        if self.failures == 0:
            self.silent_since = self.clock()
        self.failures += 1
        silent_s = self.clock() - self.silent_since
        patience_s = self.give_up_after_s if self.ever_answered else min(self.give_up_after_s, NEVER_ANSWERED_S)
        if self.failures >= BREAKER_FAILURES and silent_s >= patience_s:
            self.gave_up = EnvironmentProblem(
                f"{endpoint} has not answered for {silent_s:.0f} s ({self.failures} failures in a row)",
                why=f"the last one: {failure.code}: {failure.message}",
                fix="check base_url; when it is up run the same command again: answered calls are kept",
                code="E361",
            )
            raise self.gave_up
