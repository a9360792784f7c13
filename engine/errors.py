"""Errors a user can act on. Each says what happened, where, why and how to fix it, and carries a stable code.

Every class pickles (Ray sends exceptions between processes) and is also a ValueError or RuntimeError, so that
callers who know only the standard library can catch it. `exit_code` is what the command line returns.
"""

from __future__ import annotations


class IterselectError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: one sentence saying what is wrong, naming the offending value.
        where: `file:line:column`, a row id, or a step name; empty when it does not apply.
        why: the reason, when `what` does not already give it.
        fix: what the user can do about it.
        code: stable identifier such as "E210"; defaults to the class's own.
    """

    code = "E100"
    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "", code: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.fix = what, where, why, fix
        self.code = code or type(self).code

    def __reduce__(self):
        return (_rebuild, (type(self), self.what, self.where, self.why, self.fix, self.code))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [f"{head} [{self.code}]"]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


def _rebuild(cls: type[IterselectError], what: str, where: str, why: str, fix: str, code: str) -> IterselectError:
    return cls(what, where=where, why=why, fix=fix, code=code)


class StepError(IterselectError, RuntimeError):
    """A stage broke its contract or failed in a way that no retry mends."""

    code = "E110"


class ConfigError(IterselectError, ValueError):
    """The configuration or the command line is wrong."""

    code = "E200"
    exit_code = 2


class EnvironmentProblem(IterselectError, RuntimeError):
    """The machine or the cluster lacks something: a package, a model, memory, disk, a running Ray."""

    code = "E300"
    exit_code = 3


class DataError(IterselectError, ValueError):
    """The input data cannot be used."""

    code = "E400"
    exit_code = 4


class BudgetReached(IterselectError, RuntimeError):
    """A money or time limit was reached; the run is saved and can be continued."""

    code = "E500"
    exit_code = 5


class TooManyFailures(IterselectError, RuntimeError):
    """More rows failed in a step than `max_failed` allows."""

    code = "E600"
    exit_code = 6
