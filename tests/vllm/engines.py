"""What the tests on real engines share: settings, stages, and the processes of an engine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from engine.artifacts import Step
from engine.models.vllm_stages import Serving
from engine.store import Store

RAISES, HANGS = "☠", "⌛"  # what tests/vllm/poison.py does at a prompt with it
ARGS = {"dtype": "float32", "kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16}


def serving(model: Path, log: Store | None = None, max_tokens: int = 16, **changes: Any) -> Serving:
    """A stage's engine; `changes` go to the engine's arguments."""
    return Serving(
        name="answer",
        args={"model": str(model), "max_model_len": 256, **ARGS, **changes},
        sampling={"temperature": 0.0, "max_tokens": max_tokens},
        hang_s=120.0,
        give_up_after_s=600.0,
        seed=0,
        log=log,
    )


def row_id(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def rows_of(prompts: list[str]) -> pa.Table:
    """Rows as the generator reads them."""
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "x"}] for text in prompts]
    columns = {
        "id": [row_id(number) for number in range(len(prompts))],
        "messages": [json.dumps(one) for one in turns],
        "tools": [""] * len(prompts),
    }
    return pa.table(columns)


def engine_processes() -> list[psutil.Process]:
    """vLLM's engine processes among the descendants of this one."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if "VLLM::" in one.name() and one.status() != psutil.STATUS_ZOMBIE]


def engine_events(store: Store) -> list[dict[str, Any]]:
    """What was noted about engines, in the order of time."""
    names = store.list("engines") if store.exists("engines") else []
    events = [json.loads(store.read_bytes(f"engines/{name}")) for name in names]
    return sorted(events, key=lambda event: event["at"])


def round_tables(out: Path, name: str) -> list[list[dict[str, Any]]]:
    """The rows of a round's `answers` or `verdicts`, round by round."""
    store = Store(out)
    found = []
    for number in store.list("rounds"):
        (folder,) = [one for one in store.list(f"rounds/{number}") if one.startswith(f"{name}-")]
        found.append(Step.at(store, f"rounds/{number}/{folder}").read_all().to_pylist())
    return found


def labels(out: Path) -> list[list[tuple[Any, ...]]]:
    """Everything but the probabilities, whose last bits may depend on what ran beside a row."""
    kept = ("row", "hard", "verdict", "first", "second", "canary", "suspect", "error")
    return [[tuple(row[name] for name in kept) for row in table] for table in round_tables(out, "verdicts")]


def choices(model: Path, small_pool: Path, replicas: int) -> list[str]:
    """Overrides of a small run with generator and judge on vLLM."""
    args = ", ".join(f"{name}: {value}" for name, value in ARGS.items())
    common = f"kind: vllm, model: {model}, gpus: 0, replicas: {replicas}, engine_args: {{{args}}}"
    return [
        f"encoder.model={small_pool.parent / 'encoder'}",
        f"recipe.generator={{{common}, max_model_len: 1024, max_tokens: 24}}",
        f"recipe.judge={{{common}, max_model_len: 4096, canaries: 0.2}}",
        "recipe.inconsistent=hard",
        "recipe.soft_labels=false",  # log-probabilities differ in their last bits with what else is in the batch
        "recipe.part_rows=4",
        "max_failed=0.5",
    ]


def prompts(num: int) -> list[str]:
    """Prompts that differ."""
    return [f"Tell me about the number {number} in {number % 7} words." for number in range(num)]


def poisoned(texts: list[str], share: float) -> tuple[list[str], dict[int, str]]:
    """The prompts with a share of poison of four kinds spread over them; where, and what the error must say."""
    texts, expected = list(texts), {}
    kinds = [("word " * 400, "prompt of "), (" \n", "the prompt is empty"), ("a \ud800 b", "broken Unicode")]
    places = range(3, len(texts), round(1 / share))
    for turn, place in enumerate(places):
        texts[place], expected[place] = kinds[turn % len(kinds)]
    texts[len(texts) // 2], expected[len(texts) // 2] = f"Say {RAISES} now", "the engine dies of this row"
    return texts, expected


def check_poisoned(found: list[dict[str, Any]], undisturbed: list[dict[str, Any]], expected: dict[int, str]) -> None:
    """Exactly the poison rows are error rows, and every other one is as without them."""
    failed = {row: one["error"] for row, one in enumerate(found) if one["error"] is not None}
    assert failed.keys() == expected.keys()
    assert all(error.startswith(expected[row]) for row, error in failed.items())
    assert [found[row] for row in range(len(found)) if row not in failed] == [
        one for row, one in enumerate(undisturbed) if row not in failed
    ]
