"""What `iterselect inspect` takes for a large Alpaca-like file, beside parsing its lines and nothing else.

    python -m benchmarks.inspect_input [--rows 1000000] [--rounds 3]

The file is synthetic: instruction, an input in every third row, a response of about fifty words. Peers read the same
file in the same run: the standard library's parser line by line, orjson if it is installed, and pyarrow's JSON reader,
which needs one schema for all rows and checks nothing. Target: 50,000 rows/s.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import paired, write_record
from engine.data.inputs import resolve_inputs
from engine.data.inspect import inspect_pool

TARGET = 50_000
WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "te", "so", "na", "vi") for b in ("do", "pe", "ga", "bri", "sta")]


def write_rows(path: Path, rows: int) -> None:
    """One row a line; a number in every instruction, so that none is a duplicate."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as out:
        for number in range(rows):
            row = {
                "instruction": f"{' '.join(rng.choices(WORDS, k=12))} {number}",
                "input": " ".join(rng.choices(WORDS, k=10)) if number % 3 == 0 else "",
                "output": " ".join(rng.choices(WORDS, k=50)),
            }
            out.write(json.dumps(row) + "\n")


def peers(path: Path) -> dict[str, Callable[[], object]]:
    """The bare readers that are installed."""

    def by_line(loads: Callable[[bytes], object]) -> Callable[[], object]:
        def read() -> None:
            with path.open("rb") as lines:
                for line in lines:
                    loads(line)

        return read

    def by_pyarrow() -> int:
        from pyarrow import json as arrow_json

        with arrow_json.open_json(path) as reader:
            return sum(batch.num_rows for batch in reader)

    found: dict[str, Callable[[], object]] = {"json.loads": by_line(json.loads), "pyarrow.json": by_pyarrow}
    if importlib.util.find_spec("orjson"):
        import orjson  # pyright: ignore[reportMissingImports]

        found["orjson.loads"] = by_line(orjson.loads)
    return found


def measure(path: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Rows/s of ours by the wall clock and by CPU seconds, and each peer's ratio in interleaved rounds."""
    inputs = resolve_inputs(str(path))
    pairs = {name: paired(lambda: inspect_pool(inputs), peer, rounds) for name, peer in peers(path).items()}
    seconds, cpu = ([pair[name]["median"] for pair in pairs.values()] for name in ("first_s", "first_cpu_s"))
    return {
        "rows": rows,
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "rows_per_s": [round(rows / one) for one in seconds],
        "rows_per_cpu_s": [round(rows / one) for one in cpu],
        "peers": pairs,
        "reached": statistics.median(rows / one for one in seconds) >= TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="iterselect inspect beside bare JSON parsers.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.jsonl"
        write_rows(path, arguments.rows)
        result: dict[str, Any] = measure(path, arguments.rows, arguments.rounds) | {"load_before": round(load, 2)}
    print(f"inspect: {result['rows_per_s']} rows/s, {result['rows_per_cpu_s']} rows per CPU second")
    for name, pair in result["peers"].items():
        print(
            f"{name:<14} takes {pair['ratio']['median']:.3f} of our time, "
            f"{pair['cpu_ratio']['median']:.3f} of our CPU time"
        )
    print(f"record: {write_record('inspect_input', result)}")


if __name__ == "__main__":
    main()
