"""Greedy selection by vectors against the published ways of computing it: same vectors, same picks, one run.

    python -m benchmarks.greedy filter | kcenter | dq | facility [--rows N --num M ...]

Ours is the whole selection as a recipe makes it, in one process: it reads the float16 vectors from a step, selects, and
writes the picks. Peers are given a float32 array that is in memory already. Every peer runs once, and ours before and
after them. Times are CPU seconds of the process, all threads together, since the wall clock of a shared machine says
little; run it on one core (`taskset -c 0`, OMP_NUM_THREADS=1) and they are what a free core would take. Vectors are
synthetic: unit vectors around centres.

- filter: DEITA's walk in score order. Peers: as its code does with a batch of 1, where every row takes the kept rows
  out of a float64 array, casts and normalises them anew; and the fastest plain loop, with unit vectors in one array.
- kcenter: scikit-learn's distances to the last pick for every pick, as MoDS and SelectLLM have it; and its inner
  products, which order exactly as ours does (a float16 vector's norm is not exactly 1).
- dq: the N x N matrix of the published code, at `--matrix-rows`; ours there and at `--rows`.
- facility: apricot-select and submodlib-py with their N x N matrix at `--matrix-rows`, if they are installed or lie in
  `--packages`; ours there and at `--rows`, where their matrix would not fit.
"""

# N rows, D dimensions, P picks, B rows of a block

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write_record
from benchmarks.vector_pool import Quiet, context_for, make_pool, read_vectors
from engine.greedy_methods import (
    FacilitySettings,
    GraphCutSettings,
    KCenterSettings,
    diverse,
    facility_location,
    graph_cut,
    kcenter,
)
from engine.local import LocalRuntime
from engine.space import whole_pool

Pick = Callable[[Any, Any], Any]  # of a context and a space


class Bench:
    """A pool on disk, and ours on it."""

    def __init__(self, folder: Path, rows: int, dim: int, centres: int, noise: float) -> None:
        self.folder = folder / f"pool-{rows}"
        make_pool(self.folder, rows, dim, centres, noise)
        self.facts = {"rows": rows, "dim": dim, "centres": centres, "noise": noise, "vectors": "synthetic"}

    def vectors(self) -> np.ndarray:
        return read_vectors(self.folder)

    def ours(self, pick: Pick) -> tuple[float, Any]:
        """CPU seconds, and what `pick` gives."""
        with tempfile.TemporaryDirectory() as out:
            context, vectors = context_for(self.folder, Path(out), LocalRuntime(Quiet()), 1)
            started = time.process_time()
            found = pick(context, whole_pool(context, vectors))
            seconds = time.process_time() - started
            return seconds, found

    def against(self, pick: Pick, peers: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        """Figures, what ours gives and what the peers give."""
        first_s, mine = self.ours(pick)
        peers_s, theirs = {}, {}
        for name, peer in peers.items():
            started = time.process_time()
            theirs[name] = peer()
            peers_s[name] = time.process_time() - started
        ours_s = [first_s, self.ours(pick)[0]]
        middle = statistics.mean(ours_s)
        figures = {
            **self.facts,
            "ours_cpu_s": [round(value, 2) for value in ours_s],
            "peers_cpu_s": {name: round(value, 2) for name, value in peers_s.items()},
            "faster_by": {name: round(value / middle, 2) for name, value in peers_s.items()},
        }
        return figures, mine, theirs


def filtered(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bench = Bench(folder, arguments.rows or 100_000, 384, 11_000, 0.25)
    num, threshold = arguments.num or 10_000, 0.9
    order_N = np.random.default_rng(1).permutation(bench.facts["rows"])
    x_ND = bench.vectors()

    def published() -> list[int]:
        import torch

        sorted_ND = x_ND[order_N].astype(np.float64)  # as a table of Python floats becomes an array
        kept = [0]
        for place in range(1, len(sorted_ND)):
            row_1D = torch.tensor(sorted_ND[place : place + 1], dtype=torch.float32)
            kept_PD = torch.tensor(sorted_ND[kept], dtype=torch.float32)
            for _ in range(2):  # it normalises embeddings, and the cosine does so again
                row_1D = row_1D / row_1D.norm(dim=1)[:, None]
                kept_PD = kept_PD / kept_PD.norm(dim=1)[:, None]
            if not bool((row_1D @ kept_PD.T > threshold).any()):
                kept.append(place)
                if len(kept) == num:
                    break
        return order_N[kept].tolist()

    def in_place() -> list[int]:
        kept_PD, picked = np.empty((num, x_ND.shape[1]), np.float32), []
        for row in order_N.tolist():
            if not picked or (kept_PD[: len(picked)] @ x_ND[row]).max() < threshold:
                kept_PD[len(picked)] = x_ND[row]
                picked.append(row)
                if len(picked) == num:
                    break
        return picked

    peers = {"row by row, as published": published, "row by row, one array": in_place}
    figures, mine, theirs = bench.against(lambda c, s: diverse(c, s, order_N, threshold, num).rows.tolist(), peers)
    walked = int(np.argmax(order_N == mine[-1])) + 1
    return figures | {"picked": len(mine), "walked": walked} | same(mine, theirs)


def centred(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bench = Bench(folder, arguments.rows or 100_000, 384, 2000, 1.0)
    num = arguments.num or 1000
    x_ND = bench.vectors()
    settings = KCenterSettings(scope="pool")
    start: list[int] = []

    def ours(context: Any, space: Any) -> list[int]:
        rows = kcenter(context, space, settings, num).rows.tolist()
        start[:] = rows[:1]
        return rows

    def loop(distances: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> list[int]:
        picked = [start[0]]
        nearest_N = np.full(len(x_ND), np.inf, np.float32)
        for _ in range(num - 1):
            nearest_N = np.minimum(nearest_N, distances(x_ND, x_ND[picked[-1:]])[:, 0])
            picked.append(int(np.argmax(nearest_N)))
        return picked

    def euclidean() -> list[int]:
        from sklearn.metrics import pairwise_distances

        return loop(pairwise_distances)

    def inner_product() -> list[int]:
        from sklearn.metrics.pairwise import linear_kernel

        return loop(lambda x, y: 1 - linear_kernel(x, y))

    peers = {"scikit-learn, Euclidean": euclidean, "scikit-learn, inner product": inner_product}
    figures, mine, theirs = bench.against(ours, peers)
    return figures | {"picked": len(mine)} | same(mine, theirs)


def binned(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows, small_rows, bins = arguments.rows or 52_002, arguments.matrix_rows or 10_000, 10
    settings = GraphCutSettings(scope="pool", bins=bins)

    def ours(context: Any, space: Any) -> list[int]:
        picks = graph_cut(context, space, settings, space.count // 10)
        assert picks.scores is not None
        return picks.scores.read_all(["bin"])["bin"].to_pylist()

    large = Bench(folder, rows, 384, 1000, 1.0)
    before_mb = peak_mb()
    large_s = large.ours(ours)[0]
    after_mb = peak_mb()
    small = Bench(folder, small_rows, 384, 1000, 1.0)
    x_ND = small.vectors()
    figures, mine, theirs = small.against(ours, {"N x N matrix": lambda: matrix_bins(x_ND, bins)})
    return {
        "large": {
            **large.facts,
            "ours_cpu_s": round(large_s, 2),
            "process_mb_before": before_mb,
            "process_mb_peak": after_mb,
            "matrix_mb_by_arithmetic": round(4 * rows * rows / 1e6),
        },
        "small": figures | same(mine, theirs),
    }


def matrix_bins(x_ND: np.ndarray, bins: int) -> list[int]:
    """The published way: the N x N matrix, and the naive greedy of graph cut on what is left, bin after bin."""
    similar_NN = x_ND @ x_ND.T
    bin_N = np.full(len(x_ND), bins - 1)
    left = np.arange(len(x_ND))
    for number in range(bins - 1):
        gain_M = similar_NN[np.ix_(left, left)].sum(axis=1, dtype=np.float64)
        open_M = np.ones(len(left), bool)
        for _ in range(len(x_ND) // bins):
            best = int(np.argmax(np.where(open_M, gain_M, -np.inf)))
            open_M[best] = False
            bin_N[left[best]] = number
            gain_M -= 2.0 * similar_NN[left[best], left]
        left = left[open_M]
    return bin_N.tolist()


def represented(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows, small_rows, num = arguments.rows or 50_000, arguments.matrix_rows or 15_000, arguments.num or 500
    settings = FacilitySettings(scope="pool")
    result: dict[str, Any] = {"picked": num}
    if arguments.packages:
        sys.path.append(str(arguments.packages))
    for size, name in ((small_rows, "small"), (rows, "large")):
        bench = Bench(folder, size, 384, 500, 1.0)
        x_ND = bench.vectors()
        peers: dict[str, Callable[[], Any]] = {}
        if name == "small":
            peers = {"apricot": lambda x=x_ND: by_apricot(x, num), "submodlib": lambda x=x_ND: by_submodlib(x, num)}
        figures, mine, theirs = bench.against(lambda c, s: facility_location(c, s, settings, num).rows.tolist(), peers)
        ours_f = objective(x_ND, mine)
        shares = {peer: objective(x_ND, picks) / ours_f for peer, picks in theirs.items()}
        result[name] = figures | same(mine, theirs) | {"objective_ours": ours_f, "objective_over_ours": shares}
    result["matrix_gb_by_arithmetic"] = {"float32": 4e-9 * rows * rows, "float64": 8e-9 * rows * rows}
    return result


def by_apricot(x_ND: np.ndarray, num: int) -> list[int]:
    from apricot import FacilityLocationSelection  # pyright: ignore[reportMissingImports]

    similar_NN = np.maximum(x_ND @ x_ND.T, 0).astype(np.float64)  # it refuses what is below 0
    model = FacilityLocationSelection(num, metric="precomputed", optimizer="lazy")
    return model.fit(similar_NN).ranking.tolist()


def by_submodlib(x_ND: np.ndarray, num: int) -> list[int]:
    from submodlib import FacilityLocationFunction  # pyright: ignore[reportMissingImports]

    similar_NN = x_ND @ x_ND.T
    function = FacilityLocationFunction(n=len(x_ND), mode="dense", sijs=similar_NN, separate_rep=False)
    found = function.maximize(budget=num, optimizer="LazyGreedy", show_progress=False)
    return [row for row, _ in found]


def objective(x_ND: np.ndarray, picked: list[int]) -> float:
    """f of facility location."""
    starts = range(0, len(x_ND), 8192)
    return float(sum((x_ND[s : s + 8192] @ x_ND[picked].T).max(axis=1).sum(dtype=np.float64) for s in starts))


def same(mine: list[int], theirs: dict[str, list[int]]) -> dict[str, Any]:
    """Of each peer the share of places with the same row (or bin), and of our rows that are among its own."""
    return {
        "same_place": {name: float(np.mean(np.array(mine) == np.array(found))) for name, found in theirs.items()},
        "same_rows": {name: len({*mine} & {*found}) / len({*mine}) for name, found in theirs.items()},
    }


def warm_up() -> None:
    """Loads the libraries."""
    with tempfile.TemporaryDirectory() as folder:
        Bench(Path(folder), 100, 16, 5, 1.0).ours(lambda c, s: kcenter(c, s, KCenterSettings(), 5))


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


COMMANDS = {"filter": filtered, "kcenter": centred, "dq": binned, "facility": represented}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--num", type=int, default=None, help="rows to pick")
    parser.add_argument("--matrix-rows", type=int, default=None, help="rows for peers that need an N x N matrix")
    parser.add_argument("--packages", type=Path, default=None, help="folder with apricot and submodlib")
    parser.add_argument("--name", default=None, help="of the record")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        result = COMMANDS[arguments.what](arguments, Path(folder)) | {"load_before": round(load, 2)}
    for key, value in result.items():
        print(f"{key:<14} {value}")
    print(f"record: {write_record(arguments.name or f'greedy_{arguments.what}', result)}")


if __name__ == "__main__":
    main()
