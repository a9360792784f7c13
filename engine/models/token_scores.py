"""Token log-probabilities: how likely a causal language model finds each response, with its prompt and without.

    s = -(1/n) sum_i log p(w_i | context, w_<i)      natural logarithm, n tokens of the response

`nll_conditioned` is s after the prompt, `nll_alone` s after the bare response marker (engine/models/contexts.py); both
over the same n tokens of one tokenisation. Perplexity is exp(s). Source: Cherry (Li et al., arXiv 2308.12032,
equations 1 to 4). Every sequence is computed in a batch shape, and every logit in a tile shape, that follow from the
row alone, so a row's score has the same bits beside any neighbours. A mixture of experts is the exception: its
routing makes shapes of its own.

It refuses to know what a score is good for.

Shape letters: N rows, S sequences (two per row), B rows of a batch, L padded tokens, D width of the model, P scored
positions, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from engine.models.batching import Batch, fixed_batches, pad_batch
from engine.models.causal import CausalModel
from engine.models.contexts import Contexts, Template
from engine.models.encoder import BATCH_TOKENS, Precision
from engine.models.threads import map_batches_on_cpu
from engine.models.token_rows import COLUMNS_IN, Tokens, score_table, tokenize_rows
from engine.work import count_tokens


class TokenScores:
    """The stage `token_scores`: mean NLL of every response, with and without its prompt.

    What is scored is the text of the last assistant message given everything before it; no end-of-turn token and no
    hidden reasoning. A response is cut at its end where context and response exceed `max_tokens`, by the same cut in
    both passes; a row with no room for any of it is an error row.

    Args:
        model: folder or Hugging Face id of a causal language model with safetensors weights; its code is never run.
        max_tokens: longest context plus response; lowered to the positions the model has.
        template: see `Contexts`.
        precision: of weights and layers; for logits see engine/models/lm_head.py. "auto": see
            `engine.models.encoder.resolve_precision`.
        device: "cpu", "cuda", or "auto": cuda when there is one.
        weights: fingerprint that the model's files must have; "" accepts any.
        hidden: return the column `vector` too: the last hidden states averaged over the context, to unit norm,
            FixedSizeList<float16>[D] (Cherry, step 1), null in error rows.

    Raises:
        EnvironmentProblem, ConfigError: as `CausalModel`.
        ConfigError: E230 or E231, the tokenizer will not do (see `Contexts`).
    """

    columns_in: ClassVar[tuple[str, ...]] = COLUMNS_IN

    def __init__(
        self,
        model: str,
        max_tokens: int = 1024,
        template: Template = "chat",
        precision: Precision = "auto",
        device: str = "auto",
        weights: str = "",
        hidden: bool = False,
    ) -> None:
        causal = CausalModel(model, precision, device, weights)
        self.device, self.body, self.head = causal.device, causal.body, causal.head
        self.contexts, self.hidden = Contexts(causal.tokenizer, template), hidden
        self.max_tokens = causal.window(max_tokens)

    def __call__(self, table: pa.Table) -> pa.Table:
        """N rows with `columns_in`; returns `TOKEN_SCORE_COLUMNS`, with `vector` before `error` if asked for."""
        rows = tokenize_rows(self.contexts, table, self.max_tokens)
        nll_N2 = np.full((len(rows), 2), np.nan)
        x_ND = np.zeros((len(rows), self.head.dim if self.hidden else 0), np.float16)
        good = np.array([i for i, row in enumerate(rows) if row.error is None], np.int64)
        if len(good):
            nll_N2[good], x_ND[good] = self._score([rows[i] for i in good])
        return score_table(rows, nll_N2, x_ND if self.hidden else None)

    def _score(self, rows: list[Tokens]) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) float64 mean NLL with and without prompt, and (N, D) float16 unit vectors, D = 0 unless asked for."""
        alone = self.contexts.alone
        sequences = [(row.context, row.response) for row in rows] + [(alone, row.response) for row in rows]
        # The last token is predicted and never read.
        inputs = [[*context, *response[:-1]] for context, response in sequences]
        lengths_S = np.array([len(ids) for ids in inputs], np.int64)
        count_tokens(lengths_S.sum())
        nll_S = np.empty(len(sequences))
        x_SD = np.zeros((len(sequences), self.head.dim if self.hidden else 0), np.float16)
        batches = list(fixed_batches(lengths_S, self.max_tokens, BATCH_TOKENS[self.device]))
        forward = functools.partial(self._forward, sequences, inputs)
        results = map_batches_on_cpu(forward, batches) if self.device == "cpu" else map(forward, batches)
        for batch, (nll_B, x_BD) in zip(batches, results, strict=True):
            nll_S[batch.rows], x_SD[batch.rows] = nll_B, x_BD
        return nll_S.reshape(2, -1).T, x_SD[: len(rows)]

    def _forward(
        self, sequences: list[tuple[list[int], list[int]]], inputs: list[list[int]], batch: Batch
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean NLL, (n,) float64, and unit vectors, (n, D) float16 with D = 0 unless asked for, of n sequences.

        No attention mask: padding stands on the right, where a causal model does not look.
        """
        import torch

        chosen = [sequences[row] for row in batch.rows.tolist()]
        spans = [np.arange(len(response)) + len(context) - 1 for context, response in chosen]
        counts_B = np.array([len(span) for span in spans])
        places_P = torch.from_numpy(np.repeat(np.arange(len(chosen)), counts_B)).to(self.device)
        positions_P = torch.from_numpy(np.concatenate(spans)).to(self.device)
        targets_P = torch.tensor([token for _, response in chosen for token in response], device=self.device)
        ids_BL = torch.from_numpy(pad_batch(inputs, batch, 0)[0]).to(self.device)
        with torch.inference_mode():
            state_BLD = self.body(input_ids=ids_BL, use_cache=False).last_hidden_state
            nll_P = self.head.nll(state_BLD[places_P, positions_P], targets_P).cpu().numpy().astype(np.float64)
            lengths = [len(context) for context, _ in chosen]
            x_BD = self._pooled(state_BLD, lengths) if self.hidden else np.empty((len(chosen), 0), np.float16)
        ends_B = np.cumsum(counts_B)[:-1]
        return np.array([part.mean() for part in np.split(nll_P, ends_B)]), x_BD

    def _pooled(self, state_BLD: Any, lengths: list[int]) -> np.ndarray:
        import torch

        length_B = torch.tensor(lengths + [1] * (len(state_BLD) - len(lengths)), device=self.device)
        inside_BL = torch.arange(state_BLD.shape[1], device=self.device) < length_B[:, None]
        mean_BD = (state_BLD.float() * inside_BL[:, :, None]).sum(1) / length_B[:, None]
        return torch.nn.functional.normalize(mean_BD, dim=1).half()[: len(lengths)].cpu().numpy()
