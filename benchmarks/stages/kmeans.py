"""K-Means beside faiss, scikit-learn and the bare matrix product: `benchmarks.kmeans` at the size of the scope."""

from __future__ import annotations

import argparse

from benchmarks import kmeans
from benchmarks.figures import Figure, Measured, Scope, against_peer

OF_PRODUCT = 0.6  # of the speed of sgemm alone


def measure(scope: Scope) -> Measured:
    """Ten iterations from the same centroids."""
    arguments = argparse.Namespace(
        rows=scope.rows or 100_000, dim=scope.dim, k=scope.clusters, iterations=10, rounds=scope.rounds, seed=0,
        vectors=None,
    )  # fmt: skip
    found = kmeans.compare(kmeans.synthetic(arguments.rows, arguments.dim, arguments.k, arguments.seed), arguments)
    product = found["ours_over"]["product alone"]
    peers = {name: pair for name, pair in found["ours_over"].items() if name != "product alone"}
    return Measured(
        [
            Figure("share of sgemm's speed", round(product["ratio"]["median"], 3), "x", "higher", OF_PRODUCT),
            Figure("share of sgemm's speed by CPU time", round(product["cpu_ratio"]["median"], 3), "x", "higher"),
            *(figure for name, pair in peers.items() for figure in against_peer(name, pair)),
            Figure("sgemm in this run", round(found["product_gflops"]), "GFLOP/s"),
        ],
        found,
    )  # fmt: skip
