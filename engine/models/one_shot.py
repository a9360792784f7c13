"""One-shot gain: how many known tasks a candidate helps when it stands before them as an example.

    zero_j   = sum_i log p(a_ji | start, q_j, a_j<i)
    one_j(z) = sum_i log p(a_ji | start, z, separator, q_j, a_j<i)
    golden score of z = #{j : one_j(z) > zero_j} / #{j}          anchors j = (q_j, a_j), z itself excluded

Nuggets (Li et al., arXiv 2312.10302, section 3). The keys and values of a candidate are computed once and shared by
all anchors; the zero-shot values are those of the start token as candidate, once per worker. A candidate is computed
alone, in shapes that follow from itself and the anchors, so its score has the same bits beside any neighbours.

It refuses to know how anchors are chosen and what a score is good for.

Shape letters: N rows, A anchors, B anchors of a batch, L padded tokens, P scored positions.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from engine.artifacts import Step
from engine.errors import ConfigError, DataError
from engine.models.causal import CausalModel
from engine.models.contexts import Contexts
from engine.models.encoder import Precision
from engine.models.threads import map_batches_on_cpu
from engine.schema import ERROR, ID, PROMPT, RESPONSE, SYSTEM

HELPED, ANCHORS = "anchors_helped", "anchors"
ONE_SHOT_COLUMNS = [
    pa.field(HELPED, pa.int32()),  # anchors whose response becomes more likely
    pa.field(ANCHORS, pa.int32()),  # anchors tried
    pa.field(ERROR, pa.large_string()),  # why a row has no score
]
SEPARATOR = "\n\n"
# Tokens of a batch, each anchor's with those of the candidate before it.
BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


class Anchor(NamedTuple):
    """A task as token ids, without what stands before it."""

    id: str
    context: list[int]
    response: list[int]

    @property
    def tokens(self) -> list[int]:
        return self.context + self.response


class OneShot(NamedTuple):
    """What a candidate did. `error`: None, or why it did nothing."""

    helped: int
    anchors: int
    error: str | None


class OneShotScores:
    """The stage `one_shot`: how many anchors each row helps as an example before them.

    Several turns: prompt is everything before the last response, as text, for candidates and for anchors. Nothing is
    cut: an anchor of more than `anchor_tokens` is left out, a candidate without room for the longest anchor is an
    error row.

    Args:
        model, precision, device, weights: as `CausalModel`.
        anchors: step with `id` and the text columns; their order does not matter.
        max_tokens: longest candidate, separator and anchor; lowered to the positions the model has.
        anchor_tokens: longest prompt plus response of an anchor.
        template: see `Contexts`.

    Raises:
        EnvironmentProblem, ConfigError: as `CausalModel`; E233 also when it cannot go on from keys and values.
        DataError: E471, no anchor is short enough.
    """

    columns_in: ClassVar[tuple[str, ...]] = (ID, SYSTEM, PROMPT, RESPONSE)

    def __init__(
        self,
        model: str,
        anchors: Step,
        max_tokens: int = 1024,
        anchor_tokens: int = 256,
        template: Literal["alpaca", "plain"] = "alpaca",
        precision: Precision = "auto",
        device: str = "auto",
        weights: str = "",
    ) -> None:
        self.causal = CausalModel(model, precision, device, weights)
        self.contexts = Contexts(self.causal.tokenizer, template)
        self.max_tokens = self.causal.window(max_tokens)
        self._check_cache(model)
        found = [self._anchor(*row) for row in self._rows(anchors.read_all(list(self.columns_in)))]
        kept = [one for one in found if one.context and one.response and len(one.tokens) <= anchor_tokens]
        self.anchors = sorted(kept, key=lambda one: (len(one.tokens), one.id))
        if not self.anchors:
            raise DataError(
                f"none of {len(found)} anchors has {anchor_tokens} tokens or less",
                where=anchors.folder,
                fix="raise anchor_tokens",
                code="E471",
            )
        self.zero_A = self._log_likelihoods(self.contexts.start)
        if not np.isfinite(self.zero_A).all():
            raise DataError(
                "the model's log-probability of an anchor is not a finite number",
                where=f"row {self.anchors[int(np.isfinite(self.zero_A).argmin())].id}",
                fix="take precision float32, or another model",
                code="E471",
            )

    def __call__(self, table: pa.Table) -> pa.Table:
        """N rows with `columns_in`; returns `ONE_SHOT_COLUMNS`."""
        rows = list(self._rows(table))
        found = list(map_batches_on_cpu(self._score, rows) if self.causal.device == "cpu" else map(self._score, rows))
        bad_N = np.array([one.error is not None for one in found], bool)
        counts = np.array([[one.helped, one.anchors] for one in found], np.int32).reshape(-1, 2)
        columns = [pa.array(counts[:, k], mask=bad_N) for k in range(2)]
        errors = pa.array([one.error for one in found], pa.large_string())
        return pa.table([*columns, errors], schema=pa.schema(ONE_SHOT_COLUMNS))

    def _rows(self, table: pa.Table) -> Any:
        return zip(*(table[name].to_pylist() for name in self.columns_in), strict=True)

    def _anchor(self, key: str, system: str, prompt: str, response: str) -> Anchor:
        before = self.contexts.before("", "", system, prompt)[len(self.contexts.start) :]
        return Anchor(key, before, self.contexts.encode(response))

    def _score(self, row: tuple[str, str, str, str]) -> OneShot:
        key, example = row[0], self._anchor(*row)
        ids = [*self.contexts.start, *example.tokens, *self.contexts.encode(SEPARATOR)]
        if not example.response:
            return OneShot(0, 0, "the response has no tokens")
        if len(ids) + len(self.anchors[-1].tokens) > self.max_tokens:
            return OneShot(0, 0, f"{len(ids)} tokens as an example leave no room for the anchors in {self.max_tokens}")
        others_A = np.array([anchor.id != key for anchor in self.anchors])
        one_A = self._log_likelihoods(ids)
        if not others_A.any():
            return OneShot(0, 0, "the row is the only anchor")
        if not np.isfinite(one_A).all():
            return OneShot(0, 0, "the model's score is not a finite number")
        return OneShot(int((one_A > self.zero_A)[others_A].sum()), int(others_A.sum()), None)

    def _log_likelihoods(self, before: list[int]) -> np.ndarray:
        """(A,) float64: log-probability of each anchor's response after `before` and the anchor's prompt, in nats."""
        import torch

        found_A = np.empty(len(self.anchors))
        with torch.inference_mode():
            cache = self._body([before], None).past_key_values
            for start, stop in self._batches(len(before)):
                batch = self.anchors[start:stop]
                found_A[start:stop] = self._after(cache, batch)
        return found_A

    def _batches(self, before: int) -> list[tuple[int, int]]:
        """Ranges of anchors that are computed together after `before` tokens."""
        limit, ranges, start = BATCH_TOKENS[self.causal.device], [], 0
        for stop in range(1, len(self.anchors) + 1):
            full = stop == len(self.anchors)
            if full or (stop + 1 - start) * (before + len(self.anchors[stop].tokens)) > limit:
                ranges.append((start, stop))
                start = stop
        return ranges

    def _after(self, cache: Any, batch: list[Anchor]) -> np.ndarray:
        """(B,) float64 log-probabilities of the responses of some anchors.

        No attention mask: padding stands on the right, where a causal model does not look.
        """
        import torch

        shared = copy.deepcopy(cache)
        shared.batch_repeat_interleave(len(batch))
        longest = len(batch[-1].tokens)
        ids = [one.tokens + [0] * (longest - len(one.tokens)) for one in batch]
        state_BLD = self._body(ids, shared).last_hidden_state
        places_P = np.repeat(np.arange(len(batch)), [len(one.response) for one in batch])
        spans = [np.arange(len(one.response)) + len(one.context) - 1 for one in batch]
        targets_P = torch.tensor([token for one in batch for token in one.response], device=self.causal.device)
        state_PD = state_BLD[torch.from_numpy(places_P), torch.from_numpy(np.concatenate(spans))]
        nll_P = self.causal.head.nll(state_PD, targets_P).cpu().numpy().astype(np.float64)
        return -np.bincount(places_P, weights=nll_P)

    def _body(self, ids: list[list[int]], cache: Any) -> Any:
        import torch

        ids_BL = torch.tensor(ids, dtype=torch.int64, device=self.causal.device)
        return self.causal.body(input_ids=ids_BL, past_key_values=cache, use_cache=True)

    def _check_cache(self, model: str) -> None:
        """Compares going on from keys and values with computing the whole."""
        import torch

        first = [k % len(self.causal.head.weight_VD) for k in range(12)]
        with torch.inference_mode():
            whole_D = self._body([first], None).last_hidden_state[0, -1].float()
            cache = self._body([first[:8]], None).past_key_values
            cache.batch_repeat_interleave(2)
            part_D = self._body([first[8:]] * 2, cache).last_hidden_state[1, -1].float()
        if float((whole_D - part_D).abs().max()) > 0.05 * float(whole_D.abs().max()):
            raise ConfigError(
                f"one-shot scores cannot be computed with {model!r}",
                why="going on from its keys and values gives something else than computing the whole text",
                fix="choose another model",
                code="E233",
            )
