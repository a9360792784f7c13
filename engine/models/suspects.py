"""Which row kills the engine? Bisection over the rows that were in work when it died.

A row that was in work at two deaths is a suspect. Suspects are tried in halves, with nothing beside them: the half that
dies is halved again, the half that survives is done. One that dies alone, twice, is the culprit. A single death for
another reason costs a repetition and convicts nobody. It knows nothing of engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

J = TypeVar("J", bound=Hashable)


class Suspects(Generic[J]):
    """The state of the search; jobs are compared by equality and keep their order."""

    def __init__(self) -> None:
        self.deaths: Counter[J] = Counter()
        self.alone: Counter[J] = Counter()  # deaths with nothing beside it
        self.trial: list[J] = []  # may run now, alone
        self.rest: list[J] = []  # to be tried when the trial survives

    def may_run(self, job: J) -> bool:
        return not self.trial or job in self.trial

    def died(self, running: Sequence[J]) -> J | None:
        """The engine died with these in work.

        Returns:
            The culprit when it is found, None otherwise.
        """
        self.deaths.update(running)
        if len(running) == 1:
            self.alone.update(running)
            if self.alone[running[0]] >= 2:
                self.left(running[0])
                self.trial, self.rest = [], []
                return running[0]
        suspects = self.trial or [job for job in running if self.deaths[job] >= 2]
        self.trial, self.rest = _halves(suspects)  # what was to be tried later is free again: its guilt was a guess
        return None

    def left(self, job: J) -> None:
        """A job has an outcome, good or bad, and is gone."""
        self.deaths.pop(job, None)
        self.alone.pop(job, None)
        for group in (self.trial, self.rest):
            if job in group:
                group.remove(job)
        if not self.trial:
            self.trial, self.rest = _halves(self.rest)


def _halves(jobs: list[J]) -> tuple[list[J], list[J]]:
    middle = (len(jobs) + 1) // 2
    return jobs[:middle], jobs[middle:]
