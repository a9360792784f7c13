"""The cheap classifier: class-weighted logistic regression on the frozen vectors of the pool.

Training and scoring are float64 in a fixed order of the rows and of the columns, so the model is the same for any
order of the labels and any number of threads, and a row's score is the same alone, in a part or in the whole pool.
It knows nothing of texts, encoders or rounds.

Objective: sum_i [h s_i softplus(-z_i) + e (1 - s_i) softplus(z_i)] + l2 / 2 * |w|^2 with z_i = w . x_i + b, the bias
free, s_i in [0, 1] the target and h, e the weights of hard and easy: every row counts as a hard one with weight s_i and
as an easy one with weight 1 - s_i. For targets 0 and 1 it is scikit-learn's LogisticRegression with C = 1 / l2 and
class_weight="balanced".

Legend: N rows, D dimensions, T training rows, V validation rows.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.algorithms.calibration import Calibration, calibrated_probability, validation_report
from engine.algorithms.split import class_weights, one_class, smoothed_prior_logit, validation_mask
from engine.errors import DataError
from engine.schema import canonical_json

TILE_ROWS = 4096  # bounds the float64 copy of a part; has no influence on the result
MAX_LBFGS_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How a probe is trained.

    Attributes:
        l2: strength of the penalty against the sum over rows, so its influence falls as labels come in. 0 turns it off.
        validation_fraction: share of the labels held out by id, in [0, 1).
    """

    l2: float = 1.0
    validation_fraction: float = 0.2


@dataclass(frozen=True, kw_only=True)
class ProbeModel:
    """A hyperplane, its calibration and how well it did.

    Attributes:
        weight_D: (D,) float64, all zero for a constant model.
        intercept: added to the dot product.
        calibration: fitted on the validation rows.
        metrics: as returned by `train_probe`.
    """

    weight_D: np.ndarray
    intercept: float
    calibration: Calibration = field(default_factory=Calibration)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def logit(self, x_ND: np.ndarray) -> np.ndarray:
        """Uncalibrated log odds of hard, (N,) float64. Each row is one sum over contiguous columns, never BLAS."""
        logit_N = np.empty(len(x_ND))
        for start in range(0, len(x_ND), TILE_ROWS):
            tile_ND = np.ascontiguousarray(x_ND[start : start + TILE_ROWS], np.float64)
            logit_N[start : start + TILE_ROWS] = (tile_ND * self.weight_D).sum(axis=1)
        return logit_N + self.intercept

    def probability(self, x_ND: np.ndarray) -> np.ndarray:
        """Calibrated probability of hard.

        Args:
            x_ND: (N, D) float16, or any float.

        Returns:
            (N,) float32, bit-equal for any tiling or order of the rows.
        """
        calibration = self.calibration
        p_N = calibrated_probability(self.logit(x_ND), calibration.temperature, calibration.bias)
        return p_N.astype(np.float32)

    def to_bytes(self) -> bytes:
        """A safetensors file; the same model gives the same bytes."""
        from safetensors.numpy import save

        tensors = {
            "weight": self.weight_D,
            "intercept": np.array([self.intercept]),
            "calibration": np.array([self.calibration.temperature, self.calibration.bias]),
        }
        return save(tensors, {"metrics": canonical_json(self.metrics)})

    @classmethod
    def from_bytes(cls, data: bytes) -> ProbeModel:
        """Reads what `to_bytes` wrote.

        Raises:
            DataError: E410, the bytes are not a probe.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(data)
            (header_bytes,) = struct.unpack("<Q", data[:8])
            metrics = json.loads(json.loads(data[8 : 8 + header_bytes])["__metadata__"]["metrics"])
            temperature, bias = tensors["calibration"].tolist()
            weight_D, intercept = tensors["weight"], float(tensors["intercept"][0])
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(
                "the file is not a probe model",
                why=str(error),
                fix="delete the step that wrote it and rerun",
                code="E410",
            ) from error
        return cls(weight_D=weight_D, intercept=intercept, calibration=Calibration(temperature, bias), metrics=metrics)


def train_probe(
    x_ND: np.ndarray, target_N: np.ndarray, words_N: np.ndarray, settings: ProbeSettings, seed: int
) -> tuple[ProbeModel, dict[str, Any]]:
    """Trains on the rows that are not held out, calibrates and measures on those that are.

    Soft targets are what is learned from. What is measured and calibrated to is the class, hard from 0.5 on, so that
    the metrics and the meaning of the probability are those of a run with hard labels.

    Args:
        x_ND: (N, D) float16 unit vectors, or any float.
        target_N: (N,) bool, hard or not; or float in [0, 1], the probability of hard.
        words_N: (N,) uint64 from `engine.schema.id_words`, distinct.
        settings: see `ProbeSettings`.
        seed: of the split, the same in every round; training itself draws nothing.

    Returns:
        the model, and its metrics: `num_train`, `hard_rate` (of all N classes, None for N = 0), `constant`, and those
        of `engine.algorithms.calibration.validation_report`. A constant model (one class to train on, or no rows)
        gives everyone the smoothed prior (hard + 1) / (rows + 2), uncalibrated.

    Raises:
        ValueError: the lengths differ, or a target is not in [0, 1].
    """
    if not len(x_ND) == len(target_N) == len(words_N):
        raise ValueError(f"{len(x_ND)} vectors, {len(target_N)} labels and {len(words_N)} ids")
    order_N = np.argsort(words_N, kind="stable")
    x_ND, words_N = np.asarray(x_ND[order_N], np.float64), words_N[order_N]
    target_N = np.asarray(target_N, np.float64)[order_N]
    if not ((target_N >= 0) & (target_N <= 1)).all():
        raise ValueError("a target is not a probability")
    hard_N = np.where(target_N >= 0.5, 1.0, 0.0)
    held_N = validation_mask(words_N, seed, settings.validation_fraction)
    target_T = target_N[~held_N]
    constant = one_class(target_T)
    if constant:
        weight_D, intercept = np.zeros(x_ND.shape[1]), smoothed_prior_logit(target_T)
    else:
        weight_D, intercept = _fit(x_ND[~held_N], target_T, settings.l2)
    model = ProbeModel(weight_D=weight_D, intercept=intercept)
    calibration, report = validation_report(model.logit(x_ND[held_N]), hard_N[held_N], words_N[held_N], seed)
    hard_rate = float(hard_N.mean()) if len(hard_N) else None
    metrics = {"num_train": len(target_T), "hard_rate": hard_rate, "constant": constant, **report}
    return replace(model, calibration=Calibration() if constant else calibration, metrics=metrics), metrics


def _fit(x_TD: np.ndarray, target_T: np.ndarray, l2: float) -> tuple[np.ndarray, float]:
    """Minimises the objective above by L-BFGS from zero, on one thread: BLAS sums differ by their number."""
    import torch

    easy_weight, hard_weight = class_weights(target_T)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x, target = torch.from_numpy(x_TD), torch.from_numpy(target_T)
        # A row's two weighted halves, written as one weight and one target; exactly 0 and 1 for targets 0 and 1.
        weight_T = target * hard_weight + (1 - target) * easy_weight
        weighted_T = target * hard_weight / weight_T
        parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [parameters],
            max_iter=MAX_LBFGS_STEPS,
            tolerance_grad=1e-9,
            tolerance_change=1e-14,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def objective() -> torch.Tensor:
            optimizer.zero_grad()
            logit = x @ parameters[:-1] + parameters[-1]
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logit, weighted_T, weight_T, reduction="sum")
            loss = (losses + l2 / 2 * parameters[:-1].square().sum()) / len(target)
            loss.backward()
            return loss

        optimizer.step(objective)
    finally:
        torch.set_num_threads(threads)
    fitted = parameters.detach().numpy()
    return fitted[:-1].copy(), float(fitted[-1])
