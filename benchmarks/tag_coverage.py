"""Tag coverage (InsTag's sampler) over a large pool, and against the published loop as it is described.

    python -m benchmarks.tag_coverage --rows 1000000 --picks 6000 100000 --peer-rows 100000 --peer-picks 6000 50000

Synthetic tags: 5 to 16 for each row, drawn by Zipf's law from 6,587 names (InsTag's number after merging). The peer
keeps a set of covered tags and walks the rows that are left, one Python set per row, as the paper describes it; both
get the same tags and must give the same rows. Its seconds are without the making of the sets, ours with that of the
lists. Peak memory is that of a process that
loads the tags as numbers and selects, beside one that only loads them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.record import paired, write_record
from engine.algorithms.ragged import distinct_tags
from engine.algorithms.tag_coverage import coverage, tag_coverage
from engine.data.tag_lists import TagLists
from engine.job import peak_rss_mb

NAMES, FEWEST, MOST = 6587, 5, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--picks", type=int, nargs="+", default=[6000, 100_000])
    parser.add_argument("--peer-rows", type=int, default=100_000)
    parser.add_argument("--peer-picks", type=int, nargs="+", default=[6000, 50_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = {
        "rows": arguments.rows,
        "names": NAMES,
        "load_before": os.getloadavg()[0],
        "picks": {str(num): measured(arguments, num) for num in arguments.picks},
        "lists_from_names_s": lists_seconds(arguments),
        "peer": [against_loop(arguments, num) for num in arguments.peer_picks],
    }
    print_table(result)
    print(f"record: {write_record('tag_coverage', result)}")


def synthetic(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T,) tags, (N + 1,) starts, (N,) id words; the tags of a row are distinct."""
    rng = np.random.default_rng(seed)
    chance = 1.0 / np.arange(1, NAMES + 1)
    counts_N = rng.integers(FEWEST, MOST + 1, rows)
    drawn_T = rng.choice(NAMES, size=counts_N.sum(), p=chance / chance.sum())
    starts_N1 = np.concatenate([[0], np.cumsum(counts_N)])
    return *distinct_tags(drawn_T.astype(np.int32), starts_N1), rng.integers(0, 2**64, rows, dtype=np.uint64)


def ours(tags_T: np.ndarray, starts_N1: np.ndarray, words_N: np.ndarray, num: int) -> np.ndarray:
    return tag_coverage(tags_T, starts_N1, np.diff(starts_N1).astype(np.float64), words_N, num)


def published_loop(sets: list[set[int]], order: list[int], num: int) -> list[int]:
    """The walk over all rows that are left, again and again."""
    found: list[int] = []
    left = order
    while len(found) < num:
        covered: set[int] = set()
        rest = []
        for place, row in enumerate(left):
            if sets[row] <= covered:
                rest.append(row)
                continue
            covered |= sets[row]
            found.append(row)
            if len(found) == num:
                rest += left[place + 1 :]
                break
        if not covered:
            break
        left = rest
    return found


def measured(arguments: argparse.Namespace, num: int) -> dict[str, Any]:
    """Seconds of each round and peak memory of one selection, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/tags.npz", *synthetic(arguments.rows, arguments.seed))
        loaded_MB, _ = in_process(f"{folder}/tags.npz", num, 0)
        peak_MB, facts = in_process(f"{folder}/tags.npz", num, arguments.rounds)
    return {**facts, "peak_mb": peak_MB, "peak_mb_with_the_tags_alone": loaded_MB}


def in_process(file: str, num: int, rounds: int) -> tuple[float, dict[str, Any]]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(select_and_weigh, (file, num, rounds))


def select_and_weigh(file: str, num: int, rounds: int) -> tuple[float, dict[str, Any]]:
    """(peak resident memory in MB, facts)."""
    with np.load(file) as arrays:
        tags_T, starts_N1, words_N = (arrays[name] for name in arrays.files)
    seconds, found_M = [], np.empty(0, np.int64)
    for _ in range(rounds):
        started = time.perf_counter()
        found_M = ours(tags_T, starts_N1, words_N, num)
        seconds.append(time.perf_counter() - started)
    peak_MB = peak_rss_mb()
    if not rounds:
        return peak_MB, {}
    covered, mean = coverage(tags_T, starts_N1, found_M)
    facts = {"selected": len(found_M), "share_of_tags": covered, "tags_per_row": mean, "tags": len(tags_T)}
    return peak_MB, {
        **facts,
        "seconds": {"median": float(np.median(seconds)), "min": min(seconds), "max": max(seconds)},
    }


def lists_seconds(arguments: argparse.Namespace) -> float:
    """Seconds that it takes to make numbers of the tags' names, as they come in the parts of a pool."""
    tags_T, starts_N1, _ = synthetic(arguments.rows, arguments.seed)
    names = pa.array([f"topic number {place}" for place in range(NAMES)])
    parts = []
    for first in range(0, arguments.rows, 4096):
        offsets = starts_N1[first : first + 4097]
        values = names.take(pa.array(tags_T[offsets[0] : offsets[-1]]))
        parts.append(pa.ListArray.from_arrays(pa.array((offsets - offsets[0]).astype(np.int32)), values))
    lists, started = TagLists(), time.perf_counter()
    for part in parts:
        lists.add(part)
    distinct_tags(*lists.arrays())
    return time.perf_counter() - started


def against_loop(arguments: argparse.Namespace, num: int) -> dict[str, Any]:
    tags_T, starts_N1, words_N = synthetic(arguments.peer_rows, arguments.seed)
    sets = [set(row.tolist()) for row in np.split(tags_T, starts_N1[1:-1])]
    order = sorted(range(len(sets)), key=lambda row: (-len(sets[row]), words_N[row]))
    if ours(tags_T, starts_N1, words_N, num).tolist() != published_loop(sets, order, num):
        raise SystemExit("the two select different rows")
    pair = paired(
        lambda: ours(tags_T, starts_N1, words_N, num), lambda: published_loop(sets, order, num), arguments.rounds
    )
    return {"rows": arguments.peer_rows, "picks": num, "same_rows": True, **pair}


def print_table(result: dict[str, Any]) -> None:
    table = Table("rows", "selected", "s", "peak MB", "with the tags alone", "of all tags", "tags per row")
    for facts in result["picks"].values():
        table.add_row(
            f"{result['rows']:,}",
            f"{facts['selected']:,}",
            f"{facts['seconds']['median']:.2f}",
            f"{facts['peak_mb']:,.0f}",
            f"{facts['peak_mb_with_the_tags_alone']:,.0f}",
            f"{facts['share_of_tags']:.1%}",
            f"{facts['tags_per_row']:.2f}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(f"numbers from the names of {result['rows']:,} rows: {result['lists_from_names_s']:.2f} s")
    for peer in result["peer"]:
        ratio = peer["ratio"]
        console.print(
            f"{peer['rows']:,} rows, {peer['picks']:,} selected, the same: published loop "
            f"{peer['second_s']['median']:.2f} s, ours {peer['first_s']['median']:.3f} s, {ratio['median']:.1f}x "
            f"({ratio['min']:.1f} to {ratio['max']:.1f})"
        )


if __name__ == "__main__":
    main()
