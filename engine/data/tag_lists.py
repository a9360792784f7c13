"""Columns of lists of tags as numbers: one array of codes for all rows, where each row's start, and the names.

Codes are given in order of appearance and mean nothing; what is made of them must not depend on it. The file knows
nothing of where tags come from or what is selected by them.
"""

# Shape letters: N rows, T tags of all rows one after another, G distinct tags, M rows added at a time.

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class TagLists:
    """Grows by columns of lists of text; holds 4 bytes per tag and 8 per row.

    Attributes:
        names: of the codes, in their order.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._tags: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []

    def add(self, column: pa.Array | pa.ChunkedArray) -> None:
        """Adds rows.

        Args:
            column: (M,) lists of text, without nulls.
        """
        counts_M = pc.list_value_length(column).to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]
        flat = pc.list_flatten(column)  # pyright: ignore[reportAttributeAccessIssue]
        flat = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
        coded = flat.dictionary_encode()
        for name in coded.dictionary.to_pylist():
            if name not in self._codes:
                self._codes[name] = len(self.names)
                self.names.append(name)
        codes = np.array([self._codes[name] for name in coded.dictionary.to_pylist()], dtype=np.int32)
        self._tags.append(codes[coded.indices.to_numpy()])
        self._counts.append(counts_M.astype(np.int64))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(T,) int32 codes, and (N + 1,) int64: the tags of row n are at starts[n] : starts[n + 1]."""
        counts_N = np.concatenate([np.empty(0, np.int64), *self._counts])
        return np.concatenate([np.empty(0, np.int32), *self._tags]), np.concatenate([[0], np.cumsum(counts_N)])
