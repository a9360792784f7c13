"""K-Means against faiss.Kmeans and scikit-learn: the same initial centroids, the same number of iterations, one run.

    python -m benchmarks.kmeans [--rows 200000 --k 1000 --iterations 10] [--vectors FILE.npy]

Every method starts from our k-means++ centroids, makes the given number of centroid updates and ends with the labels of
all rows, so each assigns the rows iterations + 1 times. Rounds are interleaved, with the order turning; times are
medians, ratios medians of the rounds' ratios. Inertia, the sum of 1 - cosine, is computed by our code for all three.
The floor is the matrix product alone, on tiles of our shape into one buffer. Without a file the rows are synthetic:
twice as many centres as clusters, noise as large as the centres.
"""

# N rows, D dimensions, K clusters

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import write_record
from rich.console import Console
from rich.table import Table

from engine.algorithms.kmeans import CPU_TILE, INERTIA_ONE, ArrayPoints, initial_centroids, lloyd, unit_rows

Method = Callable[[], np.ndarray]  # makes the centroids and the labels, returns the (K, D) centroids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vectors", type=Path, default=None, help="(N, D) float array in a .npy file, any scale")
    parser.add_argument("--name", default="kmeans")
    arguments = parser.parse_args()
    x_ND = synthetic(arguments) if arguments.vectors is None else from_file(arguments.vectors)
    result = compare(x_ND, arguments)
    print_table(result)
    print(f"record: {write_record(arguments.name, result)}")


def synthetic(arguments: argparse.Namespace) -> np.ndarray:
    """(N, D) float16 unit rows around 2 K centres."""
    rng = np.random.default_rng(arguments.seed)
    centres = rng.standard_normal((2 * arguments.k, arguments.dim), dtype=np.float32)
    x_ND = np.empty((arguments.rows, arguments.dim), np.float16)
    for start in range(0, arguments.rows, 8192):
        rows = centres[rng.integers(len(centres), size=min(8192, arguments.rows - start))]
        rows = rows + rng.standard_normal(rows.shape, dtype=np.float32)
        x_ND[start : start + len(rows)] = unit_rows(rows, rows)
    return x_ND


def from_file(path: Path) -> np.ndarray:
    x_ND = np.load(path, allow_pickle=False).astype(np.float32)
    return unit_rows(x_ND, x_ND).astype(np.float16)


def compare(x_ND: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, ratios and inertia of each method on the same rows."""
    words_N = np.random.default_rng(arguments.seed).integers(0, 2**64, len(x_ND), dtype=np.uint64)
    points = ArrayPoints(x_ND, words_N)
    started = time.perf_counter()
    start_KD = initial_centroids(points.sample(max(32 * arguments.k, 10_000), 0), arguments.k, arguments.seed)
    start_s = time.perf_counter() - started
    made: dict[str, np.ndarray] = {}
    methods = {
        "ours": lambda: ours(x_ND, words_N, start_KD, arguments.iterations),
        "faiss": lambda: by_faiss(x_ND, start_KD, arguments.iterations),
        "scikit-learn": lambda: by_sklearn(x_ND, start_KD, arguments.iterations),
        "floor": lambda: product_only(x_ND, start_KD, arguments.iterations),
    }
    seconds = interleaved(methods, arguments.rounds, made)
    passes = arguments.iterations + 1
    rows = {}
    for name, times in seconds.items():
        rows[name] = {
            "seconds": statistics.median(times),
            "seconds_per_pass": statistics.median(times) / passes,
            "speed_of_ours_over_it": statistics.median(t / o for t, o in zip(times, seconds["ours"], strict=True)),
            "all_seconds": times,
        }
        if name != "floor":
            centroids_KD = unit_rows(made[name].astype(np.float64), start_KD)
            rows[name]["inertia"] = ArrayPoints(x_ND, words_N).assign(centroids_KD).inertia / INERTIA_ONE
    shape = {"rows": len(x_ND), "dim": x_ND.shape[1], "k": len(start_KD), "iterations": arguments.iterations}
    return shape | {
        "rounds": arguments.rounds,
        "vectors": "synthetic" if arguments.vectors is None else arguments.vectors.name,
        "passes": passes,
        "seeding_seconds": start_s,
        "fraction_of_floor": rows["floor"]["speed_of_ours_over_it"],
        "floor_gflops": 2e-9 * x_ND.size * len(start_KD) * passes / rows["floor"]["seconds"],
        "inertia_over_faiss": rows["ours"]["inertia"] / rows["faiss"]["inertia"],
        "methods": rows,
    }


def interleaved(methods: dict[str, Method], rounds: int, made: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Wall seconds of each method in each round; `made` receives what each returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            made[name] = methods[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ours(x_ND: np.ndarray, words_N: np.ndarray, start_KD: np.ndarray, iterations: int) -> np.ndarray:
    points = ArrayPoints(x_ND, words_N)
    result = lloyd(points, start_KD, iterations=iterations)
    points.labels(result.centroids_KD)
    if result.iterations < iterations:
        raise SystemExit(f"converged after {result.iterations} iterations: ask for at most that many")
    return result.centroids_KD


def by_faiss(x_ND: np.ndarray, start_KD: np.ndarray, iterations: int) -> np.ndarray:
    import faiss

    x_f32 = x_ND.astype(np.float32)
    num_clusters, dim = start_KD.shape
    limits = {"max_points_per_centroid": len(x_ND), "min_points_per_centroid": 1}
    model = faiss.Kmeans(dim, num_clusters, niter=iterations, spherical=True, **limits)
    model.train(x_f32, init_centroids=start_KD)
    model.index.search(x_f32, 1)
    return np.asarray(model.centroids)


def by_sklearn(x_ND: np.ndarray, start_KD: np.ndarray, iterations: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    init: Any = start_KD
    model = KMeans(len(start_KD), init=init, n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd")  # type: ignore[arg-type]
    return model.fit(x_ND.astype(np.float32)).cluster_centers_


def product_only(x_ND: np.ndarray, start_KD: np.ndarray, iterations: int) -> np.ndarray:
    import torch

    tile_TD = torch.from_numpy(x_ND[:CPU_TILE].astype(np.float32))
    centroids_KD = torch.from_numpy(start_KD)
    scores_TK = torch.empty((len(tile_TD), len(start_KD)))
    for _ in range((iterations + 1) * -(-len(x_ND) // CPU_TILE)):
        torch.mm(tile_TD, centroids_KD.T, out=scores_TK)
    return start_KD


def print_table(result: dict[str, Any]) -> None:
    title = "{rows:,} x {dim}, k = {k:,}, {iterations} iterations, {vectors}".format(**result)
    table = Table("", "seconds", "per pass", "ours is faster by", "inertia", title=title)
    for name, row in result["methods"].items():
        inertia = f"{row['inertia']:,.2f}" if "inertia" in row else ""
        speed = f"{row['speed_of_ours_over_it']:.3f}x"
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['seconds_per_pass']:.3f}", speed, inertia)
    console = Console()
    console.print(table)
    console.print(
        f"{result['fraction_of_floor']:.0%} of the product's own speed ({result['floor_gflops']:.0f} GFLOP/s); "
        f"seeding {result['seeding_seconds']:.2f} s; inertia {result['inertia_over_faiss']:.6f} of faiss's"
    )


if __name__ == "__main__":
    main()
