"""Token scores against the published way: one row at a time, two tokenisations, logits of every token.

    python -m benchmarks.token_scores --data FILE.parquet [--rows 2000] [--sample 100] [--rounds 2] [--threads N]
        [--layers 12] [--out RECORD.json]

The model has the shape of GPT-2 (124M parameters with 12 layers) and random weights, which cost the same time; its
tokenizer is trained on the file, to GPT-2's vocabulary size. We score all rows as one part; the published way, as in
the code of Superfiltering (arXiv 2402.00530), scores a sample of them that is spread evenly over the lengths, since it
is slow; both in rows/s, in turn, in one process. It differs from that code in one thing: it begins with a start token,
as we do, so that the two scores agree wherever prompt and response do not merge into one token.

Targets: 5 times its rows/s in float32, as it comes. The same in our precision is given beside it.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.record import write_record

TARGET = 5.0
VOCABULARY = 50_257


def read_rows(data: Path) -> list[tuple[str, str]]:
    """(prompt, response) of an Alpaca file, empty responses left out."""
    import pyarrow.parquet as pq

    columns = pq.read_table(data, columns=["instruction", "input", "output"]).to_pylist()
    return [
        ("\n".join(text for text in (row["instruction"], row["input"]) if text), row["output"])
        for row in columns
        if row["output"]
    ]


def make_model(folder: Path, texts: list[str], layers: int) -> int:
    """A GPT-2 with random weights and a byte-level tokenizer; returns its number of parameters."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(texts, VOCABULARY, min_frequency=2, show_progress=False, special_tokens=["<|endoftext|>"])
    PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_layer=layers, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(folder)
    return model.num_parameters()


def published(model: Any, tokenizer: Any, prompt: str, response: str) -> tuple[float, float, bool]:
    """Mean NLL with and without prompt, row by row; and whether the two definitions score the same tokens."""
    import torch

    def loss(ids: list[int], first: int) -> float:
        labels = torch.tensor([ids])
        labels[0, :first] = -100
        with torch.no_grad():
            return float(model(torch.tensor([ids]), labels=labels).loss)

    start = [tokenizer.eos_token_id]
    whole = [*start, *tokenizer(prompt + response)["input_ids"]]
    before = [*start, *tokenizer(prompt)["input_ids"]]
    alone = [*start, *tokenizer(response)["input_ids"]]
    agree = whole == [*before, *alone[1:]]
    return loss(whole[:1024], len(before)), loss(alone[:1024], 1), agree and len(whole) <= 1024


def pool_of(rows: list[tuple[str, str]]) -> pa.Table:
    empty = [""] * len(rows)
    columns = {"messages": empty, "tools": empty, "system": empty, "prompt": [p for p, _ in rows]}
    return pa.table({**columns, "response": [response for _, response in rows]})


def measure(rows: list[tuple[str, str]], folder: str, sample: int, rounds: int, threads: int | None) -> dict[str, Any]:
    """Figures of the comparison; prints nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from engine.models.threads import set_threads
    from engine.models.token_scores import TokenScores

    set_threads(threads or torch.get_num_threads())
    stage = TokenScores(folder, 1024, "plain", device="cpu")
    precision = str(stage.body.dtype).removeprefix("torch.")
    table = pool_of(rows)
    found = stage(table)
    tokens_N = (np.array(found["tokens_prompt"]) + 2 * np.array(found["tokens_response"])).astype(np.float64)
    order = np.argsort(np.nan_to_num(tokens_N), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, sample + 2)[1:-1].astype(np.int64)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs: dict[str, list[tuple[float, float, bool]]] = {}

    def one_by_one(name: str, model: Any) -> None:
        theirs[name] = [published(model, tokenizer, f"{rows[i][0]}\n", rows[i][1]) for i in chosen]

    ways: dict[str, Callable[[], object]] = {"ours": lambda: stage(table)}
    for name in dict.fromkeys(["float32", precision]):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, name)).eval()
        ways[name] = functools.partial(one_by_one, name, model)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            rates[name].append((len(rows) if name == "ours" else sample) / (time.perf_counter() - started))
    rivals = {}
    for name in theirs:
        ratios = [ours / other for ours, other in zip(rates["ours"], rates[name], strict=True)]
        ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        found_there = _differences(found, chosen, theirs[name])
        rivals[name] = {"rows_per_s": statistics.median(rates[name]), "ratio": ratio, **found_there}
    return {
        "rows": len(rows), "sample": sample, "rounds": rounds, "threads": torch.get_num_threads(),
        "precision": precision, "tokens_per_row": float(np.nanmean(tokens_N)),
        "tokens_per_sampled_row": float(np.nanmean(tokens_N[chosen])),
        "ours_rows_per_s": statistics.median(rates["ours"]), "rivals": rivals,
    }  # fmt: skip


def _differences(found: pa.Table, chosen: np.ndarray, theirs: list[tuple[float, float, bool]]) -> dict[str, Any]:
    """Ours against theirs, in nats, over the rows whose tokens are the same by both definitions."""
    ours = found.take(pa.array(chosen)).to_pylist()
    same = [
        max(abs(row["nll_conditioned"] - conditioned), abs(row["nll_alone"] - alone))
        for row, (conditioned, alone, agree) in zip(ours, theirs, strict=True)
        if agree and row["error"] is None
    ]
    return {"rows_compared": len(same), "largest_difference": max(same), "median_difference": statistics.median(same)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Token scores against the published way, row by row.")
    parser.add_argument("--data", type=Path, required=True, help="Parquet with instruction, input and output")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--sample", type=int, default=100, help="rows the published way scores")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12, help="12: the shape of GPT-2")
    parser.add_argument("--threads", type=int, help="threads of both; default: torch's own choice")
    parser.add_argument("--out", type=Path, help="where the record goes; default: benchmarks/records/token_scores.json")
    arguments = parser.parse_args()

    load, started = round(os.getloadavg()[0], 2), time.monotonic()
    rows = read_rows(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        parameters = make_model(Path(folder), [f"{prompt}\n{response}" for prompt, response in rows], arguments.layers)
        result = measure(rows[: arguments.rows], folder, arguments.sample, arguments.rounds, arguments.threads)
    result |= {"data": arguments.data.name, "parameters": parameters, "load_before": load}
    print(
        f"{result['rows']} rows, {result['tokens_per_row']:.0f} tokens in both passes, {parameters / 1e6:.0f}M "
        f"parameters, {result['threads']} threads, ours in {result['precision']}, load {load} before"
    )
    print(
        f"{'row by row in':14} {'theirs/s':>9} {'ours/s':>8} {'ratio':>7} {'(min-max)':>13} {'largest difference':>19}"
    )
    for name, figures in result["rivals"].items():
        ratio = figures["ratio"]
        print(
            f"{name:14} {figures['rows_per_s']:9.2f} {result['ours_rows_per_s']:8.1f} {ratio['median']:7.2f} "
            f"{'({min:.2f}-{max:.2f})'.format(**ratio):>13} {figures['largest_difference']:19.5f}"
        )
    result["reached"] = result["rivals"]["float32"]["ratio"]["median"] >= TARGET
    path = write_record("token_scores", result, arguments.out)
    print("target reached" if result["reached"] else "target missed", "->", path)
    print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
