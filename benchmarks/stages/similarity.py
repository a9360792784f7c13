"""Similarity of a pool to newly added hard rows, beside FAISS's flat search and the bare matrix product."""

# N rows, D dimensions, H hard rows

from __future__ import annotations

import numpy as np

from benchmarks import kmeans
from benchmarks.figures import Figure, Measured, Scope, against_peer
from benchmarks.record import paired
from engine.algorithms.hard_similarity import HARD_BLOCK, update_best
from engine.algorithms.similarity import TILE_ROWS


def measure(scope: Scope) -> Measured:
    """One block of hard rows against the pool; ours gives exact similarities and leaves the row itself out."""
    rows = scope.rows or 50_000
    x_ND, rows_N = kmeans.synthetic(rows, scope.dim, scope.clusters, seed=0), np.arange(rows)
    picked_H = np.random.default_rng(1).choice(rows, size=min(HARD_BLOCK, rows // 5), replace=False)
    hard_HD, none_N = x_ND[picked_H], np.full(rows, -np.inf, np.float32)

    def ours() -> np.ndarray:
        return update_best(none_N, x_ND, rows_N, hard_HD, picked_H)

    flat = paired(ours, lambda: by_faiss(x_ND, hard_HD), scope.rounds)
    product = paired(ours, lambda: product_only(x_ND, hard_HD), scope.rounds)
    others_N = np.setdiff1d(rows_N, picked_H)  # FAISS finds the row itself where it is a hard one
    error = float(np.abs(ours()[others_N] - by_faiss(x_ND, hard_HD)[others_N]).max())
    operations = 2e-9 * rows * len(picked_H) * scope.dim
    return Measured(
        [
            *against_peer("faiss, flat, k = 1", flat),
            *against_peer("sgemm alone", product),
            Figure("products", round(operations / product["first_s"]["median"]), "GFLOP/s", "higher"),
            Figure("largest difference to faiss", error, "", None),
        ],
        {"rows": rows, "dim": scope.dim, "hard": len(picked_H), "faiss": flat, "product": product},
    )


def by_faiss(x_ND: np.ndarray, hard_HD: np.ndarray) -> np.ndarray:
    """(N,) float32; the pool is converted tile by tile, as ours is."""
    import faiss

    index = faiss.IndexFlatIP(x_ND.shape[1])
    index.add(hard_HD.astype(np.float32))
    starts = range(0, len(x_ND), TILE_ROWS)
    return np.concatenate([index.search(x_ND[s : s + TILE_ROWS].astype(np.float32), 1)[0][:, 0] for s in starts])


def product_only(x_ND: np.ndarray, hard_HD: np.ndarray) -> None:
    """The multiplications, on tiles of our shape into one buffer."""
    import torch

    tile_TD, hard = torch.from_numpy(x_ND[:TILE_ROWS].astype(np.float32)), torch.from_numpy(hard_HD.astype(np.float32))
    scores_TH = torch.empty((len(tile_TD), len(hard)))
    for _ in range(-(-len(x_ND) // TILE_ROWS)):
        torch.mm(tile_TD, hard.T, out=scores_TH)
