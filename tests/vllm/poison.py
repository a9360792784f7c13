"""A logits processor for vLLM that raises, or hangs, at a prompt with a certain character: rows that kill engines."""

from __future__ import annotations

import time
from typing import Any

from transformers import AutoTokenizer
from vllm.v1.sample.logits_processor import LogitsProcessor  # pyright: ignore[reportMissingImports]

from tests.vllm.engines import HANGS, RAISES


class Poison(LogitsProcessor):
    """Named in `engine_args.logits_processors`; lives in the engine's process."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        for _, _, prompt, _ in batch_update.added if batch_update else ():
            text = self.tokenizer.decode(prompt or [])
            if RAISES in text:
                raise RuntimeError("poison")
            if HANGS in text:
                time.sleep(3600)

    def apply(self, logits: Any) -> Any:
        return logits
