"""Reward models: how good a trained model finds an answer to its prompt, one number per row.

A reward model is a classifier of one output without a non-linearity (`AutoModelForSequenceClassification`), read off
the pair (question, answer), as OpenAssistant's DeBERTa that MoDS (arXiv 2311.15653) and InstructMining
(arXiv 2307.06290) use, or off a conversation in the model's own chat template, as the ones made of a causal language
model. Every row is computed in a batch shape that follows from its own length (engine/models/batching.py), so its
reward has the same bits beside any neighbours.

It refuses to know what a reward is good for, and who wrote the answer.

Shape letters: N rows, B rows of a batch, L padded tokens.
"""

from __future__ import annotations

import functools
import json
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from engine.errors import ConfigError, EnvironmentProblem
from engine.models.batching import Batch, fixed_batches, pad_batch
from engine.models.encoder import BATCH_TOKENS, Precision, checked_folder, resolve_precision
from engine.models.threads import map_batches_on_cpu
from engine.schema import ANSWER, ERROR, MESSAGES, PROMPT, RESPONSE, SYSTEM, TOOLS
from engine.work import count_tokens

REWARD, TOKENS, TOKENS_CUT = "reward", "tokens", "tokens_cut"
REWARD_COLUMNS = [
    pa.field(REWARD, pa.float32()),  # the model's logit
    pa.field(TOKENS, pa.int32()),  # tokens the model saw
    pa.field(TOKENS_CUT, pa.int32()),  # tokens of the answer that did not fit
    pa.field(ERROR, pa.large_string()),  # why a row has no reward; its other columns are null
]


class Tokens(NamedTuple):
    """One row as token ids. `cut`: tokens left out at the answer's end; `error`: None, or why it has no reward."""

    ids: list[int]
    types: list[int]
    cut: int
    error: str | None


class Rewards:
    """The stage `rewards`: the reward of every answer given everything before it.

    Several turns: as a pair the question is all text before the last assistant message, earlier answers among it; in
    a chat template it is the conversation.

    Args:
        model: folder or Hugging Face id of a classifier with one output and safetensors weights; its code is never
            run.
        max_tokens: longest input; lowered to what the model can take.
        template: "pair": (system text and prompt, answer) as the tokenizer joins two texts; "chat": the model's own
            chat template; "auto": chat where there is one.
        too_long: "cut" the answer at its end, or make the row an "error".
        precision: of weights and layers. "auto": see `engine.models.encoder.resolve_precision`.
        device: "cpu", "cuda", or "auto": cuda when there is one.
        weights: fingerprint that the model's files must have; "" accepts any.
        answer: column of the answer: "response", the row's own, or "answer", what a generator wrote.

    Raises:
        EnvironmentProblem: E320, the model cannot be loaded; E321, it is not the one of `weights`.
        ConfigError: E231, its tokenizer has no padding token or no fast form; E230, it has no chat template; E233, it
            is not a reward model.
    """

    columns_in: ClassVar[tuple[str, ...]] = (MESSAGES, TOOLS, SYSTEM, PROMPT)  # and the column of the answer

    def __init__(
        self,
        model: str,
        max_tokens: int = 2048,
        template: Literal["auto", "pair", "chat"] = "auto",
        too_long: Literal["cut", "error"] = "cut",
        precision: Precision = "auto",
        device: str = "auto",
        weights: str = "",
        answer: str = RESPONSE,
    ) -> None:
        import torch

        folder = checked_folder(model, weights)
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.tokenizer, self.network = _load(
            model, folder, getattr(torch, resolve_precision(precision, self.device)), self.device
        )
        self.chat = bool(self.tokenizer.chat_template) if template == "auto" else template == "chat"
        if self.chat and not self.tokenizer.chat_template:
            raise ConfigError(
                f"the reward model {model!r} has no chat template", fix="set template to pair", code="E230"
            )
        self.too_long, self.answer = too_long, answer
        positions = getattr(self.network.config.get_text_config(), "max_position_embeddings", None) or max_tokens
        self.max_tokens = int(min(max_tokens, self.tokenizer.model_max_length, positions))
        self.has_types = (getattr(self.network.config, "type_vocab_size", 0) or 0) > 1

    def __call__(self, table: pa.Table) -> pa.Table:
        """N rows with `columns_in` and the answer; returns REWARD_COLUMNS."""
        rows = self.tokenize(table)
        reward_N = np.full(len(rows), np.nan, np.float32)
        good = np.array([i for i, row in enumerate(rows) if row.error is None], np.int64)
        if len(good):
            reward_N[good] = self._score([rows[i] for i in good])
        finite_N = np.isfinite(reward_N)
        errors = [
            row.error if row.error or ok else "the model's reward is not a finite number"
            for row, ok in zip(rows, finite_N, strict=True)
        ]
        lengths_N2 = np.array([[len(row.ids), row.cut] for row in rows], np.int32).reshape(-1, 2)
        columns = [pa.array(array, mask=~finite_N) for array in (reward_N, lengths_N2[:, 0], lengths_N2[:, 1])]
        return pa.table([*columns, pa.array(errors, pa.large_string())], schema=pa.schema(REWARD_COLUMNS))

    def tokenize(self, table: pa.Table) -> list[Tokens]:
        """The rows as they will be scored."""
        columns = [table[name].to_pylist() for name in (*self.columns_in, self.answer)]
        found = [self._texts(*row) for row in zip(*columns, strict=True)]
        backend, inputs = self.tokenizer.backend_tokenizer, [one for one in found if not isinstance(one, Tokens)]
        texts = [one.text for one in inputs]
        encodings = iter(zip(inputs, backend.encode_batch(texts, add_special_tokens=not self.chat), strict=True))
        return [one if isinstance(one, Tokens) else self._fitted(*next(encodings)) for one in found]

    def _texts(self, messages: str, tools: str, system: str, prompt: str, answer: str | None) -> Text | Tokens:
        """What the tokenizer is given, or an error row."""
        from jinja2 import TemplateError

        if answer is None:
            return _no_reward("there is no answer")
        if not self.chat:
            return Text(("\n".join(filter(None, (system, prompt))), answer), (0, 0))
        turns = json.loads(messages)
        if self.answer == ANSWER:
            turns[-1] = {"role": "assistant", "content": answer}
        try:
            text = self.tokenizer.apply_chat_template(turns, tools=json.loads(tools) if tools else None, tokenize=False)
        except (TemplateError, ValueError, TypeError) as error:
            return _no_reward(f"the chat template refuses the row: {error}")
        start = text.rfind(answer.strip())  # templates may strip it
        return Text(text, (start, start + len(answer.strip())) if start >= 0 else (0, 0))

    def _fitted(self, text: Text, encoding: Any) -> Tokens:
        """The row within `max_tokens`: the last tokens of the answer are left out, what follows it stays."""
        excess = len(encoding.ids) - self.max_tokens
        if excess <= 0:
            return Tokens(encoding.ids, encoding.type_ids, 0, None)
        if isinstance(text.text, tuple):
            answer = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
        else:
            low, high = text.answer
            answer = [i for i, (start, end) in enumerate(encoding.offsets) if low <= start < high and end <= high]
        if self.too_long == "error" or len(answer) <= excess:
            room = "" if self.too_long == "error" else " and nothing of the answer would be left"
            return _no_reward(f"{len(encoding.ids)} tokens are more than {self.max_tokens}{room}")
        cut = slice(answer[-1] + 1 - excess, answer[-1] + 1)
        ids, types = list(encoding.ids), list(encoding.type_ids)
        del ids[cut], types[cut]
        return Tokens(ids, types, excess, None)

    def _score(self, rows: list[Tokens]) -> np.ndarray:
        """(N,) float32."""
        lengths_N = np.array([len(row.ids) for row in rows], np.int64)
        count_tokens(lengths_N.sum())
        batches = list(fixed_batches(lengths_N, self.max_tokens, BATCH_TOKENS[self.device]))
        forward = functools.partial(self._forward, [row.ids for row in rows], [row.types for row in rows])
        results = map_batches_on_cpu(forward, batches) if self.device == "cpu" else map(forward, batches)
        reward_N = np.empty(len(rows), np.float32)
        for batch, reward_B in zip(batches, results, strict=True):
            reward_N[batch.rows] = reward_B
        return reward_N

    def _forward(self, ids: list[list[int]], types: list[list[int]], batch: Batch) -> np.ndarray:
        """(n,) float32 of the n rows of a batch."""
        import torch

        ids_BL, mask_BL = pad_batch(ids, batch, self.tokenizer.pad_token_id)
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if self.has_types:
            inputs["token_type_ids"] = pad_batch(types, batch, 0)[0]
        with torch.inference_mode():
            found = self.network(**{name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()})
            return found.logits[: len(batch.rows), 0].float().cpu().numpy()


class Text(NamedTuple):
    """What the tokenizer is given, and where the answer stands in it when it is one text."""

    text: str | tuple[str, str]
    answer: tuple[int, int]


def _no_reward(why: str) -> Tokens:
    return Tokens([], [], 0, why)


def _load(model: str, folder: str, dtype: Any, device: str) -> tuple[Any, Any]:
    """Tokenizer and classifier in evaluation mode."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, use_fast=True)
        network, facts = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot load the reward model {model!r}",
            where=folder,
            why=str(error).splitlines()[0],
            fix="it needs config.json, tokenizer.json and safetensors weights of an architecture in transformers",
            code="E320",
        ) from error
    why = ""
    if network.config.num_labels != 1:
        why = f"it has {network.config.num_labels} outputs, and a reward is one number"
    elif facts["missing_keys"]:
        why = f"its weights lack {sorted(facts['missing_keys'])[0]}, which would be random numbers"
    if why:
        raise ConfigError(f"{model!r} is not a reward model", why=why, fix="choose another model", code="E233")
    if tokenizer.pad_token_id is None or not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer of {model!r} has no padding token or no fast form",
            fix="choose another reward model, or name a padding token in its tokenizer_config.json",
            code="E231",
        )
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    # A causal model reads its score off the last token that is not padding.
    network.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    network.config.use_cache = False
    return tokenizer, network.to(device).eval()
