"""Ten thousand prompts with 1 % poison on a real vLLM engine: exactly the poison rows fail, and what it costs.

    python -m benchmarks.vllm_poison [--rows 10000] [--out RECORD.json]

Poison is too long, empty, broken Unicode, and one row that makes the engine raise. The same prompts without poison are
answered first, by the same stage; every other row must get the same answer. The model is a tiny Llama, so that the time
is mostly that of replacing engines. Needs vLLM and the tests' own poison (tests/vllm/poison.py).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import write_record
from engine.models.vllm_stages import VllmGenerator
from engine.store import Store
from tests.token_models import FOR_VLLM, make_tiny_llama
from tests.vllm.engines import check_poisoned, engine_events, poisoned, prompts, rows_of, serving


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Figures of one run; raises AssertionError when a row has the wrong outcome."""
    texts, log = prompts(rows), Store(folder / "log")
    model = make_tiny_llama(folder / "llama", texts[:500], positions=512, vocabulary=1000, **FOR_VLLM)
    stage = VllmGenerator(
        serving(model, log, max_num_seqs=256, logits_processors=["tests.vllm.poison:Poison"]), system=None
    )
    started = time.perf_counter()
    undisturbed = stage(rows_of(texts)).to_pylist()
    clean_s = time.perf_counter() - started
    with_poison, expected = poisoned(texts, 0.01)
    started = time.perf_counter()
    found = stage(rows_of(with_poison)).to_pylist()
    poison_s = time.perf_counter() - started
    stage.close()
    check_poisoned(found, undisturbed, expected)
    events = engine_events(log)
    return {
        "rows": rows,
        "poison_rows": len(expected),
        "error_rows": sum(row["error"] is not None for row in found),
        "others_unchanged": True,
        "clean_s": clean_s,
        "poison_s": poison_s,
        "engines_replaced": sum(event["event"] == "died" for event in events),
        "starts_s": [event["seconds"] for event in events if event["event"] == "started"],
        "rows_blamed": sum(event["event"] == "blamed" for event in events),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="10,000 prompts with 1 % poison on a real vLLM engine.")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="where the record goes")
    arguments = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.rows) | {"load_before": load}
    print(
        f"{result['rows']} rows, {result['error_rows']} error rows of {result['poison_rows']} poisoned, "
        f"{result['engines_replaced']} engines replaced, {result['poison_s']:.1f} s for {result['clean_s']:.1f} s ->",
        write_record("vllm_poison", result, arguments.out),
    )


if __name__ == "__main__":
    main()
