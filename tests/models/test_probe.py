"""The probe equals scikit-learn's logistic regression and does not notice how its rows come."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from engine.algorithms.split import validation_mask
from engine.errors import DataError
from engine.models.probe import ProbeModel, ProbeSettings, train_probe

SETTINGS = ProbeSettings()


def planted(num_rows: int, dim: int = 48, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors whose label is the side of a hidden hyperplane, a third of them hard, a little noise."""
    rng = np.random.default_rng(seed)
    x_ND = rng.normal(size=(num_rows, dim))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    side_N = x_ND @ np.random.default_rng(99).normal(size=dim) + 0.1 * rng.normal(size=num_rows)
    words_N = rng.integers(0, 2**64, num_rows, dtype=np.uint64)
    return x_ND.astype(np.float16), side_N > 0.4, words_N


def vector_table(x_ND: np.ndarray, missing: tuple[int, ...] = ()) -> pa.Table:
    mask = pa.array([i in missing for i in range(len(x_ND))])
    column = pa.FixedSizeListArray.from_arrays(pa.array(x_ND.reshape(-1)), x_ND.shape[1], mask=mask)
    return pa.table({"vector": column})


def test_learns_a_planted_rule():
    model, metrics = train_probe(*planted(3000), SETTINGS, seed=0)
    assert metrics["val_auc"] > 0.95
    assert metrics["val_ece"] < 0.05
    assert metrics["num_train"] + metrics["num_val"] == 3000
    x_ND, hard_N, _ = planted(2000, seed=5)
    p_N = model.probability(x_ND)
    assert roc_auc_score(hard_N, p_N) > 0.95
    assert p_N.mean() == pytest.approx(hard_N.mean(), abs=0.03)  # calibrated back from balanced classes


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_equal_to_scikit_learn(l2):
    x_ND, hard_N, words_N = planted(800)
    model, metrics = train_probe(x_ND, hard_N, words_N, ProbeSettings(l2=l2), seed=0)
    held_N = validation_mask(words_N, 0, SETTINGS.validation_fraction)
    reference = LogisticRegression(C=1 / l2, class_weight="balanced", tol=1e-10, max_iter=5000)
    reference.fit(x_ND[~held_N].astype(np.float64), hard_N[~held_N])
    assert np.abs(reference.coef_[0] - model.weight_D).max() < 1e-3
    expected = roc_auc_score(hard_N[held_N], reference.decision_function(x_ND[held_N].astype(np.float64)))
    assert metrics["val_auc"] == pytest.approx(expected, abs=0.01)


def test_same_bytes_for_any_order_of_rows_and_number_of_threads():
    x_ND, hard_N, words_N = planted(700)
    model, _ = train_probe(x_ND, hard_N, words_N, SETTINGS, seed=3)
    order_N = np.random.default_rng(1).permutation(700)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        again, _ = train_probe(x_ND[order_N], hard_N[order_N], words_N[order_N], SETTINGS, seed=3)
        assert again.to_bytes() == model.to_bytes()
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)


def test_score_of_a_row_ignores_split_and_order():
    model, _ = train_probe(*planted(300), SETTINGS, seed=0)
    x_ND, _, _ = planted(9001, seed=2)
    whole_N = model.probability(x_ND)
    for cuts in ([1, 2, 5, 4095, 4096, 4097], list(range(100, 9001, 1000)), [8999]):
        pieces = [model.probability(piece_ND) for piece_ND in np.split(x_ND, cuts)]
        assert np.concatenate(pieces).tobytes() == whole_N.tobytes()
    order_N = np.random.default_rng(0).permutation(9001)
    assert model.probability(x_ND[order_N]).tobytes() == whole_N[order_N].tobytes()
    assert model.probability(np.asfortranarray(x_ND)).tobytes() == whole_N.tobytes()
    assert model.probability(x_ND[:0]).shape == (0,)


def test_bytes_round_trip():
    model, metrics = train_probe(*planted(300), SETTINGS, seed=0)
    again = ProbeModel.from_bytes(model.to_bytes())
    assert again.to_bytes() == model.to_bytes()
    assert again.metrics == metrics
    x_ND, _, _ = planted(100, seed=2)
    assert again.probability(x_ND).tobytes() == model.probability(x_ND).tobytes()
    for broken in (b"", b"not a model", model.to_bytes()[:-3]):
        with pytest.raises(DataError, match="E410"):
            ProbeModel.from_bytes(broken)


@pytest.mark.parametrize(("label", "expected"), [(True, 9 / 10), (False, 1 / 10)])
def test_one_class_gives_the_smoothed_prior(label, expected):
    x_ND, _, words_N = planted(8)
    model, metrics = train_probe(x_ND, np.full(8, label), words_N, ProbeSettings(validation_fraction=0.0), seed=0)
    assert metrics["constant"]
    assert metrics["val_accuracy"] is None
    assert model.probability(x_ND) == pytest.approx(np.full(8, expected))


@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 9])
def test_few_labels(num_rows):
    model, metrics = train_probe(*planted(num_rows, seed=4), SETTINGS, seed=0)
    p_N = model.probability(planted(50)[0])
    assert np.isfinite(p_N).all()
    assert metrics["num_train"] + metrics["num_val"] == num_rows


def test_separable_without_penalty_stays_finite():
    x_ND, _, words_N = planted(60)
    model, _ = train_probe(x_ND, x_ND[:, 0] > 0, words_N, ProbeSettings(l2=0.0), seed=0)
    assert np.isfinite(model.weight_D).all()
    assert np.isfinite(model.probability(x_ND)).all()


def test_a_label_added_later_keeps_the_split():
    x_ND, hard_N, words_N = planted(600)
    _, early = train_probe(x_ND[:300], hard_N[:300], words_N[:300], SETTINGS, seed=0)
    _, late = train_probe(x_ND, hard_N, words_N, SETTINGS, seed=0)
    assert early["num_val"] == validation_mask(words_N, 0, 0.2)[:300].sum()
    assert late["num_val"] == validation_mask(words_N, 0, 0.2).sum()
