"""K-Means against faiss.Kmeans and scikit-learn: the same initial centroids, the same number of iterations, one run.

    python -m benchmarks.kmeans [--rows 200000 --k 1000 --iterations 10] [--vectors FILE.npy]

Every method starts from our k-means++ centroids, makes the given number of centroid updates and ends with the labels of
all rows, so each assigns the rows iterations + 1 times. Ours is paired with each other method in interleaved rounds;
times and ratios are medians. Inertia, the sum of 1 - cosine, is computed by our code for all three. The floor is the
matrix product alone, on tiles of our shape into one buffer. Without a file the rows are synthetic: twice as many
centres as clusters, noise twice as large as the centres, so that ten iterations do not converge.

    python -m benchmarks.kmeans --forms --rows 100000 --dim 64 --k 20000 [--groups 141]

compares our three forms instead (engine/algorithms/kmeans_methods.py), seeding included, once each, by CPU seconds of
this process: `lloyd`, `sample`, `two_level`. With --groups the centres lie in so many groups, as topics do.
"""

# N rows, D dimensions, K clusters

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.record import paired, write_record
from engine.algorithms.kmeans import CPU_TILE, INERTIA_ONE, ArrayPoints, initial_centroids, lloyd, unit_rows
from engine.algorithms.kmeans_methods import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vectors", type=Path, default=None, help="(N, D) float array in a .npy file, any scale")
    parser.add_argument("--forms", action="store_true", help="compare lloyd, sample and two_level")
    parser.add_argument("--groups", type=int, default=None, help="groups of synthetic centres; none by default")
    parser.add_argument("--name", default="kmeans")
    arguments = parser.parse_args()
    if arguments.vectors is None:
        x_ND = synthetic(arguments.rows, arguments.dim, arguments.k, arguments.seed, arguments.groups)
    else:
        x_ND = from_file(arguments.vectors)
    if arguments.forms:
        result = compare_forms(x_ND, arguments)
        Console().print_json(data=result)
    else:
        result = compare(x_ND, arguments)
        print_table(result)
    print(f"record: {write_record(arguments.name, result)}")


def synthetic(rows: int, dim: int, k: int, seed: int, groups: int | None = None) -> np.ndarray:
    """(N, D) float16 unit rows around 2 K centres, which lie in groups if so many are given."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2 * k, dim), dtype=np.float32)
    if groups:
        tops = rng.standard_normal((groups, dim), dtype=np.float32)
        centres += 2 * tops[rng.integers(len(tops), size=len(centres))]
    x_ND = np.empty((rows, dim), np.float16)
    for start in range(0, rows, 8192):
        x_TD = centres[rng.integers(len(centres), size=min(8192, rows - start))]
        x_TD = x_TD + 2 * rng.standard_normal(x_TD.shape, dtype=np.float32)
        x_ND[start : start + len(x_TD)] = unit_rows(x_TD, x_TD)
    return x_ND


def from_file(path: Path) -> np.ndarray:
    x_ND = np.load(path, allow_pickle=False).astype(np.float32)
    return unit_rows(x_ND, x_ND).astype(np.float16)


def compare(x_ND: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, ratios and inertia of each method on the same rows."""
    load = os.getloadavg()[0]
    words_N = np.random.default_rng(arguments.seed).integers(0, 2**64, len(x_ND), dtype=np.uint64)
    points, iterations = ArrayPoints(x_ND, words_N), arguments.iterations
    started = time.perf_counter()
    start_KD = initial_centroids(points.sample(max(32 * arguments.k, 10_000), 0), arguments.k, arguments.seed)
    seeding_s = time.perf_counter() - started
    made: dict[str, np.ndarray] = {}

    def run(name: str) -> None:
        made[name] = METHODS[name](x_ND, start_KD, iterations)

    def inertia(name: str) -> float:
        centroids_KD = unit_rows(made[name].astype(np.float64), start_KD)
        return ArrayPoints(x_ND, words_N).assign(centroids_KD).inertia / INERTIA_ONE

    others = [name for name in METHODS if name != "ours"]
    pairs = {name: paired(lambda: run("ours"), lambda name=name: run(name), arguments.rounds) for name in others}
    floor = pairs["product alone"]
    operations = 2 * x_ND.size * len(start_KD) * (iterations + 1)
    return {
        "rows": len(x_ND),
        "dim": x_ND.shape[1],
        "k": len(start_KD),
        "iterations": iterations,
        "vectors": "synthetic" if arguments.vectors is None else arguments.vectors.name,
        "load_before": load,
        "seeding_s": seeding_s,
        "ours_over": pairs,
        "inertia": {name: inertia(name) for name in METHODS if name != "product alone"},
        "fraction_of_product": floor["ratio"]["median"],
        "product_gflops": 1e-9 * operations / floor["second_s"]["median"],
    }


def compare_forms(x_ND: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds and inertia of each form, and both over those of lloyd."""
    words_N = np.random.default_rng(arguments.seed).integers(0, 2**64, len(x_ND), dtype=np.uint64)
    found: dict[str, dict[str, float]] = {}
    for method in ("two_level", "sample", "lloyd"):
        points, started = ArrayPoints(x_ND, words_N), time.process_time()
        result = fit(points, arguments.k, method, seed=arguments.seed, iterations=arguments.iterations)
        found[method] = {
            "cpu_s": round(time.process_time() - started, 2), "inertia": round(result.inertia[-1], 2),
            "clusters": len(result.centroids_KD), "empty": int((result.counts_K == 0).sum()),
        }  # fmt: skip
    for one in found.values():
        one["seconds_over_lloyd"] = round(one["cpu_s"] / found["lloyd"]["cpu_s"], 4)
        one["inertia_over_lloyd"] = round(one["inertia"] / found["lloyd"]["inertia"], 4)
    shape = {"rows": len(x_ND), "dim": x_ND.shape[1], "k": arguments.k, "iterations": arguments.iterations}
    return {**shape, "groups": arguments.groups, "forms": found}


def ours(x_ND: np.ndarray, start_KD: np.ndarray, iterations: int) -> np.ndarray:
    points = ArrayPoints(x_ND, np.arange(len(x_ND), dtype=np.uint64))
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


METHODS = {"ours": ours, "faiss": by_faiss, "scikit-learn": by_sklearn, "product alone": product_only}


def print_table(result: dict[str, Any]) -> None:
    title = "{rows:,} x {dim}, k = {k:,}, {iterations} iterations, {vectors}".format(**result)
    table = Table("", "s", "s per iteration", "ours beside it, s", "ours is faster by", "inertia", title=title)
    for name, pair in result["ours_over"].items():
        seconds, ours_s, ratio = pair["second_s"]["median"], pair["first_s"]["median"], pair["ratio"]
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{seconds / (result['iterations'] + 1):.3f}",
            f"{ours_s:.2f}",
            f"{ratio['median']:.3f}x ({ratio['min']:.2f} to {ratio['max']:.2f})",
            f"{result['inertia'][name]:,.2f}" if name in result["inertia"] else "",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"ours: inertia {result['inertia']['ours']:,.2f}, {result['fraction_of_product']:.0%} of the product's speed "
        f"({result['product_gflops']:.0f} GFLOP/s); seeding {result['seeding_s']:.2f} s"
    )


if __name__ == "__main__":
    main()
