"""The vectors of a run on a plane, and how close the selected rows are to one another. Arrays in, arrays out."""

# Shape letters: I rows, D dimensions.

from __future__ import annotations

from typing import Any

import numpy as np

from engine.errors import EnvironmentProblem

FITTED_ROWS = 2_000  # rows that the two directions of the map are fitted on
CLOSE = 0.95  # cosine from which two prompts are near-duplicates


def principal_plane(x_ID: np.ndarray) -> tuple[np.ndarray, float]:
    """The two directions of largest variance of the first FITTED_ROWS rows, all rows projected on them.

    Args:
        x_ID: (I, D) float32, I >= 1; the first rows are a random sample.

    Returns:
        (I, 2) float64, the sign of each direction such that its largest weight is positive; the share of the variance
        that the plane holds.
    """
    mean_D = x_ID[:FITTED_ROWS].mean(axis=0, dtype=np.float64)
    centred = x_ID[:FITTED_ROWS] - mean_D
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    plane_D2 = np.zeros((x_ID.shape[1], 2))
    for axis, direction in enumerate(directions[:2]):
        plane_D2[:, axis] = direction * np.sign(direction[np.argmax(np.abs(direction))])
    variance = float(np.sum(values**2))
    return (x_ID - mean_D) @ plane_D2, float(np.sum(values[:2] ** 2)) / variance if variance else 0.0


def umap_plane(x_ID: np.ndarray, seed: int) -> np.ndarray:
    """(I, 2) float64 by UMAP (McInnes, Healy and Melville 2018) with cosine distances and its own defaults.

    Raises:
        EnvironmentProblem: E378, umap-learn is not installed.
    """
    try:
        import umap  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise EnvironmentProblem(
            "umap-learn is not installed", fix="pip install 'iterselect[umap]', or --map pca", code="E378"
        ) from error
    neighbours = min(15, max(2, len(x_ID) - 1))
    reducer = umap.UMAP(metric="cosine", random_state=seed, n_neighbors=neighbours, n_jobs=1)
    return np.asarray(reducer.fit_transform(x_ID), dtype=np.float64)


def nearest_other(x_ID: np.ndarray, block: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Each row's most similar other row.

    Args:
        x_ID: (I, D) float32 unit vectors, I >= 2.

    Returns:
        (I,) int64 positions, (I,) float32 cosines.
    """
    at_I, cosine_I = np.empty(len(x_ID), dtype=np.int64), np.empty(len(x_ID), dtype=np.float32)
    for start in range(0, len(x_ID), block):
        similar = x_ID[start : start + block] @ x_ID.T
        own = np.arange(len(similar))
        similar[own, start + own] = -np.inf
        at_I[start : start + block] = similar.argmax(axis=1)
        cosine_I[start : start + block] = similar.max(axis=1)
    return at_I, cosine_I


def near_duplicates(at_I: np.ndarray, cosine_I: np.ndarray, num: int) -> list[tuple[int, int, float]]:
    """The `num` closest pairs of positions (a, b, cosine), each once, none below CLOSE."""
    found: list[tuple[int, int, float]] = []
    seen = set()
    for a in np.argsort(-cosine_I, kind="stable").tolist():
        pair = min(a, int(at_I[a])), max(a, int(at_I[a]))
        if cosine_I[a] < CLOSE or len(found) == num:
            break
        if pair not in seen:
            seen.add(pair)
            found.append((*pair, float(cosine_I[a])))
    return found


def spread(cosine_I: np.ndarray) -> dict[str, Any]:
    """What the similarities to the nearest other row amount to."""
    return {
        "rows": len(cosine_I),
        "mean": float(cosine_I.mean()),
        "near_duplicates": float(np.mean(cosine_I >= CLOSE)),
    }
