"""What a causal language model sees before a response, as token ids: with the prompt, and with the marker alone.

Both contexts end where the response begins, so one tokenisation of the response follows either of them and both passes
score exactly the same tokens. (Published code tokenises prompt plus response as one text, looks for the response in it
and is off by a token where the two merge.) The response is text of its own: no token spans its border, and no
end-of-turn token belongs to it. It refuses to know models, scores and recipes.

`alpaca` is the prompt of Cherry_LLM (Li et al., arXiv 2308.12032), `plain` that of Superfiltering (arXiv 2402.00530).
"""

from __future__ import annotations

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
        ConfigError: E230, the tokenizer has no token to start with.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
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
        """Token ids that stand before a row's response, at least one.

        Args:
            messages, tools, system, prompt: the row's columns of that name.

        Raises:
            jinja2.TemplateError, ValueError, TypeError: the chat template refuses the conversation.
        """
        if self.template == "chat":
            text = self.render(json.loads(messages)[:-1], json.loads(tools) if tools else None)
            return self.encode(text) or self.alone
        if self.template == "alpaca":
            text = f"{system or _ALPACA_OPENING}\n\n### Instruction:\n{prompt}\n\n{_ALPACA_MARKER}"
        else:
            text = "".join(f"{part}\n" for part in (system, prompt) if part)
        return [*self.start, *self.encode(text)] or self.alone

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
            closed, opened = (self.render(turns, opened=flag) for flag in (False, True))
        except (TemplateError, ValueError, TypeError) as error:
            raise ConfigError(
                "the chat template cannot write a single user message",
                why=str(error),
                fix="set recipe.template to alpaca or plain",
                code="E230",
            ) from error
        return self.encode(opened), opened.removeprefix(closed) if opened.startswith(closed) else ""
