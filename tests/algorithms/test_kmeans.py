"""K-Means: the same bits for any sharding and row order, the right answer, and no bad pool that breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.algorithms.kmeans import (
    CENTROID_BLOCK,
    ArrayPoints,
    MergedPoints,
    PartialSums,
    add_rows,
    initial_centroids,
    kmeans,
    lloyd,
    nearest_centroid,
    next_centroids,
)
from engine.errors import ConfigError, DataError

# N rows, D dimensions, K clusters


def unit_f16(x_ND: np.ndarray) -> np.ndarray:
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16)


def blobs(num_rows: int, dim: int, num_centres: int, seed: int, noise: float = 0.15) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_centres, dim)) / np.sqrt(dim)
    x_ND = centres[rng.integers(num_centres, size=num_rows)] + noise * rng.standard_normal((num_rows, dim)) / np.sqrt(
        dim
    )
    return unit_f16(x_ND)


def words(num_rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, num_rows, dtype=np.uint64)


def plain_lloyd(x_ND: np.ndarray, centroids_KD: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Spherical Lloyd in float64, nothing clever; no empty clusters expected."""
    x_ND, centroids_KD = x_ND.astype(np.float64), centroids_KD.astype(np.float64)
    for _ in range(iterations):
        labels_N = (x_ND @ centroids_KD.T).argmax(axis=1)
        centroids_KD = np.stack([x_ND[labels_N == cluster].sum(axis=0) for cluster in range(len(centroids_KD))])
        centroids_KD /= np.linalg.norm(centroids_KD, axis=1, keepdims=True)
    return centroids_KD, (x_ND @ centroids_KD.T).argmax(axis=1)


@pytest.fixture(scope="module")
def pool() -> tuple[np.ndarray, np.ndarray]:
    return blobs(6000, 48, 60, seed=0, noise=0.8), words(6000)


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("permuted", [False, True])
def test_same_bits_for_any_sharding_and_order(pool: tuple[np.ndarray, np.ndarray], num_shards: int, permuted: bool):
    x_ND, words_N = pool
    whole = ArrayPoints(x_ND, words_N)
    expected = kmeans(whole, 50, seed=4, iterations=8, sample_rows=1000)
    labels_N, similarity_N = whole.labels(expected.centroids_KD)

    rng = np.random.default_rng(num_shards)
    order = rng.permutation(len(x_ND)) if permuted else np.arange(len(x_ND))
    cuts = np.sort(rng.choice(len(x_ND), num_shards - 1, replace=False))
    pieces = np.split(order, cuts)
    shards = [ArrayPoints(x_ND[piece], words_N[piece]) for piece in pieces]
    result = kmeans(MergedPoints(shards), 50, seed=4, iterations=8, sample_rows=1000)

    assert result.centroids_KD.tobytes() == expected.centroids_KD.tobytes()
    assert result.counts_K.tobytes() == expected.counts_K.tobytes()
    assert (result.inertia, result.iterations) == (expected.inertia, expected.iterations)
    for piece, shard in zip(pieces, shards, strict=True):
        shard_labels, shard_similarity = shard.labels(result.centroids_KD)
        assert shard_labels.tobytes() == labels_N[piece].tobytes()
        assert shard_similarity.tobytes() == similarity_N[piece].tobytes()


def test_matches_a_plain_float64_lloyd(pool: tuple[np.ndarray, np.ndarray]):
    x_ND, words_N = pool
    points = ArrayPoints(x_ND, words_N)
    start_KD = initial_centroids(points.sample(1000, 0), 20, seed=0)
    result = lloyd(points, start_KD, iterations=6)
    centroids_KD, labels_N = plain_lloyd(x_ND, start_KD, 6)
    assert np.abs(result.centroids_KD - centroids_KD).max() < 1e-5
    assert (points.labels(result.centroids_KD)[0] == labels_N).mean() > 0.999  # float32 rounds a near-tie otherwise


def test_finds_well_separated_clusters_as_scikit_learn_does():
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    x_ND = blobs(2000, 32, 12, seed=3)
    points = ArrayPoints(x_ND, words(2000))
    start_KD = initial_centroids(points.sample(2000, 0), 12, seed=0)
    result = lloyd(points, start_KD, iterations=20)
    other = KMeans(12, init=start_KD, n_init=1, algorithm="lloyd").fit(x_ND.astype(np.float32))
    assert adjusted_rand_score(points.labels(result.centroids_KD)[0], other.labels_) == 1.0


def test_result_describes_the_returned_centroids(pool: tuple[np.ndarray, np.ndarray]):
    points = ArrayPoints(*pool)
    result = kmeans(points, 30, seed=0, iterations=3)
    again = ArrayPoints(*pool).assign(result.centroids_KD)
    assert again.counts_K.tolist() == result.counts_K.tolist()
    assert again.inertia / 2**30 == result.inertia[-1]
    assert len(result.inertia) == result.iterations + 1 == 4
    assert all(later < earlier for earlier, later in zip(result.inertia, result.inertia[1:], strict=False))
    assert np.allclose(np.linalg.norm(result.centroids_KD, axis=1), 1.0, atol=1e-6)


def test_stops_when_inertia_no_longer_falls():
    points = ArrayPoints(blobs(500, 16, 5, seed=1), words(500))
    result = kmeans(points, 5, seed=0, iterations=100)
    assert result.iterations < 50
    assert kmeans(points, 5, seed=0, iterations=100, tol=0.5).iterations <= result.iterations


def test_sums_from_moved_rows_equal_sums_from_nothing(pool: tuple[np.ndarray, np.ndarray]):
    x_ND, words_N = pool
    points, rng = ArrayPoints(x_ND, words_N), np.random.default_rng(0)
    centroids_KD = initial_centroids(points.sample(1000, 0), 40, seed=0)
    for step in range(4):
        partial = points.assign(centroids_KD)
        fresh = ArrayPoints(x_ND, words_N).assign(centroids_KD)
        labels_N, _ = points.labels(centroids_KD)
        exact_KD = np.stack([x_ND[labels_N == cluster].astype(np.float64).sum(axis=0) for cluster in range(40)])
        assert partial.sums_KD.tobytes() == fresh.sums_KD.tobytes() == exact_KD.tobytes(), step
        centroids_KD = centroids_KD + 0.01 * rng.standard_normal(centroids_KD.shape).astype(np.float32)


def test_partial_sums_survive_the_callers_changes():
    points = ArrayPoints(blobs(100, 8, 3, seed=1), words(100))
    centroids_KD = initial_centroids(points.sample(100, 0), 3, seed=0)
    first = points.assign(centroids_KD)
    kept = first.sums_KD.copy()
    first.sums_KD[:] = 0
    assert points.assign(centroids_KD).sums_KD.tobytes() == kept.tobytes()


def test_only_live_rows_take_part(pool: tuple[np.ndarray, np.ndarray]):
    x_ND, words_N = pool
    alive_N = np.random.default_rng(2).random(len(x_ND)) < 0.3
    masked, cut = ArrayPoints(x_ND, words_N, alive_N), ArrayPoints(x_ND[alive_N], words_N[alive_N])
    left, right = kmeans(masked, 20, seed=1, iterations=5), kmeans(cut, 20, seed=1, iterations=5)
    assert masked.count() == int(alive_N.sum())
    assert left.centroids_KD.tobytes() == right.centroids_KD.tobytes()
    labels_N, similarity_N = masked.labels(left.centroids_KD)
    assert (labels_N[~alive_N] == -1).all()
    assert np.isnan(similarity_N[~alive_N]).all()
    assert labels_N[alive_N].tobytes() == cut.labels(right.centroids_KD)[0].tobytes()


def test_read_only_and_mapped_arrays(tmp_path):
    x_ND = blobs(300, 16, 4, seed=0)
    np.save(tmp_path / "x.npy", x_ND)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected = kmeans(ArrayPoints(x_ND, words(300)), 4, seed=0)
    assert kmeans(ArrayPoints(mapped, words(300)), 4, seed=0).centroids_KD.tobytes() == expected.centroids_KD.tobytes()


@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_fewer_rows_than_clusters(num_rows: int):
    x_ND = blobs(num_rows, 8, 3, seed=0)
    points = ArrayPoints(x_ND, words(num_rows))
    result = kmeans(points, 10, seed=0)
    assert len(result.centroids_KD) == num_rows
    assert sorted(points.labels(result.centroids_KD)[0].tolist()) == list(range(num_rows))


def test_identical_rows_make_one_cluster():
    x_ND = np.repeat(blobs(1, 8, 1, seed=0), 500, axis=0)
    result = kmeans(ArrayPoints(x_ND, words(500)), 10, seed=0)
    assert result.centroids_KD.shape == (1, 8)
    assert result.counts_K.tolist() == [500]


def test_many_duplicates_and_single_rows():
    x_ND = np.concatenate([np.repeat(blobs(3, 8, 3, seed=0), 400, axis=0), blobs(7, 8, 7, seed=5)])
    result = kmeans(ArrayPoints(x_ND, words(len(x_ND))), 9, seed=0)
    assert len(result.centroids_KD) == 9
    assert result.counts_K.sum() == len(x_ND)
    assert np.isfinite(result.centroids_KD).all()
    assert len(kmeans(ArrayPoints(x_ND, words(len(x_ND))), 50, seed=0).centroids_KD) == 10


def test_zero_vectors_do_not_break_it():
    x_ND = np.concatenate([np.zeros((5, 8), np.float16), -np.zeros((5, 8), np.float16), blobs(20, 8, 3, seed=0)])
    result = kmeans(ArrayPoints(x_ND, words(30)), 25, seed=0)
    assert len(result.centroids_KD) == 21
    assert np.isfinite(result.centroids_KD).all()
    assert result.counts_K.sum() == 30


def test_empty_shards_add_nothing(pool: tuple[np.ndarray, np.ndarray]):
    x_ND, words_N = pool
    nothing = ArrayPoints(x_ND, words_N, np.zeros(len(x_ND), bool))
    shards = MergedPoints([ArrayPoints(x_ND[:0], words_N[:0]), ArrayPoints(x_ND, words_N), nothing])
    expected = kmeans(ArrayPoints(x_ND, words_N), 10, seed=0, iterations=3)
    assert kmeans(shards, 10, seed=0, iterations=3).centroids_KD.tobytes() == expected.centroids_KD.tobytes()


def test_refuses_what_it_cannot_cluster():
    x_ND = blobs(10, 8, 3, seed=0)
    with pytest.raises(ConfigError, match="k=0"):
        kmeans(ArrayPoints(x_ND, words(10)), 0, seed=0)
    with pytest.raises(DataError, match="no rows"):
        kmeans(ArrayPoints(x_ND[:0], words(0)), 3, seed=0)
    with pytest.raises(DataError, match="float16"):
        ArrayPoints(x_ND.astype(np.float32), words(10))
    for bad in (np.nan, np.inf, 1.5, -2):
        broken = x_ND.copy()
        broken[7, 3] = bad
        with pytest.raises(DataError, match="not finite or not in"):
            ArrayPoints(broken, words(10))


def test_empty_clusters_split_the_largest_by_rank():
    sums_KD = np.zeros((6, 4))
    sums_KD[0], sums_KD[2], sums_KD[4] = [2, 2, 2, 2], [4, -4, 4, 5], [1, 0, 0, 0]
    partial = PartialSums(sums_KD, np.array([4, 0, 9, 0, 1, 0]), 0)
    before_KD = np.full((6, 4), 0.5, np.float32)
    moved_KD, repaired = next_centroids(partial, before_KD)
    assert repaired
    units_KD = sums_KD / np.maximum(np.linalg.norm(sums_KD, axis=1, keepdims=True), 1)
    for empty, donor in ((1, 2), (3, 0)):  # the largest first, then the next
        for half in (empty, donor):
            assert 0.999999 < moved_KD[half] @ units_KD[donor] < 1.0
        assert not np.array_equal(moved_KD[empty], moved_KD[donor])
    assert np.array_equal(moved_KD[5], before_KD[5])  # nothing of two rows left to split
    assert np.allclose(np.linalg.norm(moved_KD, axis=1), 1.0)


def test_ties_go_to_the_lowest_centroid():
    x_ND = blobs(50, 16, 5, seed=0)
    centroids_KD = np.concatenate([x_ND[:3]] * 3).astype(np.float32)
    labels_N, _ = nearest_centroid(x_ND, centroids_KD)
    assert labels_N.max() <= 2
    many_KD = np.concatenate([centroids_KD[3:4]] * (CENTROID_BLOCK + 10))
    assert nearest_centroid(x_ND, many_KD)[0].tolist() == [0] * 50


def test_more_centroids_than_one_block():
    rng = np.random.default_rng(0)
    x_ND = unit_f16(rng.standard_normal((300, 16)))
    centroids_KD = unit_f16(rng.standard_normal((CENTROID_BLOCK + 5, 16))).astype(np.float32)
    labels_N, best_N = nearest_centroid(x_ND, centroids_KD)
    scores = x_ND.astype(np.float64) @ centroids_KD.T.astype(np.float64)
    assert np.abs(scores[np.arange(300), labels_N] - scores.max(axis=1)).max() < 1e-6
    assert np.abs(best_N - scores.max(axis=1)).max() < 1e-6


@pytest.mark.parametrize("k", [1, 2, 17, 40, 300])
def test_bits_of_a_similarity_do_not_depend_on_place_or_threads(k: int):
    import torch

    x_ND, rng = blobs(5000, 96, 40, seed=0, noise=1.0), np.random.default_rng(1)
    centroids_KD = unit_f16(rng.standard_normal((k, 96))).astype(np.float32)
    labels_N, best_N = nearest_centroid(x_ND, centroids_KD)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            picked = rng.permutation(5000)[:2501]
            labels_M, best_M = nearest_centroid(x_ND, centroids_KD, picked)
            assert labels_M.tobytes() == labels_N[picked].tobytes()
            assert best_M.tobytes() == best_N[picked].tobytes()
    finally:
        torch.set_num_threads(threads)


def test_seeding_follows_the_distances():
    """Far points are drawn: one row at each of two far places against a thousand rows in one."""
    near = blobs(1000, 8, 1, seed=0, noise=0.005)
    far = unit_f16(-near[:1].astype(np.float64) + np.array([[0.3] + [0] * 7]))
    x_MD = np.concatenate([near, far])
    hits = sum((initial_centroids(x_MD, 2, seed) @ far[0].astype(np.float32)).max() > 0.99 for seed in range(50))
    assert hits > 40


def test_block_drawing_has_the_plain_distribution():
    """Frequencies of three centroids in order, against those of k-means++ that draws one at a time."""
    x_MD = np.array([[1, 0], [0.9, 0.43], [0, 1], [-0.7, -0.7]])
    x_MD = unit_f16(x_MD)
    x = x_MD.astype(np.float64)
    apart = np.maximum(0, 1 - x @ x.T)
    np.fill_diagonal(apart, 0)
    expected, seen, runs = np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), 1500
    for a in range(4):
        for b in range(4):
            left = np.minimum(apart[a], apart[b])
            expected[a, b] = apart[a, b] / apart[a].sum() / 4 * left / left.sum()
    for seed in range(runs):
        picked = initial_centroids(x_MD, 3, seed)
        seen[tuple((picked @ x_MD.T.astype(np.float32)).argmax(axis=1))] += 1
    assert np.abs(seen / runs - expected).max() < 0.03  # four standard deviations of the most frequent
    assert np.abs((seen / runs - expected).sum(axis=(0, 2))).max() < 0.05


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([-1.0, -0.5, -(2.0**-24), 0.0, 2.0**-24, 0.333, 1.0]), min_size=1, max_size=60), st.data()
)
def test_float16_sums_are_exact_in_any_order(values: list[float], data: st.DataObject):
    x_ND = np.array(values, np.float16)[:, None]
    order = np.array(data.draw(st.permutations(range(len(values)))))
    labels_N = np.arange(len(values), dtype=np.int32) % 3
    left, right = np.zeros((3, 1)), np.zeros((3, 1))
    add_rows(left, x_ND, None, labels_N, 1.0)
    add_rows(right, x_ND, order, labels_N[order], 1.0)
    assert left.tobytes() == right.tobytes()
