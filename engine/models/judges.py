"""Judges that run in the worker: who answered better, the reference or the model?

The paid judge and the one on vLLM implement the same stage contract elsewhere: a table with the prompt, the reference
(`response`) and the model's `answer` in, VERDICT_COLUMNS out, an error instead of a verdict when there is none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from engine.data.vectors import vectors_from_arrow
from engine.schema import ANSWER, ERROR, HARD, RESPONSE, VECTOR, VERDICT


class EmbeddingJudge:
    """Offline stand-in for an LLM judge: the answer whose meaning is nearer to the prompt wins.

    An answer that says the same as the reference (cosine >= `same_similarity`) is a tie, and so is a difference in
    relevance of at most `margin`. It notices answers that are off topic, empty talk or refusals; it cannot tell right
    from wrong. Scores are cosines to the prompt.

    Args:
        encoder: settings of the pool's encoder; the prompt's vector comes with the batch.
    """

    columns_in = (VECTOR, RESPONSE, ANSWER)

    def __init__(self, encoder: dict[str, Any], same_similarity: float, margin: float) -> None:
        from engine.models.encoder import make_encoder

        self.encoder = make_encoder(encoder)
        self.same_similarity, self.margin = same_similarity, margin

    def __call__(self, table: pa.Table) -> pa.Table:
        answered = np.array([bool(text and text.strip()) for text in table[ANSWER].to_pylist()])
        texts = table[RESPONSE].to_pylist() + [text or "" for text in table[ANSWER].to_pylist()]
        vectors = self.encoder.encode(texts).astype(np.float32)
        reference_ND, answer_ND = vectors[: len(table)], vectors[len(table) :]
        prompt_ND = vectors_from_arrow(table[VECTOR]).astype(np.float32)
        same_N = _cosine(reference_ND, answer_ND) >= self.same_similarity
        reference_N, answer_N = _cosine(prompt_ND, reference_ND), _cosine(prompt_ND, answer_ND)
        tie_N = same_N | (np.abs(reference_N - answer_N) <= self.margin)
        verdicts = np.where(tie_N, "tie", np.where(reference_N > answer_N, "reference", "answer"))
        nothing = ~answered
        return pa.table(
            {
                HARD: pa.array(verdicts == "reference", mask=nothing | tie_N),
                VERDICT: pa.array(verdicts.tolist(), pa.string(), mask=nothing),
                "score_reference": pa.array(reference_N, mask=nothing),
                "score_answer": pa.array(answer_N, mask=nothing),
                ERROR: pa.array([None if ok else "no answer to judge" for ok in answered], pa.large_string()),
            }
        )


def _cosine(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    """(N,) float32 row-wise cosine of unit vectors; each row's sum is the same in any batch."""
    return np.einsum("nd,nd->n", a_ND, b_ND)
