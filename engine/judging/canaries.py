"""Canaries: pairs whose verdict nobody doubts, mixed in among the paid calls to see whether the judge still judges.

A judge that is wrong about them has drifted, was swapped behind its name, or obeys the texts. Half of the good answers
are longer than the bad ones and half shorter, so that a judge that goes by length is found out. Which rows bring
which canary along, and on which side its good answer is shown, follows from the row's id and the run's seed. It knows
nothing of judges or prompts.

Legend: N rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np

from engine.schema import seeded_hash


@dataclass(frozen=True)
class Canary:
    """A question and two answers.

    Attributes:
        id: short name.
        prompt: the user's message.
        good, bad: the answer that must win, and the other one.
        good_first: show the good answer as A.
    """

    id: str
    prompt: str
    good: str
    bad: str
    good_first: bool = True


@cache
def load_canaries() -> tuple[Canary, ...]:
    """All canaries, in the order of the file, each with `good_first`."""
    lines = (files("engine.judging") / "canaries.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Canary(**json.loads(line)) for line in lines)


def canaries_for(words_N: np.ndarray, share: float, seed: int) -> list[Canary | None]:
    """The canary that each row brings along.

    Args:
        words_N: (N,) uint64 from `engine.schema.id_words`.
        share: probability that a row brings one, in [0, 1].
        seed: of the run.

    Returns:
        N entries, None for a row without; the same for any order and split of the rows. A row that brings one at a
        share brings the same one at every larger share.
    """
    canaries = load_canaries()
    uniform_N = (seeded_hash(words_N, seed, "canary") >> np.uint64(11)) * 2.0**-53
    which_N = seeded_hash(words_N, seed, "canary/which") % np.uint64(len(canaries))
    first_N = seeded_hash(words_N, seed, "canary/side") >> np.uint64(63)
    drawn: list[Canary | None] = [None] * len(words_N)
    for row in np.flatnonzero(uniform_N < share):
        drawn[row] = replace(canaries[int(which_N[row])], good_first=bool(first_N[row]))
    return drawn


def canary_for(id_word: int, share: float, seed: int) -> Canary | None:
    """`canaries_for` of one row."""
    return canaries_for(np.array([id_word], np.uint64), share, seed)[0]
