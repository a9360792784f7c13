"""Similarities of a shard's rows to single vectors in float32, kept for the vectors asked about last.

What facility location asks about a vector is how much more similar the shard's rows are to it than to the picks so far.
The products for that are most of its cost, and the same vectors are asked about pick after pick: their columns of the
similarity matrix are kept, as many as a bound of bytes allows. Rounding never makes an answer too small.
"""

# Shape letters: N rows of the shard, D dimensions, B vectors asked about, C columns kept, T rows of a tile, M vectors.

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from engine.algorithms.exact import LARGEST
from engine.algorithms.similarity import float32_tiles

if TYPE_CHECKING:
    import torch

COLUMN_BYTES = 2 << 30  # kept by all shards of a selection together
SCAN_ROWS = 512  # vectors asked about at a time in a pass over all
MADE_TILE, KEPT_TILE = 1024, 4096  # rows of a tile: of wide blocks of products, of few columns


def columns_for(rows: int) -> int:
    """How many columns are kept of a matrix of so many rows, which may lie in several shards."""
    return max(1, COLUMN_BYTES // (4 * max(1, rows)))


class Columns:
    """The columns of one shard.

    A block of `SCAN_ROWS` vectors is taken for a pass over all, whose columns are kept only while there is room; others
    take the place of the columns that were not asked about for longest.

    Args:
        x_ND: (N, D) float16 unit vectors.
        most: C, the most columns to keep, at least 1.
    """

    def __init__(self, x_ND: np.ndarray, most: int) -> None:
        import torch

        self.x_ND = x_ND
        self.kept_CN = torch.empty((max(1, most), len(x_ND)))  # memory is taken when it is written
        self.place_of: OrderedDict[int, int] = OrderedDict()  # row number to column, the last asked about last
        # Most that rounding changes an inner product, or a number of [-1, 1] that becomes float32.
        self.rounding = (x_ND.shape[1] + 8) * LARGEST * 2.0**-24

    def sums_above(self, floor_N: np.ndarray, rows_B: np.ndarray, x_BD: np.ndarray) -> np.ndarray:
        """Over all rows of the shard, the sum of what their similarity to a vector exceeds their floor by.

        Args:
            floor_N: (N,) float64.
            rows_B: (B,) int64 row numbers by which the vectors are remembered, all different.
            x_BD: (B, D) float16, any rows, of this shard or others.

        Returns:
            (B,) float64, at least the exact sums.
        """
        import torch

        lowered_N = torch.from_numpy(self._lowered(floor_N))
        places_B = np.array([self.place_of.get(row, -1) for row in rows_B.tolist()])
        sums_B = np.zeros(len(rows_B))
        kept_B, new_B = places_B >= 0, places_B < 0
        for at_B, tiles in ((kept_B, self._kept(places_B[kept_B])), (new_B, self._made(rows_B[new_B], x_BD[new_B]))):
            for start, stop, tile_MT in tiles:
                tile_MT.sub_(lowered_N[start:stop]).clamp_(min=0)
                sums_B[at_B] += tile_MT.sum(dim=1, dtype=torch.float64).numpy()
        for row in rows_B.tolist():
            if row in self.place_of:
                self.place_of.move_to_end(row)
        return sums_B * (1 + 2.0**-20)  # far above what a sum of float64 loses

    def may_exceed(self, floor_N: np.ndarray, row: int, x_D: np.ndarray) -> np.ndarray:
        """(N,) bool: true wherever the similarity to a vector exceeds the floor, and hardly anywhere else."""
        if row not in self.place_of:
            for _ in self._made(np.array([row]), x_D[None]):
                pass
        return self.kept_CN[self.place_of[row]].numpy() >= self._lowered(floor_N)

    def _lowered(self, floor_N: np.ndarray) -> np.ndarray:
        return (floor_N - self.rounding).astype(np.float32)

    def _kept(self, places_M: np.ndarray) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Tiles of columns that are kept."""
        import torch

        for start in range(0, len(self.x_ND) if len(places_M) else 0, KEPT_TILE):
            stop = min(start + KEPT_TILE, len(self.x_ND))
            yield start, stop, self.kept_CN[:, start:stop].index_select(0, torch.from_numpy(places_M))

    def _made(self, rows_M: np.ndarray, x_MD: np.ndarray) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Tiles of columns that are not; they are kept from then on, where there is a place."""
        import torch

        if not len(rows_M):
            return
        single_MD = torch.from_numpy(x_MD.astype(np.float32))
        places_M = torch.from_numpy(self._new_places(rows_M))
        out_MT = torch.empty((len(rows_M), MADE_TILE))
        for start, stop, tile_TD in float32_tiles(self.x_ND, tile_rows=MADE_TILE):
            torch.mm(single_MD, tile_TD.T, out=out_MT)
            self.kept_CN[places_M, start:stop] = out_MT[: len(places_M), : stop - start]
            yield start, stop, out_MT[:, : stop - start]

    def _new_places(self, rows_M: np.ndarray) -> np.ndarray:
        """Columns for the first of these rows; for all, unless there are too many."""
        wanted, used = len(rows_M), len(self.place_of)
        places = list(range(used, len(self.kept_CN))[:wanted])
        if wanted < SCAN_ROWS:
            evicted = min(wanted - len(places), used)
            places += [self.place_of.popitem(last=False)[1] for _ in range(evicted)]
        self.place_of |= zip(rows_M.tolist(), places, strict=False)
        return np.array(places, dtype=np.int64)
