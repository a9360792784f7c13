"""When to ask again: Retry-After in all its forms, backoff, what each status means, and the breaker."""

import asyncio
import email.utils

import pytest

from engine.errors import BudgetReached, EnvironmentProblem
from engine.paid.retry import Breaker, Failure, backoff_s, classify, retry_after_s, run_error

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": email.utils.formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": email.utils.formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "99999"}, 600.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


def test_backoff_is_full_jitter_and_never_shorter_than_asked() -> None:
    for attempt in range(1, 12):
        ceiling = min(60.0, 0.5 * 2**attempt)
        assert backoff_s(attempt, None, lambda low, high: high) == ceiling
        assert backoff_s(attempt, None, lambda low, high: low) == 0.0
        assert backoff_s(attempt, 3.0) >= 3.0
    assert backoff_s(1, 10.0, lambda low, high: high) == pytest.approx(11.05)


def error(message: str = "no", **fields: str) -> dict[str, dict[str, str]]:
    return {"error": {"message": message, **fields}}


@pytest.mark.parametrize(
    ("status", "body", "what", "code"),
    [
        (429, error(code="rate_limit_exceeded"), "limited", "http_429"),
        (429, error(code="insufficient_quota"), "run", "insufficient_quota"),
        (429, error(type="insufficient_quota"), "run", "insufficient_quota"),
        (402, error(), "run", "insufficient_quota"),
        (401, error("Incorrect API key provided: sk-abcd****wxyz"), "run", "http_401"),
        (403, error(), "run", "http_403"),
        (404, error(code="model_not_found"), "run", "http_404"),
        (400, error(code="context_length_exceeded"), "row", "http_400"),
        (400, error(code="content_filter"), "row", "content_filter"),
        (403, error(code="content_policy_violation"), "row", "content_filter"),
        (413, error(), "row", "http_413"),
        (422, {"detail": "no"}, "row", "http_422"),
        (408, "", "again", "http_408"),
        (409, "", "again", "http_409"),
        (500, "<html>", "again", "http_500"),
        (503, error(), "again", "http_503"),
        (529, None, "again", "http_529"),
    ],
)
def test_classes_of_failure(status: int, body: object, what: str, code: str) -> None:
    failure = classify(status, body, {"retry-after": "2"})
    assert (failure.what, failure.code) == (what, code)
    assert failure.message
    assert not failure.maybe_paid
    assert failure.retry_after_s == (2.0 if what in ("limited", "again") else None)


def test_the_endpoints_words_about_the_key_are_not_repeated() -> None:
    failure = classify(401, error("Incorrect API key provided: sk-canary-123"), {})
    assert "canary" not in str(run_error(failure, "http://x/v1", "MY_KEY"))
    assert "$MY_KEY" in str(run_error(failure, "http://x/v1", "MY_KEY"))


def test_no_quota_is_a_budget_and_the_rest_is_the_environment() -> None:
    assert isinstance(run_error(classify(429, error(code="insufficient_quota"), {}), "u", None), BudgetReached)
    assert isinstance(run_error(classify(404, error(), {}), "u", None), EnvironmentProblem)


def test_the_breaker_waits_lets_single_calls_through_and_gives_up() -> None:
    now = [0.0]
    breaker = Breaker(30.0, lambda: now[0])
    failure = Failure("again", "http_500", "down")

    async def wait(seconds: float) -> bool:
        """Whether a call gets through within some real time."""
        try:
            await asyncio.wait_for(breaker.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def scenario() -> None:
        for _ in range(19):
            breaker.failed(failure, "u")
        assert await wait(0.1)
        breaker.failed(failure, "u")
        assert await wait(0.1)  # the first probe
        assert not await wait(0.1)  # nobody else
        now[0] = 5.0
        assert await wait(0.1)  # the next probe
        breaker.ok()
        assert await wait(0.1) and await wait(0.1)
        now[0] = 1000.0  # a long silence without calls is no failure
        for _ in range(25):
            breaker.failed(failure, "u")
        now[0] = 1031.0
        with pytest.raises(EnvironmentProblem, match="has not answered for 31 s"):
            breaker.failed(failure, "u")

    asyncio.run(scenario())
