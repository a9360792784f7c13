"""What a stage uses while it works on a part, counted where it is known and added up where the part is committed.

A stage says `count_tokens(n)` in the thread that computes the part; whoever runs the part opens `counted()` around
it. Outside of it nothing is counted. It knows nothing of steps or of who reads the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Work:
    """tokens: that a model read or wrote, padding left out."""

    tokens: int = 0


_current: ContextVar[Work | None] = ContextVar("work", default=None)


@contextmanager
def counted() -> Iterator[Work]:
    """What is counted in this context, until the block ends. Blocks of several threads do not mix."""
    work = Work()
    token = _current.set(work)
    try:
        yield work
    finally:
        _current.reset(token)


def count_tokens(number: int) -> None:
    """Adds tokens that a model has read or written for the part in work."""
    work = _current.get()
    if work is not None:
        work.tokens += int(number)
