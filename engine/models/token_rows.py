"""What every implementation of token scores shares: rows as token ids before the model, and as columns after it.

The context without prompt and the one with it are followed by the same response tokens, so both scores are means over
the same n tokens. What is scored is the last assistant message given everything before it (engine/models/contexts.py).
It refuses to know models and devices.

Shape letters: N rows, D width of the model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from engine.models.contexts import Contexts
from engine.schema import ERROR, MESSAGES, PROMPT, RESPONSE, SYSTEM, TOOLS, VECTOR

NLL_CONDITIONED, NLL_ALONE = "nll_conditioned", "nll_alone"
TOKENS_PROMPT, TOKENS_RESPONSE, TOKENS_CUT = "tokens_prompt", "tokens_response", "tokens_cut"

COLUMNS_IN = (MESSAGES, TOOLS, SYSTEM, PROMPT, RESPONSE)
TOKEN_SCORE_COLUMNS = [
    pa.field(NLL_CONDITIONED, pa.float32()),  # mean NLL of the response after the prompt, in nats per token
    pa.field(NLL_ALONE, pa.float32()),  # the same tokens after the response marker alone
    pa.field(TOKENS_PROMPT, pa.int32()),  # tokens before the response, those of the template among them
    pa.field(TOKENS_RESPONSE, pa.int32()),  # tokens scored
    pa.field(TOKENS_CUT, pa.int32()),  # tokens of the response that did not fit and were not scored
    pa.field(ERROR, pa.large_string()),  # why a row has no score; its other columns are null
]


class Tokens(NamedTuple):
    """One row as token ids. `cut`: tokens left out at the response's end; `error`: None, or why it has no score."""

    context: list[int]
    response: list[int]
    cut: int
    error: str | None


def tokenize_rows(contexts: Contexts, table: pa.Table, max_tokens: int) -> list[Tokens]:
    """The rows of a table with `COLUMNS_IN` as they will be scored.

    A response is cut at its end where it exceeds `max_tokens` together with the longer of its two contexts, by the
    same cut in both passes; a row with no room for any of it is an error row, as is one the chat template refuses.
    """
    from jinja2 import TemplateError

    before: list[str] = []
    refused: dict[int, str] = {}
    columns = (table[name].to_pylist() for name in (MESSAGES, TOOLS, SYSTEM, PROMPT))
    for number, row in enumerate(zip(*columns, strict=True)):
        try:
            before.append(contexts.text_before(*row))
        except (TemplateError, ValueError, TypeError) as error:
            refused[number] = f"the chat template refuses the row: {error}"
            before.append("")
    pairs = contexts.split_all(before, table[RESPONSE].to_pylist())
    return [
        Tokens([], [], 0, refused[number]) if number in refused else _fitted(contexts, *pair, max_tokens)
        for number, pair in enumerate(pairs)
    ]


def _fitted(contexts: Contexts, context: list[int], response: list[int], max_tokens: int) -> Tokens:
    if not response:
        return Tokens([], [], 0, "the response has no tokens of its own")
    # The context without prompt may be the longer one when there is no prompt to speak of.
    room = max_tokens - max(len(context), len(contexts.alone))
    if room < 1:
        return Tokens([], [], 0, f"{len(context)} tokens before the response leave no room in {max_tokens}")
    return Tokens(context, response[:room], max(0, len(response) - room), None)


def score_table(rows: list[Tokens], nll_N2: np.ndarray, x_ND: np.ndarray | None = None) -> pa.Table:
    """The columns of a stage.

    Args:
        rows: N rows, from `tokenize_rows`.
        nll_N2: (N, 2) mean NLL with and without prompt; nan in rows with an error.
        x_ND: (N, D) float16 unit vectors, which become the column `vector` before `error`; None: no such column.

    Returns:
        Table with `TOKEN_SCORE_COLUMNS`; a row whose score is not a finite number becomes an error row.
    """
    finite_N = np.isfinite(nll_N2.sum(axis=1))
    errors = [
        row.error if row.error or ok else "the model's score is not a finite number"
        for row, ok in zip(rows, finite_N, strict=True)
    ]
    lengths_N3 = np.array([[len(row.context), len(row.response), row.cut] for row in rows]).reshape(-1, 3)
    columns = [pa.array(nll_N2[:, k].astype(np.float32), mask=~finite_N) for k in range(2)]
    columns += [pa.array(lengths_N3[:, k].astype(np.int32), mask=~finite_N) for k in range(3)]
    fields = list(TOKEN_SCORE_COLUMNS)
    if x_ND is not None:
        flat = pa.array(np.where(finite_N[:, None], x_ND, np.float16(0)).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, x_ND.shape[1], mask=pa.array(~finite_N)))
        fields.insert(-1, pa.field(VECTOR, columns[-1].type))
    return pa.table([*columns, pa.array(errors, pa.large_string())], schema=pa.schema(fields))
