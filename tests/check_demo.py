"""Checks the folder that `make demo` made, as somebody who was handed it would: `python -m tests.check_demo demo-out`.

Also prints how many of the pool's planted bad rows the selection holds, beside the baselines of the same size.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import EXAMPLE_POOL

BAD = ("wrong", "truncated", "off-topic", "refusal", "near-duplicate", "low-effort")


def main(out: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    summary = json.loads((out / "run.json").read_text())["summary"]
    rejected = sum(summary["rejected"].values())
    assert summary["rows_read"] == summary["pool"] + rejected + summary["duplicates"], summary
    assert rejected == len((out / "rejected.jsonl").read_text().splitlines()) > 0
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    with tempfile.TemporaryDirectory() as cache:
        train = datasets.load_dataset(str(out), cache_dir=cache, split="train")
        scores = datasets.load_dataset(str(out), "scores", cache_dir=cache, split="train")
        assert set(train.column_names) <= {"messages", "tools"}
        assert len(train) == summary["selected"] == sum(scores["selected"])
        assert len(scores) == summary["pool"]
        assert all(scores["reason"])
        print_bad_shares(list(zip(scores["line"], scores["selected"], scores["response_chars"], strict=True)))
    assert {path.suffix for path in (out / "data").iterdir()} == {".parquet"}
    print("demo folder: ok")


def print_bad_shares(rows: list[tuple[int, bool, int]]) -> None:
    """Share of planted bad rows, by the `note` of each row of the example pool."""
    lines = EXAMPLE_POOL.read_text(encoding="utf-8").splitlines()
    bad = {line: json.loads(lines[line - 1])["note"].split(",")[0] in BAD for line, _, _ in rows}
    chosen = [line for line, selected, _ in rows if selected]
    longest = [line for line, _, _ in sorted(rows, key=lambda row: -row[2])[: len(chosen)]]
    shares = {"selection": chosen, "longest": longest, "pool (and random, on average)": list(bad)}
    for name, found in shares.items():
        print(f"planted bad rows, {name}: {share(bad[line] for line in found):.1%}")
    assert share(bad[line] for line in chosen) < 0.75 * share(bad.values())


def share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / len(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
