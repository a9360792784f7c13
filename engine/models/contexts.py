"""What a causal language model sees before a response, as token ids: with the prompt, and with the marker alone.

Prompt and response are tokenised once, as one text, as they are in training. A token belongs to the response when it
starts there (by the tokenizer's offsets), so one that spans the border belongs to the context, and no end-of-turn token
is scored. The same response tokens follow the context without prompt, so both passes score exactly the same tokens.
(Published code tokenises the prompt a second time and is off by a token where the two texts merge.) It refuses to know
models, scores and recipes.

`alpaca` is the prompt of Cherry_LLM (Li et al., arXiv 2308.12032), `plain` that of Superfiltering (arXiv 2402.00530).
"""

from __future__ import annotations

import bisect
import json
from typing import Any, Literal

from engine.errors import ConfigError

Template = Literal["chat", "alpaca", "plain"]

_ALPACA_OPENING = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_ALPACA_MARKER = "### Response:"


class Contexts:
    """Contexts of responses in one template.

    Several turns: everything before the last assistant message is the prompt, earlier answers among it.

    Args:
        tokenizer: of the model; special tokens are placed here, never by it.
        template: "chat": the model's own chat template, and "plain" for a model without one. "alpaca": the system
            text or the usual opening, "### Instruction:", the prompt, "### Response:". "plain": system text and
            prompt, a line each, without a marker.

    Attributes:
        alone: token ids that stand before a response without its prompt: the start token (bos, else eos; in a chat
            template only where the template puts a bos, or where there would be nothing) and the response marker, in
            a chat template what opens the assistant's turn.

    Raises:
        ConfigError: E230, the tokenizer has no token to start with; E231, it cannot say where its tokens stand.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                "the tokenizer has no fast form, which alone says where in a text its tokens stand",
                fix="choose a model with a tokenizer.json",
                code="E231",
            )
        self.tokenizer = tokenizer
        self.template = "plain" if template == "chat" and not tokenizer.chat_template else template
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.start = [token for token in (bos, eos) if token is not None][:1]
        if self.template == "chat":
            opened, marker = self._opening()
            starts = opened[:1] == [bos]
            self.alone = [*([bos] if starts else []), *self.encode(marker)] or self.start
        else:
            self.alone = [*self.start, *self.encode(_ALPACA_MARKER if self.template == "alpaca" else "")]
        if not self.alone:
            raise ConfigError(
                "the tokenizer has neither a bos nor an eos token, so the first token of a response has no score",
                fix="choose a model that has one, or template alpaca",
                code="E230",
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, none added."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, none added."""
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def before(self, messages: str, tools: str, system: str, prompt: str) -> list[int]:
        """Token ids of `text_before` by itself, at least one; for texts that nothing follows directly."""
        start = [] if self.template == "chat" else self.start
        return [*start, *self.encode(self.text_before(messages, tools, system, prompt))] or self.alone

    def split_all(self, before: list[str], responses: list[str]) -> list[tuple[list[int], list[int]]]:
        """Token ids of each context, at least one, and of the response that follows it.

        Args:
            before: from `text_before`.
            responses: texts that follow them directly.
        """
        if not before:
            return []
        texts = [context + response for context, response in zip(before, responses, strict=True)]
        found = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = []
        for ids, spans, context in zip(found["input_ids"], found["offset_mapping"], before, strict=True):
            border = bisect.bisect_left(spans, len(context), key=lambda span: span[0])
            start = [] if self.template == "chat" else self.start
            pairs.append(([*start, *ids[:border]] or self.alone, ids[border:]))
        return pairs

    def text_before(self, messages: str, tools: str, system: str, prompt: str) -> str:
        """The text that stands before a row's response, without the start token of alpaca and plain.

        Args:
            messages, tools, system, prompt: the row's columns of that name.

        Raises:
            jinja2.TemplateError, ValueError, TypeError: the chat template refuses the conversation.
        """
        if self.template == "chat":
            return self.render(json.loads(messages)[:-1], json.loads(tools) if tools else None, opened=True)
        if self.template == "alpaca":
            return f"{system or _ALPACA_OPENING}\n\n### Instruction:\n{prompt}\n\n{_ALPACA_MARKER}"
        return "".join(f"{part}\n" for part in (system, prompt) if part)

    def render(self, turns: list[Any], tools: Any = None, opened: bool = True) -> str:
        """Messages in the model's chat template; `opened`: up to where the assistant's answer begins.

        Raises:
            jinja2.TemplateError, ValueError, TypeError: the template refuses them.
        """
        return self.tokenizer.apply_chat_template(turns, tools=tools, add_generation_prompt=opened, tokenize=False)

    def _opening(self) -> tuple[list[int], str]:
        """Token ids of a short conversation, and what the template adds to it to open the assistant's turn."""
        from jinja2 import TemplateError

        turns = [{"role": "user", "content": "x"}]
        try:
            closed, opened = (self.render(turns, None, opened=flag) for flag in (False, True))
        except (TemplateError, ValueError, TypeError) as error:
            raise ConfigError(
                "the chat template cannot write a single user message",
                why=str(error),
                fix="set recipe.template to alpaca or plain",
                code="E230",
            ) from error
        return self.encode(opened), opened.removeprefix(closed) if opened.startswith(closed) else ""
