"""The probe equals scikit-learn's logistic regression and does not notice how its rows come."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from engine.algorithms.split import validation_mask
from engine.artifacts import Step, write_table
from engine.errors import DataError
from engine.models.probe import ProbeModel, ProbeSettings, train_probe
from engine.store import Store
from engine.trainer import MODEL_FILE, Trainer

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


@pytest.mark.parametrize("l2", [1.0, 0.05])
def test_soft_targets_equal_weighted_copies_of_each_row(l2):
    x_ND, hard_N, words_N = planted(800)
    noise_N = np.random.default_rng(3).random(800)
    soft_N = np.where(hard_N, 0.5 + noise_N / 2, noise_N / 2)
    settings = ProbeSettings(l2=l2, validation_fraction=0.0)
    model, _ = train_probe(x_ND, soft_N, words_N, settings, seed=0)
    hard_weight, easy_weight = 800 / (2 * soft_N.sum()), 800 / (2 * (1 - soft_N).sum())
    reference = LogisticRegression(C=1 / l2, tol=1e-12, max_iter=20000)
    reference.fit(
        np.concatenate([x_ND, x_ND]).astype(np.float64),
        np.repeat([1, 0], 800),
        sample_weight=np.concatenate([soft_N * hard_weight, (1 - soft_N) * easy_weight]),
    )
    assert np.abs(reference.coef_[0] - model.weight_D).max() < 1e-4
    assert reference.intercept_[0] == pytest.approx(model.intercept, abs=1e-4)


def test_targets_of_zero_and_one_are_hard_labels_bit_for_bit():
    x_ND, hard_N, words_N = planted(500)
    expected, metrics = train_probe(x_ND, hard_N, words_N, SETTINGS, seed=0)
    for target_N in (hard_N.astype(np.float32), hard_N.astype(np.float64)):
        model, again = train_probe(x_ND, target_N, words_N, SETTINGS, seed=0)
        assert model.to_bytes() == expected.to_bytes()
        assert again == metrics


def test_soft_targets_are_measured_as_classes():
    x_ND, hard_N, words_N = planted(1000)
    soft_N = np.where(hard_N, 0.9, 0.2)
    model, metrics = train_probe(x_ND, soft_N, words_N, SETTINGS, seed=0)
    _, of_hard = train_probe(x_ND, hard_N, words_N, SETTINGS, seed=0)
    assert metrics["hard_rate"] == hard_N.mean() == of_hard["hard_rate"]
    assert metrics["val_auc"] == pytest.approx(of_hard["val_auc"], abs=0.01)
    assert metrics["val_ece"] == pytest.approx(of_hard["val_ece"], abs=0.05)  # calibrated to the classes
    assert model.probability(x_ND).mean() == pytest.approx(hard_N.mean(), abs=0.05)


def test_soft_targets_that_are_true_probabilities_teach_more_than_their_draws():
    rng = np.random.default_rng(0)
    x_ND = rng.normal(size=(150, 32)) / np.sqrt(32)
    rule_D = 6 * rng.normal(size=32)
    p_N = 1 / (1 + np.exp(-(x_ND @ rule_D)))
    words_N = rng.integers(0, 2**64, 150, dtype=np.uint64)
    settings = ProbeSettings(l2=0.1, validation_fraction=0.0)
    test_ND = rng.normal(size=(4000, 32)) / np.sqrt(32)
    side_N = test_ND @ rule_D > 0
    found = [
        roc_auc_score(side_N, train_probe(x_ND, target_N, words_N, settings, seed=0)[0].logit(test_ND))
        for target_N in (p_N, rng.random(150) < p_N)
    ]
    assert found[0] > found[1] + 0.02


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan])
def test_a_target_is_a_probability(bad):
    x_ND, hard_N, words_N = planted(10)
    target_N = hard_N.astype(np.float64)
    target_N[3] = bad
    with pytest.raises(ValueError, match="not a probability"):
        train_probe(x_ND, target_N, words_N, SETTINGS, seed=0)


def label_step(store: Store, name: str, rows: slice, soft: list[float | None] | None) -> Step:
    """A committed step of labels, as a round leaves it; rows of `planted(300)`."""
    x_ND, hard_N, words_N = (array[rows] for array in planted(300))
    columns = {
        "row": pa.array(range(rows.start, rows.stop), pa.int64()),
        "id": [f"{word:016x}{'0' * 16}" for word in words_N],
        "vector": vector_table(x_ND)["vector"],
        "prompt": [""] * len(x_ND),
        "hard": pa.array(hard_N),
    }
    if soft is not None:
        columns["soft"] = pa.array(soft, pa.float32())
    step = Step(store, f"rounds/{name}/labels", {})
    write_table(step, pa.table(columns), 64)
    return step


def test_the_trainer_learns_from_soft_labels_where_there_are_any(tmp_path):
    store = Store(str(tmp_path))
    x_ND, hard_N, words_N = planted(300)
    soft = [None if i % 3 == 0 else 0.75 if hard_N[i] else 0.125 for i in range(150, 300)]
    steps = [label_step(store, "000", slice(0, 150), None), label_step(store, "001", slice(150, 300), soft)]
    target_N = hard_N.astype(np.float64)
    target_N[150:] = [target_N[150 + i] if value is None else value for i, value in enumerate(soft)]
    for number, count in ((0, 150), (1, 300)):  # a round of an older version first, without the column
        target = Step(store, f"rounds/{number:03d}/classifier", {})
        Trainer({"kind": "probe", "l2": 1.0}, 0, 0.2).learn(steps[: number + 1], target, None)
        expected, _ = train_probe(x_ND[:count], target_N[:count], words_N[:count], SETTINGS, seed=0)
        assert store.read_bytes(f"{target.folder}/{MODEL_FILE}") == expected.to_bytes()
