"""Answers of a model: the transformers generator beside plain `generate` in the order of the rows, and vLLM's stage
beside bare `LLM.generate` where vLLM is installed. Models of random weights; all write the same number of tokens."""

from __future__ import annotations

import importlib.util
import json

import pyarrow as pa

from benchmarks import vllm_generate
from benchmarks.figures import Figure, Measured, Scope, against_peer
from benchmarks.record import paired

BATCH, TOKENS = 8, 32


def measure(scope: Scope) -> Measured:
    """Texts of mixed lengths: ours sorts a part by length, so batches have little padding."""
    from engine.models.generators import TransformersGenerator, chat_text

    rows = scope.rows or 128
    model = str(vllm_generate.make_model(scope.folder / "llama"))
    ours = TransformersGenerator(model, TOKENS, 1024, "float32", BATCH)
    ours.model.generation_config.min_new_tokens = TOKENS
    prompts = [f"Tell me {'more and more ' * (number * 7 % 23)}about {number}." for number in range(rows)]
    table = vllm_generate.rows_of(prompts)
    turns = [json.loads(text)[:-1] for text in table["messages"].to_pylist()]
    texts = [chat_text(ours.tokenizer, turn, None) for turn in turns]

    def theirs() -> list[str]:
        answers = []
        for start in range(0, rows, BATCH):
            inputs = ours.tokenizer(
                texts[start : start + BATCH], padding=True, return_tensors="pt", add_special_tokens=False
            )
            written = ours.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, pad_token_id=1)
            answers += ours.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :])
        return answers

    pair = paired(lambda: ours(pa.table(table)), theirs, scope.rounds)
    figures = [
        *against_peer("transformers, rows as they come", pair),
        Figure("tokens/s", round(rows * TOKENS / pair["first_s"]["median"]), "tokens/s", "higher"),
    ]
    facts = {"rows": rows, "tokens_each": TOKENS, "pair": pair}
    if importlib.util.find_spec("vllm"):
        found = vllm_generate.measure(model, rows, scope.rounds)
        figures += against_peer("bare LLM.generate", found["throughput"], vllm_generate.TARGET)
        facts["vllm"] = found
    return Measured(figures, facts)
