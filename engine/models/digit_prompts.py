"""Prompts that a language model answers with one digit: what it is asked, as versioned files that can be replaced.

A file `prompt_files/<name>/v<N>.yaml`, or a user's own, holds the text before the digit, with {prompt} and {response}
where a row's texts go, and the scale 1..K. The texts go in as they are, in one pass, so a row that contains
"{response}" changes nothing; a row that asks for a high rating is not defended against, as it is with a paid judge.
It knows nothing of tokens and models.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, model_validator

from engine.config_base import Strict
from engine.config_loader import validate
from engine.judging.prompts import find_prompt
from engine.yaml_document import load_yaml

_FOLDER = Path(__file__).parent / "prompt_files"
_FIELDS = re.compile(r"\{(prompt|response)\}")


class DigitPrompt(Strict):
    """A checked prompt file."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="Small letters, digits and hyphens")
    version: int = Field(ge=1, description="Raised with every change of the text")
    source: str = Field(description="Where its form comes from")
    scale: int = Field(ge=2, le=9, description="K: the ratings are 1 to K, one digit each")
    text: str = Field(description="What is asked, with {prompt} and, if it is judged, {response}")
    opening: str = Field(default="", description="Begins the answer: a line after the text, or the assistant's turn")

    @model_validator(mode="after")
    def _has_fields(self) -> DigitPrompt:
        used = _FIELDS.findall(self.text)
        if not used or len(set(used)) < len(used):
            raise ValueError("`text` needs {prompt} or {response} or both, each once")
        if not self.opening and _FIELDS.search(self.text[-len("{response}") :]):
            raise ValueError("without `opening`, `text` must end with words of its own, such as 'Rating:'")
        return self

    def render(self, prompt: str, response: str) -> str:
        """The text for one row."""
        texts = {"prompt": prompt, "response": response}
        return _FIELDS.sub(lambda found: texts[found[1]], self.text)


def load_digit_prompt(spec: str) -> DigitPrompt:
    """A prompt by "name/v1", by "name" (its newest version) or by the path of a file.

    Raises:
        ConfigError: E250, no such prompt or file; E200, something in the file is wrong, with file:line.
    """
    return validate(DigitPrompt, load_yaml(find_prompt(spec, _FOLDER, ".yaml")))
