"""Token scores on vLLM: the columns of engine/models/token_scores.py, for models that need more than one pass's memory.

vLLM returns a log-probability for every token of a prompt (`prompt_logprobs`). Two numbers a row leave this file: the
means over the response's tokens, after the prompt and without it. Rows are tokenised and cut as in the other way, so
the scores agree to the precision of the layers; they have other bits, since vLLM batches as requests come.

It refuses to know what a score is good for, and which GPUs there are.

Shape letters: N rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from engine.errors import ConfigError, EnvironmentProblem
from engine.models.contexts import Contexts, Template
from engine.models.encoder import Precision, checked_folder, resolve_precision
from engine.models.token_rows import COLUMNS_IN, Tokens, score_table, tokenize_rows
from engine.models.vllm_installed import require_vllm
from engine.work import count_tokens

_CPU_KV_CACHE_BYTES = 256 << 20  # requests in work at a time need no more; vLLM refuses to choose on a CPU


class VllmTokenScores:
    """The stage `token_scores` on vLLM's engine, inside this process.

    What is scored is the text of the last assistant message given everything before it, earlier answers among it. A
    response is cut where context and response exceed `max_tokens`, which is lowered to one less than the model's
    positions, since vLLM always generates a token.

    Args:
        model: folder or Hugging Face id of a causal language model.
        max_tokens: longest context plus response.
        template: see `Contexts`.
        precision: of weights, layers and logits; what follows is float32.
        device: "cpu" or "cuda", as vLLM was built for.
        weights: fingerprint that the model's files must have; "" accepts any.
        engine_args: arguments of vLLM's engine.

    Raises:
        EnvironmentProblem: E350, vLLM is not installed; E320, the model is not here; E321, it is not the one of
            `weights`; E351, the engine does not start.
        ConfigError: E230 or E231, the tokenizer will not do (see `Contexts`); E236, vLLM does not take the arguments.
    """

    columns_in: ClassVar[tuple[str, ...]] = COLUMNS_IN

    def __init__(
        self,
        model: str,
        max_tokens: int = 1024,
        template: Template = "chat",
        precision: Precision = "auto",
        device: str = "cuda",
        weights: str = "",
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        require_vllm("recipe.backend is vllm", "backend transformers")
        folder = checked_folder(model, weights)
        from transformers import AutoConfig, AutoTokenizer

        self.contexts = Contexts(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), template)
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        positions = getattr(shape, "max_position_embeddings", None) or max_tokens + 1
        self.max_tokens = min(max_tokens, positions - 1)
        self.llm = _engine(
            {
                **(_CPU_ARGS if device == "cpu" else {}),
                "enable_prefix_caching": False,  # a prompt whose log-probabilities are wanted is never taken from it
                **(engine_args or {}),
                "model": folder,
                "dtype": resolve_precision(precision, device),
                "max_model_len": self.max_tokens + 1,
            },
            device,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """N rows with `columns_in`; returns `TOKEN_SCORE_COLUMNS`."""
        rows = tokenize_rows(self.contexts, table, self.max_tokens)
        good = [number for number, row in enumerate(rows) if row.error is None]
        nll_N2 = np.full((len(rows), 2), np.nan)
        if good:
            chosen = [rows[number] for number in good]
            nll_N2[good, 0] = self._means([row.context for row in chosen], chosen)
            nll_N2[good, 1] = self._means([self.contexts.alone] * len(chosen), chosen)
        return score_table(rows, nll_N2)

    def _means(self, contexts: list[list[int]], rows: list[Tokens]) -> np.ndarray:
        """(n,) float64 mean NLL of n responses after their contexts."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        prompts = [{"prompt_token_ids": [*context, *row.response]} for context, row in zip(contexts, rows, strict=True)]
        count_tokens(sum(len(prompt["prompt_token_ids"]) for prompt in prompts))
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        found = self.llm.generate(prompts, params, use_tqdm=False)
        means = []
        for output, context, row in zip(found, contexts, rows, strict=True):
            scored = output.prompt_logprobs[len(context) :]
            means.append(-np.mean([at[token].logprob for at, token in zip(scored, row.response, strict=True)]))
        return np.array(means, np.float64)


_CPU_ARGS = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": _CPU_KV_CACHE_BYTES,
    "distributed_executor_backend": "uni",
}


def _engine(args: dict[str, Any], device: str) -> Any:
    """vLLM's engine in this process. It reads its environment when it is imported."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # other workers share the processors
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    try:
        return LLM(**args)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "vLLM does not take these engine arguments",
            why=str(error).strip().splitlines()[-1],
            fix="see recipe.engine_args and vLLM's documentation",
            code="E236",
        ) from error
    except RuntimeError as error:
        raise EnvironmentProblem(
            "vLLM's engine does not start",
            why=str(error).strip().splitlines()[-1],
            fix="`iterselect doctor` checks versions; a model too large for one GPU needs tensor_parallel_size",
            code="E351",
        ) from error
