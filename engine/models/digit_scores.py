"""Digit logits: how a causal language model rates a row, read off its next-token distribution instead of its words.

    p_k = sum_{t in T_k} exp(z_t) / sum_{j=1..K} sum_{t in T_j} exp(z_t)

with z the logits of the first new token after a rating prompt and T_k the tokens that write the digit k there: DEITA's
scorers (Liu et al., ICLR 2024, arXiv 2312.15685, section 3) and SelectIT (Liu et al., NeurIPS 2024, arXiv 2402.16705,
section 3) have one token per digit; a tokenizer that writes "1" and " 1" as one token each has two. Every text is
computed in a batch shape that follows from its own length, so its numbers have the same bits beside any neighbours.

It refuses to know what a rating is good for.

Shape letters: N rows, S texts (one per row or one per turn), B texts of a batch, L padded tokens, D width of the
model, K digits, F forms of a digit.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from engine.data.conversations import split_turns
from engine.errors import ConfigError
from engine.models.batching import Batch, fixed_batches, pad_batch
from engine.models.causal import CausalModel
from engine.models.contexts import Contexts
from engine.models.digit_prompts import DigitPrompt
from engine.models.encoder import BATCH_TOKENS, Precision
from engine.models.threads import map_batches_on_cpu
from engine.schema import ERROR, MESSAGES, PROMPT, RESPONSE
from engine.work import count_tokens

P = "p"
DIGIT_COLUMNS = [
    pa.field(P, pa.list_(pa.list_(pa.float32()))),  # per turn asked about, the probabilities of the digits 1 to K
    pa.field(ERROR, pa.large_string()),  # why a row has none
]


class Asked(NamedTuple):
    """The texts of one row as token ids. `error`: None, or why there are none."""

    texts: list[list[int]]
    error: str | None


class DigitScores:
    """The stage `digits`: probabilities of the digits 1 to K after a rating prompt about every row.

    A text that does not fit is not cut: its row is an error row, since the end of a cut prompt is not the question.
    System messages are not shown.

    Args:
        model, precision, device, weights: as `CausalModel`.
        prompt: fields of a `DigitPrompt`.
        max_tokens: longest text; lowered to the positions the model has.
        template: "plain": start token, text, opening. "chat": the text as a user's message in the model's own chat
            template and the opening as the beginning of the answer; "plain" for a model without one.
        turns: "last": the last response, with everything before it as the prompt. "each": every turn by itself, a
            user's message and its answer, without the turns before it.

    Attributes:
        tokens_KF: token ids of each digit, F of them.

    Raises:
        EnvironmentProblem, ConfigError: as `CausalModel`.
        ConfigError: E230, the chat template cannot write a user message; E234, a digit is not one token.
    """

    columns_in: ClassVar[tuple[str, ...]] = (MESSAGES, PROMPT, RESPONSE)

    def __init__(
        self,
        model: str,
        prompt: Mapping[str, Any],
        max_tokens: int = 2048,
        template: Literal["chat", "plain"] = "plain",
        turns: Literal["last", "each"] = "last",
        precision: Precision = "auto",
        device: str = "auto",
        weights: str = "",
    ) -> None:
        self.causal = CausalModel(model, precision, device, weights)
        self.contexts = Contexts(self.causal.tokenizer, template)
        self.prompt, self.turns = DigitPrompt(**prompt), turns
        self.max_tokens = self.causal.window(max_tokens)
        self.tokens_KF = self._digit_tokens(model)
        self.head = self.causal.head.only([token for forms in self.tokens_KF for token in forms])

    def __call__(self, table: pa.Table) -> pa.Table:
        """N rows with `columns_in`; returns `DIGIT_COLUMNS`."""
        rows = [self._written(*row) for row in zip(*(table[name].to_pylist() for name in self.columns_in), strict=True)]
        ids = iter(self._encode([text for texts in rows for text in texts]))
        asked = [self._asked([next(ids) for _ in texts]) for texts in rows]
        p_SK = self._probabilities([text for row in asked for text in row.texts])
        found, errors, at = [], [], 0
        for row in asked:
            p_TK = p_SK[at : at + len(row.texts)]
            at += len(row.texts)
            finite = bool(np.isfinite(p_TK).all())
            errors.append(row.error if finite else "the model's logits are not finite numbers")
            found.append(p_TK.tolist() if errors[-1] is None else None)
        columns = [pa.array(found, DIGIT_COLUMNS[0].type), pa.array(errors, pa.large_string())]
        return pa.table(columns, schema=pa.schema(DIGIT_COLUMNS))

    def _written(self, messages: str, prompt: str, response: str) -> list[str]:
        """What the model is asked about one row, up to where it answers with a digit."""
        pairs = split_turns(json.loads(messages)) if self.turns == "each" else [(prompt, response)]
        return [self._laid_out(self.prompt.render(*pair)) for pair in pairs]

    def _laid_out(self, text: str, answer: str = "") -> str:
        """A rendered prompt with what begins the answer, as one text."""
        opening = self.prompt.opening + answer
        if self.contexts.template == "chat":
            return self.contexts.render([{"role": "user", "content": text}]) + opening
        return f"{text}\n{opening}" if self.prompt.opening else text + answer

    def _encode(self, texts: list[str]) -> list[list[int]]:
        start = [] if self.contexts.template == "chat" else self.contexts.start
        return [[*start, *ids] for ids in self.contexts.encode_all(texts)]

    def _asked(self, texts: list[list[int]]) -> Asked:
        for number, ids in enumerate(texts, 1):
            if len(ids) > self.max_tokens:
                which = f"turn {number} of {len(texts)}: " if len(texts) > 1 else ""
                return Asked([], f"{which}the rating prompt has {len(ids)} tokens, more than {self.max_tokens}")
        return Asked(texts, None)

    def _digit_tokens(self, model: str) -> list[list[int]]:
        """For each digit the tokens that write it right after the prompt: as "1", as " 1", or as both.

        A form counts when each of its digits is exactly one more token, another one for each. Llama and Qwen write
        " 1" as two tokens, of which the first says nothing, so there the form "1" is the only one, as in the published
        code.
        """
        from jinja2 import TemplateError

        text = self.prompt.render("x", "x")
        digits = range(1, self.prompt.scale + 1)
        try:
            (before,) = self._encode([self._laid_out(text)])
        except (TemplateError, ValueError, TypeError) as error:
            fix = "set template to plain"
            raise ConfigError(
                "the chat template cannot write a single user message", why=str(error), fix=fix, code="E230"
            ) from error
        forms: list[list[int]] = []
        for space in ("", " "):
            ids = self._encode([self._laid_out(text, f"{space}{k}") for k in digits])
            last = [one[-1] for one in ids if one[:-1] == before]
            if len(set(last)) == len(digits) and self.causal.tokenizer.unk_token_id not in last:
                forms.append(last)
        if not forms:
            raise ConfigError(
                f"the tokenizer of {model!r} does not write the ratings 1 to {self.prompt.scale} as one token each",
                where=f"prompt {self.prompt.name}/v{self.prompt.version}",
                why="after the end of the prompt a digit is several tokens, or changes the tokens before it",
                fix="end the prompt in another way, with an opening such as 'Rating:', or choose another model",
                code="E234",
            )
        return [list(of_digit) for of_digit in zip(*forms, strict=True)]

    def _probabilities(self, texts: list[list[int]]) -> np.ndarray:
        """(S, K) float64, rows that sum to 1; nan where the logits are not finite."""
        lengths_S = np.array([len(ids) for ids in texts], np.int64)
        count_tokens(lengths_S.sum())
        p_SK = np.empty((len(texts), self.prompt.scale))
        batches = list(fixed_batches(lengths_S, self.max_tokens, BATCH_TOKENS[self.causal.device]))
        forward = functools.partial(self._forward, texts)
        results = map_batches_on_cpu(forward, batches) if self.causal.device == "cpu" else map(forward, batches)
        for batch, logits_BKF in zip(batches, results, strict=True):
            with np.errstate(invalid="ignore"):
                weight_BKF = np.exp(logits_BKF - logits_BKF.max(axis=(1, 2), keepdims=True))
                p_SK[batch.rows] = weight_BKF.sum(2) / weight_BKF.sum((1, 2))[:, None]
        return p_SK

    def _forward(self, texts: list[list[int]], batch: Batch) -> np.ndarray:
        """(n, K, F) float64 logits of the digits after n texts.

        No attention mask: padding stands on the right, where a causal model does not look.
        """
        import torch

        ids_BL = torch.from_numpy(pad_batch(texts, batch, 0)[0]).to(self.causal.device)
        last_B = torch.zeros(batch.num_rows, dtype=torch.int64)
        last_B[: len(batch.rows)] = torch.tensor([len(texts[row]) - 1 for row in batch.rows.tolist()])
        with torch.inference_mode():
            state_BLD = self.causal.body(input_ids=ids_BL, use_cache=False).last_hidden_state
            state_BD = state_BLD[torch.arange(batch.num_rows), last_B.to(self.causal.device)]
            logits_BM = self.head.logits(state_BD)[: len(batch.rows)].cpu().numpy().astype(np.float64)
        return logits_BM.reshape(len(batch.rows), self.prompt.scale, -1)
