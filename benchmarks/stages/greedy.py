"""Greedy selection by vectors beside the published ways: `benchmarks.greedy`, filter and k-center. CPU seconds."""

from __future__ import annotations

import argparse

from benchmarks import greedy
from benchmarks.figures import Figure, Measured, Scope


def measure(scope: Scope) -> Measured:
    """A tenth of the rows for the filter, a hundredth for k-center."""
    rows = scope.rows or 20_000
    greedy.warm_up()
    figures, facts = [], {}
    for what, picks in (("filter", rows // 10), ("kcenter", rows // 100)):
        arguments = argparse.Namespace(rows=rows, num=picks, matrix_rows=None, packages=None)
        found = facts[what] = greedy.COMMANDS[what](arguments, scope.folder / what)
        figures += [
            Figure(f"{what} faster than {peer} by", ratio, "x", "higher") for peer, ratio in found["faster_by"].items()
        ]
    return Measured(figures, facts)
