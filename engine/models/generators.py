"""Generators that run in the worker: the model's own answer to a prompt.

The ones on vLLM and on an OpenAI-compatible endpoint implement the same stage contract elsewhere: the conversation up
to the last assistant message in, `answer` and `error` out.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import TemplateError

from engine.errors import EnvironmentProblem
from engine.schema import ANSWER, ERROR, MESSAGES, TOOLS
from engine.work import count_tokens

REFUSALS = (TemplateError, ValueError, TypeError)  # what a chat template raises for a conversation it cannot write


class TransformersGenerator:
    """Greedy answers of a small causal language model.

    Args:
        model: path or id of the model; its chat template is used when it has one.
        max_new_tokens: longest answer.
        max_prompt_tokens: a row with a longer prompt is an error row, and the model never sees it.
        precision: "float32" or "bfloat16".
        batch_rows: rows answered together, sorted by length. A row's answer may depend on the batch it is in, by
            rounding, as with every generator; keep parts equal to compare runs.

    Raises:
        EnvironmentProblem: the model cannot be loaded.
    """

    columns_in = (MESSAGES, TOOLS)

    def __init__(
        self, model: str, max_new_tokens: int, max_prompt_tokens: int, precision: str, batch_rows: int
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left", trust_remote_code=False)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                model, dtype=getattr(torch, precision), trust_remote_code=False, use_safetensors=True
            ).eval()
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(
                f"cannot load the generator {model!r}",
                why=str(error).splitlines()[0],
                fix="give a local path, or a Hugging Face id while online",
                code="E320",
            ) from error
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.max_new_tokens, self.max_prompt_tokens, self.batch_rows = max_new_tokens, max_prompt_tokens, batch_rows

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = zip(table[MESSAGES].to_pylist(), table[TOOLS].to_pylist(), strict=True)
        checked = [self._checked_prompt(messages, tools) for messages, tools in rows]
        prompts, errors = [prompt for prompt, _ in checked], [error for _, error in checked]
        answers: list[str | None] = [None] * len(prompts)
        fitting = np.array([row for row, error in enumerate(errors) if error is None], dtype=np.int64)
        fitting = fitting[np.argsort([len(prompts[row]) for row in fitting], kind="stable")]
        for start in range(0, len(fitting), self.batch_rows):
            batch = fitting[start : start + self.batch_rows]
            for row, text in zip(batch, self._answer([prompts[row] for row in batch]), strict=True):
                answers[row] = text
        return pa.table([pa.array(answers, pa.large_string()), pa.array(errors, pa.large_string())], [ANSWER, ERROR])

    def _checked_prompt(self, messages: str, tools: str) -> tuple[list[int], str | None]:
        """The prompt and None, or why the model cannot be given it."""
        try:
            prompt = self._prompt(messages, tools)
        except REFUSALS as error:
            return [], f"the chat template refuses the row: {error}"
        fits = len(prompt) <= self.max_prompt_tokens
        return prompt, None if fits else f"prompt of {len(prompt)} tokens is longer than {self.max_prompt_tokens}"

    def _prompt(self, messages: str, tools: str) -> list[int]:
        """Token ids of the conversation without its last message, ready for the model's turn."""
        text = chat_text(self.tokenizer, json.loads(messages)[:-1], json.loads(tools) if tools else None)
        return self.tokenizer(text, add_special_tokens=not self.tokenizer.chat_template)["input_ids"]

    def _answer(self, prompts: list[list[int]]) -> list[str]:
        import torch

        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
            )
        written = output[:, inputs["input_ids"].shape[1] :]
        count_tokens(inputs["attention_mask"].sum() + (written != self.tokenizer.pad_token_id).sum())
        return self.tokenizer.batch_decode(written, skip_special_tokens=True)


def chat_text(tokenizer: Any, turns: list[dict[str, Any]], tools: Any, **options: Any) -> str:
    """A conversation as the model reads it, ready for its turn; a plain one for a model without a chat template.

    Args:
        turns: messages, the last one to be answered.
        tools: tool definitions, or None.
        options: passed to the chat template.

    Raises:
        REFUSALS: the template cannot write the conversation.
    """
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(turns, tools=tools, add_generation_prompt=True, tokenize=False, **options)
    return "\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in turns) + "\nassistant:"
