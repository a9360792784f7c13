"""What the tests of whole runs share: a small pool, its settings, both runtimes, and the files that must be equal."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

from engine.config import RunConfig
from engine.job import execute
from engine.local import LocalRuntime
from engine.settings import load_config
from engine.store import Store

SMALL = [
    "data.part_rows=24", "budget=40", "recipe.clusters=8", "recipe.diverse_fraction=0.7", "recipe.max_rounds=3",
    "recipe.inference_steps=3", "recipe.part_rows=16", "output.report=false",
]  # fmt: skip

FINE = ("data.part_rows=3", "recipe.part_rows=4")  # many parts, so that there is a middle to lose a node in


def make_tiny_encoder(folder: Path, texts: list[str]) -> Path:
    """A BERT of 32 dimensions, random weights and a vocabulary of the given texts: real in every part, and fast."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    words = {word for text in texts for word in re.findall(r"\w+", text.lower())}
    letters = {letter for word in words for letter in word}
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted(words | letters),
        *sorted(f"##{x}" for x in letters),
    ]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def settings(pool: Path, out: Path | str, *overrides: str) -> list[str]:
    """Command-line arguments of a small run; the tiny encoder lies beside the pool."""
    return [
        str(pool),
        f"out={out}",
        f"encoder.model={pool.parent / 'encoder'}",
        "encoder.max_tokens=64",
        *SMALL,
        *overrides,
    ]


def config_for(pool: Path, out: Path | str, *overrides: str) -> RunConfig:
    return load_config("iterselect", settings(pool, out, *overrides))


def run_local(config: RunConfig, observer: Any, shards: int = 1) -> dict[str, Any]:
    return execute(config, Store(config.out), LocalRuntime(observer, shards=shards), {})


def run_ray(config: RunConfig, observer: Any, workers: int | None, shards: int | None) -> dict[str, Any]:
    """On the cluster that is up already."""
    from actors.cluster import plan, resources
    from actors.runtime import RayRuntime

    want = config.runtime.model_copy(update={"workers": workers, "shards": shards})
    return execute(config, Store(config.out), RayRuntime(plan(resources(), want), observer), {})


def output_names(out: Path) -> list[str]:
    """Every output file a user takes away, but for the card and the manifest, which name the run."""
    kept = [
        *out.glob("data/*"),
        *out.glob("scores/*"),
        out / "ids.txt",
        out / "rejected.jsonl",
        out / "dataset_info.json",
    ]
    return sorted(str(path.relative_to(out)) for path in kept)


def outputs(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in output_names(out)}


def wait_for_parts(out: Path, step: str, parts: int, process: subprocess.Popen[Any]) -> None:
    """Until a step has so many parts; it must not be complete then."""
    while len(list(out.glob(f"{step}-*/*.commit"))) < parts:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    assert not list(out.glob(f"{step}-*/step.json")), f"{step} was over too soon"
