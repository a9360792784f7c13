"""The stage that embeds whole pairs: prompt and response as one text.

It knows nothing of recipes; the encoder does the work.
"""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa

from engine.data.vectors import vectors_to_arrow
from engine.models.encoder import EmbedStage
from engine.schema import PROMPT, RESPONSE, VECTOR


class EmbedPairs(EmbedStage):
    """As `EmbedStage`, for `prompt`, a line feed and `response`; cut where the encoder cuts any text."""

    columns_in: ClassVar[tuple[str, ...]] = (PROMPT, RESPONSE)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Table of N rows with both columns; returns one column `vector`, FixedSizeList<float16>[D]."""
        pairs = zip(table[PROMPT].to_pylist(), table[RESPONSE].to_pylist(), strict=True)
        return pa.table({VECTOR: vectors_to_arrow(self.encoder.encode([f"{p}\n{r}" for p, r in pairs]))})
