"""How far new data is from the data that something was fitted on. Pure functions on counts of bins or groups.

Two measures over the same K bins, p of the old rows and q of the new ones:

- population stability index, PSI = sum (q - p) ln(q / p); the usual reading is little below 0.1, moderate up to 0.25,
  and large above (Siddiqi, Credit Risk Scorecards, 2006; Yurdakul and Naranjo, J. Risk Model Validation 14(4), 2020);
- Jensen-Shannon distance, the square root of the divergence in bits (Lin 1991), in [0, 1]; CapyMOA and Evidently warn
  from 0.1 by default.

Few rows in many bins differ by chance alone, whatever the usual limits say (Yurdakul and Naranjo), so both are set
beside what samples of these sizes give when nothing has changed. What is within 95 of 100 of them is no drift.
"""

# Shape letters: N rows, K bins.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.compare.measures import decile_edges, divergence

MODERATE_PSI, LARGE_PSI = 0.1, 0.25
LARGE_JS = 0.1
DRAWS = 400


@dataclass(frozen=True)
class Drift:
    """Two distributions compared.

    Attributes:
        psi: population stability index.
        js: Jensen-Shannon distance.
        chance_psi, chance_js: what 95 of 100 samples of these sizes stay below when nothing has changed.
    """

    psi: float
    js: float
    chance_psi: float
    chance_js: float

    @property
    def level(self) -> Literal["none", "moderate", "large"]:
        """The usual reading; "none" for what may be chance."""
        psi = self.psi if self.psi > self.chance_psi else 0.0
        js = self.js if self.js > self.chance_js else 0.0
        if psi > LARGE_PSI:
            return "large"
        return "moderate" if psi > MODERATE_PSI or js > LARGE_JS else "none"


def drift(old_K: np.ndarray, new_K: np.ndarray) -> Drift:
    """Compares counts with each other and with chance: pairs of multinomial samples from both together.

    Args:
        old_K, new_K: (K,) rows per bin, each with at least one row in all.
    """
    used_K = (old_K + new_K) > 0
    old_K, new_K = old_K[used_K], new_K[used_K]
    together_K = (old_K + new_K) / (old_K.sum() + new_K.sum())
    rng = np.random.default_rng(0)
    pairs = zip(*(rng.multinomial(counts_K.sum(), together_K, DRAWS) for counts_K in (old_K, new_K)), strict=True)
    by_chance = np.array([(stability_index(a_K, b_K), distance(a_K, b_K)) for a_K, b_K in pairs])
    chance_psi, chance_js = np.quantile(by_chance, 0.95, axis=0).tolist()
    return Drift(stability_index(old_K, new_K), distance(old_K, new_K), chance_psi, chance_js)


def stability_index(old_K: np.ndarray, new_K: np.ndarray) -> float:
    """PSI, with half a row added to every bin of both (Jeffreys' prior): it has no value for an empty one."""
    p_K, q_K = (old_K + 0.5) / (old_K + 0.5).sum(), (new_K + 0.5) / (new_K + 0.5).sum()
    return float(np.sum((q_K - p_K) * np.log(q_K / p_K)))


def distance(old_K: np.ndarray, new_K: np.ndarray) -> float:
    """Jensen-Shannon distance, base 2."""
    return math.sqrt(divergence(new_K, old_K))


def decile_counts(old_N: np.ndarray, new_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows per tenth of the old values: fewer bins where values repeat.

    Args:
        old_N, new_N: finite numbers, of any lengths from one on.

    Returns:
        Two (K,) int64.
    """
    edges = decile_edges(old_N)
    counts = [np.bincount(np.searchsorted(edges, v, side="left"), minlength=len(edges) + 1) for v in (old_N, new_N)]
    return counts[0], counts[1]


def group_counts(old_N: np.ndarray, new_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows per group number, from 0 on: two (K,) int64."""
    groups = int(max(old_N.max(), new_N.max())) + 1
    return np.bincount(old_N, minlength=groups), np.bincount(new_N, minlength=groups)
