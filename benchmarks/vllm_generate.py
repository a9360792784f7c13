"""Output tokens/s of the vLLM stage against bare `LLM.generate`, and what several parts in flight are worth.

    python -m benchmarks.vllm_generate [--rows 1000] [--rounds 3] [--model FOLDER] [--out RECORD.json]

Throughput: the same prompts, the same number of tokens each, the same engine arguments, in interleaved rounds; the
stage also parses rows, writes the chat template and tokenises, the bare engine gets token ids. Tail filling: parts
with a few answers many times longer than the others, one part at a time against four, on one engine. Without --model
a Llama of random weights is made. Needs vLLM. Targets: 0.9 of the bare engine, and more than 1 for four parts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.record import paired, write_record

TARGET = 0.9
TOKENS, LONG_TOKENS, PART_ROWS, LONG_SHARE = 64, 768, 64, 0.05
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
}


def rows_of(prompts: list[str]) -> pa.Table:
    """Rows as the stage reads them."""
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "x"}] for text in prompts]
    ids = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in prompts]
    return pa.table({"id": ids, "messages": [json.dumps(one) for one in turns], "tools": [""] * len(prompts)})


def stage_with(model: str, seqs: int, **sampling: Any) -> Any:
    from engine.models.vllm_stages import Serving, VllmGenerator

    serving = Serving(
        name="answer",
        args={**engine_args(model), "max_num_seqs": seqs},
        sampling={"temperature": 0.0, **sampling},
        hang_s=600.0,
        give_up_after_s=3600.0,
        seed=0,
    )
    return VllmGenerator(serving, None)


def engine_args(model: str) -> dict[str, Any]:
    return {"model": model, "max_model_len": 1024, "kv_cache_memory_bytes": 1 << 30, "enable_prefix_caching": False}


def against_bare(model: str, prompts: list[str], rounds: int, seqs: int) -> dict[str, Any]:
    """Both do the same number of tokens, so their times compare as tokens/s do."""
    stage = stage_with(model, seqs, max_tokens=TOKENS, ignore_eos=True)
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    table = rows_of(prompts)
    texts = [stage.text([{"role": "user", "content": text}], None) for text in prompts]
    inputs = [{"prompt_token_ids": tokens} for tokens in stage.encode(texts)]
    bare = LLM(**engine_args(model), max_num_seqs=seqs, enforce_eager=True, distributed_executor_backend="uni")
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)

    def ours() -> int:
        return sum(stage(table)["tokens_out"].to_pylist())

    def theirs() -> int:
        return sum(len(one.outputs[0].token_ids) for one in bare.generate(inputs, sampling, use_tqdm=False))

    tokens = ours()
    assert tokens == theirs() == TOKENS * len(prompts)
    times = paired(ours, theirs, rounds)
    stage.close()
    return {
        "tokens": tokens,
        "ours_tokens_per_s": tokens / times["first_s"]["median"],
        "bare_tokens_per_s": tokens / times["second_s"]["median"],
        **times,
    }


def tail_filling(model: str, prompts: list[str], rounds: int) -> dict[str, Any]:
    """Four parts in flight against one, on prompts of which few have very long answers.

    Which ones have is found out first: answers end at a letter that some answers of this model never come to.
    """
    pilot = stage_with(model, PART_ROWS, max_tokens=LONG_TOKENS, ignore_eos=True)
    letter = rare_letter(pilot(rows_of(prompts[:PART_ROWS]))["answer"].to_pylist())
    pilot.close()
    stage = stage_with(model, PART_ROWS, max_tokens=LONG_TOKENS, stop=[letter], ignore_eos=True)
    lengths = stage(rows_of(prompts))["tokens_out"].to_pylist()
    long = [text for text, tokens in zip(prompts, lengths, strict=True) if tokens == LONG_TOKENS]
    short = [text for text, tokens in zip(prompts, lengths, strict=True) if tokens <= LONG_TOKENS // 4]
    each = max(1, round(LONG_SHARE * PART_ROWS))
    parts = min(8, len(long) // each, len(short) // (PART_ROWS - each))
    assert parts >= 2, f"{len(long)} long and {len(short)} short answers are too few: raise --rows"
    tables = [
        rows_of(
            long[part * each : (part + 1) * each] + short[part * (PART_ROWS - each) : (part + 1) * (PART_ROWS - each)]
        )
        for part in range(parts)
    ]

    def run(at_a_time: int) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(at_a_time) as pool:
            return [row for table in pool.map(stage, tables) for row in table.to_pylist()]

    same = run(1) == run(4)
    times = paired(lambda: run(4), lambda: run(1), rounds)
    stage.close()
    return {"parts": parts, "part_rows": PART_ROWS, "long_rows_per_part": each, "same_answers": same, **times}


def rare_letter(answers: list[str]) -> str:
    """The letter that is missing from a share of the answers nearest to twice LONG_SHARE."""
    letters = sorted({letter for text in answers for letter in text if letter.isalpha()})
    missing = {letter: sum(letter not in text for text in answers) / len(answers) for letter in letters}
    return min(letters, key=lambda letter: (abs(missing[letter] - 2 * LONG_SHARE), letter))


def measure(model: str, rows: int, rounds: int) -> dict[str, Any]:
    """Figures of one comparison; prints nothing."""
    prompts = [f"Tell me about the number {number} in {number % 7} words." for number in range(rows)]
    return {
        "rows": rows,
        "tokens_each": TOKENS,
        "throughput": against_bare(model, prompts, rounds, 256),
        "tail": tail_filling(model, prompts, rounds),
    }


def make_model(folder: Path) -> Path:
    """A Llama of some 20 million random weights with a tokenizer and a chat template."""
    from tests.token_models import make_tiny_llama

    texts = (Path(__file__).parents[1] / "examples" / "pool.jsonl").read_text(errors="replace").splitlines()[:300]
    return make_tiny_llama(folder, texts, positions=2048, vocabulary=4000, initializer_range=0.1, **SHAPE)


def main() -> None:
    parser = argparse.ArgumentParser(description="The vLLM stage against bare LLM.generate.")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="folder of a model; default: one of random weights")
    parser.add_argument(
        "--out", type=Path, help="where the record goes; default: benchmarks/records/vllm_generate.json"
    )
    arguments = parser.parse_args()

    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or str(make_model(Path(folder) / "llama"))
        result: dict[str, Any] = measure(model, arguments.rows, arguments.rounds) | {"load_before": load}
    for name, label in (("throughput", "stage against LLM.generate"), ("tail", "four parts against one")):
        ratio = result[name]["ratio"]
        print(f"{label:30} {ratio['median']:6.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})")
    result["reached"] = result["throughput"]["ratio"]["median"] >= TARGET and result["tail"]["ratio"]["median"] > 1.0
    print(
        "targets reached" if result["reached"] else "targets missed",
        "->",
        write_record("vllm_generate", result, arguments.out),
    )


if __name__ == "__main__":
    main()
