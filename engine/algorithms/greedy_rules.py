"""What is kept per row by a greedy selection, and how a pick changes it: k-center, herding, and graph-cut bins.

- k-center, farthest point first (Gonzalez 1985; Sener and Savarese 2018): the next pick is the row whose largest
  similarity to the seeds and picks is smallest.
- Herding (Welling 2009; Chen, Welling and Smola 2010): the next pick x minimises |mean(D) - mean(S + x)|.
- Graph-cut bins (Dataset Quantization, Zhou et al. 2023, arXiv 2308.10524): bin after bin, the next pick maximises
  sum_D x.p - 2 sum_S x.p, where D are the rows no earlier bin took and S the bin's picks. Linear in x: no N x N matrix.

Scores are integers from exact similarities (`exact`).
"""

# Shape letters: N rows of a shard, D dimensions, S integers kept per row, P picks, T rows of a tile.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.algorithms.exact import BLOCK_COLUMNS, LARGEST, ONE, similarity_to_sum

if TYPE_CHECKING:
    import torch

NO_WORD = int(np.iinfo(np.uint64).max)


class Rule(Protocol):
    """A greedy method: what is kept per row, and how picks change it."""

    @property
    def width(self) -> int:
        """Rows of a frontier: many where picks change scores slowly, so that many picks are made among them."""
        ...

    @property
    def drift(self) -> int:
        """Most that one pick can raise the score of another row."""
        ...

    @property
    def guesses(self) -> int:
        """Most picks of a block that are not certain; a check costs a pass over the rows near the frontier."""
        ...

    @property
    def forgets_picked(self) -> bool:
        """Whether nothing is asked of a row once it is picked, so that it need not be kept up to date."""
        ...

    def start(self, x_ND: np.ndarray) -> np.ndarray:
        """(S, N) int64 before any pick."""
        ...

    def add(self, state_ST: np.ndarray, similar_TP: torch.Tensor) -> None:
        """Takes P picks into account, in place. Similarities are whole numbers in units of 2^-32."""
        ...

    def scores(self, state_SN: np.ndarray, picked: int) -> np.ndarray:
        """(N,) int64, the larger the better, after `picked` picks."""
        ...

    def pause(self, picked: int) -> int:
        """The number of picks, above `picked`, at which `fold` is called."""
        ...

    def fold(self, state_SN: np.ndarray) -> None: ...


@dataclass(frozen=True)
class KCenter:
    """Keeps the largest similarity to a seed or pick; -2 before there is any."""

    width: int = 1024
    drift: int = 0
    guesses: int = 0
    forgets_picked: bool = False

    def start(self, x_ND: np.ndarray) -> np.ndarray:
        return np.full((1, len(x_ND)), -2 * ONE)

    def add(self, state_ST: np.ndarray, similar_TP: torch.Tensor) -> None:
        np.maximum(state_ST[0], similar_TP.amax(dim=1).numpy().astype(np.int64), out=state_ST[0])

    def scores(self, state_SN: np.ndarray, picked: int) -> np.ndarray:
        return -state_SN[0]

    def pause(self, picked: int) -> int:
        return NO_WORD

    def fold(self, state_SN: np.ndarray) -> None:
        """Never called."""


@dataclass(frozen=True)
class Herding:
    """Keeps x.mean(D), the sum of x.s over the picks, and x.x.

    |mean(D) - (sum_S + x) / (n + 1)|^2 is smallest where 2 (n + 1) x.mean(D) - 2 x.sum_S - x.x is largest.

    Args:
        total_D: (D,) float64, the sum of all rows of the pool.
        rows: how many those are.
    """

    total_D: np.ndarray
    rows: int
    width: int = 64
    drift: int = int(4 * LARGEST * ONE)
    guesses: int = 0
    forgets_picked: bool = False

    def start(self, x_ND: np.ndarray) -> np.ndarray:
        own_N = np.empty(len(x_ND), dtype=np.int64)
        for start in range(0, len(x_ND), BLOCK_COLUMNS):
            piece = x_ND[start : start + BLOCK_COLUMNS].astype(np.float64)
            own_N[start : start + BLOCK_COLUMNS] = np.rint((piece * piece).sum(axis=1) * ONE)
        mean_N = similarity_to_sum(x_ND, self.total_D, self.rows)
        return np.stack([mean_N, np.zeros_like(mean_N), own_N])

    def add(self, state_ST: np.ndarray, similar_TP: torch.Tensor) -> None:
        state_ST[1] += similar_TP.sum(dim=1).numpy().astype(np.int64)

    def scores(self, state_SN: np.ndarray, picked: int) -> np.ndarray:
        return 2 * (picked + 1) * state_SN[0] - 2 * state_SN[1] - state_SN[2]

    def pause(self, picked: int) -> int:
        return NO_WORD

    def fold(self, state_SN: np.ndarray) -> None:
        """Never called."""


@dataclass(frozen=True)
class GraphCut:
    """Keeps sum_D x.p and sum_S x.p of the bin being filled.

    Args:
        total_D: (D,) float64, the sum of all rows of the pool.
        bin_rows: picks per bin.
    """

    total_D: np.ndarray
    bin_rows: int
    width: int = 512
    drift: int = int(2 * LARGEST * ONE)
    guesses: int = 64
    forgets_picked: bool = True

    def start(self, x_ND: np.ndarray) -> np.ndarray:
        left_N = similarity_to_sum(x_ND, self.total_D)
        return np.stack([left_N, np.zeros_like(left_N)])

    def add(self, state_ST: np.ndarray, similar_TP: torch.Tensor) -> None:
        state_ST[1] += similar_TP.sum(dim=1).numpy().astype(np.int64)

    def scores(self, state_SN: np.ndarray, picked: int) -> np.ndarray:
        return state_SN[0] - 2 * state_SN[1]

    def pause(self, picked: int) -> int:
        return (picked // self.bin_rows + 1) * self.bin_rows

    def fold(self, state_SN: np.ndarray) -> None:
        """The bin is full: its rows leave D."""
        state_SN[0] -= state_SN[1]
        state_SN[1] = 0
