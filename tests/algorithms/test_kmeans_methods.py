"""K-Means on a sample and in two levels: the same bits for any sharding, K centroids, and about Lloyd's inertia."""

from __future__ import annotations

import numpy as np
import pytest

from engine.algorithms.kmeans import ArrayPoints, KMeansResult, MergedPoints
from engine.algorithms.kmeans_methods import Method, fit, method_for, multiplications, refit

# N rows, D dimensions, K clusters


def nested(num_rows: int, groups: int, each: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) float16 unit rows of `groups` x `each` planted clusters, and their id words."""
    rng = np.random.default_rng(seed)
    tops = rng.standard_normal((groups, dim))
    centres = np.repeat(tops, each, axis=0) + 0.5 * rng.standard_normal((groups * each, dim))
    x_ND = centres[rng.integers(len(centres), size=num_rows)] + 0.2 * rng.standard_normal((num_rows, dim))
    unit_ND = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16)
    return unit_ND, rng.integers(0, 2**64, num_rows, dtype=np.uint64)


@pytest.fixture(scope="module")
def pool() -> tuple[np.ndarray, np.ndarray]:
    return nested(30_000, 12, 12, 32)


def same(left: KMeansResult, right: KMeansResult) -> bool:
    arrays = all(
        getattr(left, name).tobytes() == getattr(right, name).tobytes() for name in ("centroids_KD", "counts_K")
    )
    return arrays and (left.inertia, left.iterations) == (right.inertia, right.iterations)


@pytest.mark.parametrize("method", ["sample", "two_level"])
def test_same_bits_for_any_sharding_and_order(pool: tuple[np.ndarray, np.ndarray], method: Method):
    x_ND, words_N = pool
    k = 36  # a sample of 10,000 rows, and one of 30,000 in coarse clusters
    expected = fit(ArrayPoints(x_ND, words_N), k, method, seed=4, iterations=4)
    again = refit(ArrayPoints(x_ND, words_N), expected.centroids_KD, method, seed=4, iterations=3, tol=1e-4)
    for num_shards in (2, 7):
        rng = np.random.default_rng(num_shards)
        pieces = np.split(rng.permutation(len(x_ND)), np.sort(rng.choice(len(x_ND), num_shards - 1, replace=False)))
        shards = MergedPoints([ArrayPoints(x_ND[piece], words_N[piece]) for piece in pieces])
        assert same(fit(shards, k, method, seed=4, iterations=4), expected)
        assert same(refit(shards, expected.centroids_KD, method, seed=4, iterations=3, tol=1e-4), again)


def test_the_bits_do_not_depend_on_threads(pool: tuple[np.ndarray, np.ndarray]):
    import torch

    x_ND, words_N = (array[:5000] for array in pool)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(fit(ArrayPoints(x_ND, words_N), 300, "two_level", seed=0, iterations=3))
    finally:
        torch.set_num_threads(before)
    assert same(*results)


def test_two_levels_come_near_to_lloyd_on_planted_clusters(pool: tuple[np.ndarray, np.ndarray]):
    points = ArrayPoints(*pool)
    lloyd = fit(points, 144, "lloyd", seed=0, iterations=10)
    levels = fit(points, 144, "two_level", seed=0, iterations=10)
    assert len(levels.centroids_KD) == 144 and levels.counts_K.sum() == 30_000 and (levels.counts_K > 0).all()
    assert levels.inertia[-1] < 1.03 * lloyd.inertia[-1]
    assert np.allclose(np.linalg.norm(levels.centroids_KD, axis=1), 1.0, atol=1e-6)
    described = ArrayPoints(*pool).assign(levels.centroids_KD)
    assert described.counts_K.tolist() == levels.counts_K.tolist()
    assert described.inertia / 2**30 == levels.inertia[-1]


def test_a_sample_comes_near_to_lloyd_and_a_small_pool_gets_its_bits(pool: tuple[np.ndarray, np.ndarray]):
    points = ArrayPoints(*pool)
    lloyd = fit(points, 20, "lloyd", seed=0, iterations=10)
    sample = fit(points, 20, "sample", seed=0, iterations=10)
    assert not same(sample, lloyd) and sample.inertia[-1] < 1.03 * lloyd.inertia[-1]
    assert sample.counts_K.sum() == 30_000
    few = ArrayPoints(pool[0][:9000], pool[1][:9000])
    assert same(fit(few, 20, "sample", seed=0, iterations=5), fit(few, 20, "lloyd", seed=0, iterations=5))


@pytest.mark.parametrize("k", [1, 2, 3, 40, 59, 60, 500])
def test_two_levels_give_k_clusters_while_rows_last(k: int):
    x_ND, words_N = nested(60, 3, 2, 8)
    result = fit(ArrayPoints(x_ND, words_N), k, "two_level", seed=0, iterations=3)
    assert len(result.centroids_KD) == min(k, 60) and result.counts_K.sum() == 60


def test_equal_rows_make_fewer_clusters():
    x_ND = np.repeat(nested(6, 3, 2, 8)[0], 20, axis=0)
    words_N = np.random.default_rng(0).integers(0, 2**64, len(x_ND), dtype=np.uint64)
    result = fit(ArrayPoints(x_ND, words_N), 30, "two_level", seed=0, iterations=3)
    assert 6 <= len(result.centroids_KD) <= 30 and result.counts_K.sum() == 120
    assert result.inertia[-1] < 120 * 2.0**-10


def test_which_method_is_meant_and_what_it_costs():
    assert [method_for("auto", k) for k in (1, 19_999, 20_000)] == ["sample", "sample", "two_level"]
    assert method_for("lloyd", 10**6) == "lloyd"
    assert multiplications("lloyd", 1000, 8, 10, 4) == multiplications("sample", 1000, 8, 10, 4) == 1000 * 10 * 8 * 5
    large = [multiplications(method, 10**7, 384, 100_000, 20) for method in ("lloyd", "sample", "two_level")]
    assert large[1] == large[0] and large[2] < large[0] / 9
    assert multiplications("sample", 10**7, 384, 1000, 20) == (256_000 * 21 + 10**7) * 1000 * 384
