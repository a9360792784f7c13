"""Encoding speed against sentence-transformers: same model, texts, threads and process, in interleaved rounds.

    python -m benchmarks.encode [--rows 4096] [--rounds 3] [--threads N] [--data FILE] [--out RECORD.json]

Texts are prompts in the order of the file, so short and long ones are mixed. Only a machine without other work gives
figures worth quoting: a busy core slows many threads per batch (theirs) far more than one batch per thread (ours).
Targets: 2.4 times the texts/s of sentence-transformers as it comes (float32, batches of 32), no less than the same in
our precision, and a cosine of at least 0.999 to its float32 vectors.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import paired, write_record

EXAMPLE = Path(__file__).parent.parent / "examples" / "pool.jsonl"
TARGETS = {"sentence-transformers, float32": 2.4, "sentence-transformers, same precision": 1.0}
MIN_COSINE = 0.999


def read_texts(data: Path, rows: int) -> list[str]:
    """First prompts of a Parquet file with instruction and input, or of a JSON Lines file with messages.

    A file with fewer rows is repeated.
    """
    if data.suffix == ".parquet":
        import pyarrow.parquet as pq

        records = pq.read_table(data, columns=["instruction", "input"]).slice(0, rows).to_pylist()
        texts = [f"{record['instruction']}\n{record['input'] or ''}" for record in records]
    else:
        with data.open(encoding="utf-8") as lines:
            texts = [text for text in map(_prompt, itertools.islice(lines, rows)) if text]
    return (texts * -(-rows // len(texts)))[:rows]


def _prompt(line: str) -> str:
    """Texts before the last message; empty for a line that is no conversation, as the example has on purpose."""
    try:
        return "\n".join(turn["content"] for turn in json.loads(line)["messages"][:-1]).encode().decode()
    except (ValueError, TypeError, KeyError):
        return ""


def measure(texts: list[str], rounds: int, threads: int | None) -> dict[str, Any]:
    """Figures of one comparison; prints nothing."""
    import torch
    from sentence_transformers import SentenceTransformer

    from engine.models.encoder import Encoder, resolve_model
    from engine.models.threads import set_threads

    set_threads(threads or torch.get_num_threads())
    ours = Encoder("bundled:minilm")
    precision = ours.identity["precision"]
    folder = resolve_model("bundled:minilm")
    dtypes = {
        "sentence-transformers, float32": torch.float32,
        "sentence-transformers, same precision": getattr(torch, precision),
    }
    vectors_ND = ours.encode(texts).astype(np.float32)
    rivals: dict[str, Any] = {}
    for name, dtype in dtypes.items():
        rival = SentenceTransformer(folder, device=ours.device, model_kwargs={"dtype": dtype})

        def theirs(rival: SentenceTransformer = rival) -> np.ndarray:
            return rival.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)

        times = paired(lambda: ours.encode(texts), theirs, rounds)
        rivals[name] = {
            "ours_texts_per_s": len(texts) / times["first_s"]["median"],
            "theirs_texts_per_s": len(texts) / times["second_s"]["median"],
            "min_cosine": float(_cosine(vectors_ND, theirs()).min()),
            **times,
        }
    return {
        "rows": len(texts),
        "threads": torch.get_num_threads(),
        "device": ours.device,
        "precision": precision,
        "rivals": rivals,
    }


def _cosine(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND.astype(np.float32), axis=1)
    return np.einsum("nd,nd->n", a_ND, b_ND.astype(np.float32)) / norms


def main() -> None:
    parser = argparse.ArgumentParser(description="Encoding speed against sentence-transformers.")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="threads of both; default: torch's own choice")
    parser.add_argument(
        "--data", type=Path, default=EXAMPLE, help="Parquet with instruction and input, or JSON Lines with messages"
    )
    parser.add_argument("--out", type=Path, help="where the record goes; default: benchmarks/records/encode.json")
    arguments = parser.parse_args()

    load = round(os.getloadavg()[0], 2)
    result = measure(read_texts(arguments.data, arguments.rows), arguments.rounds, arguments.threads)
    result |= {"data": arguments.data.name, "load_before": load}
    print(
        f"{result['rows']} texts, {result['threads']} threads, {result['device']}, ours in {result['precision']}, "
        f"load {load} before"
    )
    print(
        f"{'against':40} {'theirs/s':>9} {'ours/s':>9} {'ratio':>7} {'(min-max)':>12} {'target':>7} {'min cosine':>11}"
    )
    for name, figures in result["rivals"].items():
        ratio = figures["ratio"]
        spread = f"({ratio['min']:.2f}-{ratio['max']:.2f})"
        print(
            f"{name:40} {figures['theirs_texts_per_s']:9.0f} {figures['ours_texts_per_s']:9.0f} {ratio['median']:7.2f} "
            f"{spread:>12} {TARGETS[name]:7.1f} {figures['min_cosine']:11.5f}"
        )
    result["reached"] = (
        all(result["rivals"][name]["ratio"]["median"] >= target for name, target in TARGETS.items())
        and result["rivals"]["sentence-transformers, float32"]["min_cosine"] >= MIN_COSINE
    )
    print(
        "targets reached" if result["reached"] else "targets missed",
        "->",
        write_record("encode", result, arguments.out),
    )


if __name__ == "__main__":
    main()
