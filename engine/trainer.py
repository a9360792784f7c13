"""The central trainer: learns hard from easy out of all labels so far, one checkpoint a round.

Its state (labels, model, round counter) is a function of the committed label steps and its randomness is derived from
(seed, round), so a trainer that dies is rebuilt by its next call: a round that has a checkpoint is read, not trained
again. It knows nothing of judges or of how a batch was chosen.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.artifacts import Step, take_rows
from engine.data.vectors import vectors_from_arrow
from engine.schema import HARD, ID, PROBABILITY, PROMPT, ROW, SOFT, VECTOR, id_words

MODEL_FILE = "model.safetensors"


def classifier_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of a classifier with everything pinned that a machine would otherwise decide by itself.

    Args:
        config: of the classifier, with `kind`.

    Returns:
        As `config`; for "finetune" a local `model` is absolute, `precision` is resolved, and `weights` is the
        fingerprint of the model's files.

    Raises:
        EnvironmentProblem: E320, the model is not here.
    """
    from engine.models.encoder import encoder_settings

    return encoder_settings(config) if config["kind"] == "finetune" else config


class Trainer:
    """Owns the classifier.

    Args:
        settings: of the classifier, as `classifier_settings` gives them: `kind` is "probe" or "finetune"; `weights`
            only tells runs apart.
        seed: of the run; training in round t uses (seed, t).
        validation_fraction: share of the labelled rows held out, chosen by id, the same rows in every round.
    """

    def __init__(self, settings: dict[str, Any], seed: int, validation_fraction: float) -> None:
        self.settings = {key: value for key, value in settings.items() if key not in ("kind", "weights")}
        self.kind = settings["kind"]
        self.seed, self.validation_fraction = seed, validation_fraction
        self.labels: list[pa.Table] = []
        self.seen: list[str] = []

    def learn(self, labels: Sequence[Step], target: Step, previous: Step | None) -> Mapping[str, Any]:
        """Trains on all labels so far and checkpoints into `target`; a complete target is only read.

        Args:
            labels: one committed step a round, with `row, id, hard, vector, prompt`, and `soft` from judges that give
                probabilities.
            previous: last round's checkpoint, for classifiers that continue from it.

        Returns:
            metrics: num_train, num_val, hard_rate, val_accuracy, val_auc, ... None where undefined.
        """
        record = target.record()
        if record is not None:
            return record.extra
        started = time.monotonic()
        for step in labels[len(self.seen) :]:
            self.labels.append(read_labels(step))
            self.seen.append(step.fingerprint)
        table = pa.concat_tables(self.labels)
        train = self._probe if self.kind == "probe" else self._finetune
        metrics = {**train(table, target, previous), "train_s": round(time.monotonic() - started, 3)}
        return target.finish(started=started, rows=0, extra=metrics).extra

    def _probe(self, table: pa.Table, target: Step, previous: Step | None) -> Mapping[str, Any]:
        from engine.models.probe import ProbeSettings, train_probe

        settings = ProbeSettings(validation_fraction=self.validation_fraction, **self.settings)
        vectors, words = vectors_from_arrow(table[VECTOR]), id_words(table[ID])
        model, metrics = train_probe(vectors, targets(table), words, settings, self.seed)
        target.store.write_bytes(f"{target.folder}/{MODEL_FILE}", model.to_bytes())
        return metrics

    def _finetune(self, table: pa.Table, target: Step, previous: Step | None) -> Mapping[str, Any]:
        from engine.models.classifier import FinetuneSettings, fetch_directory, train_finetune

        plain = {key: value for key, value in self.settings.items() if key not in ("retrain", "threads")}
        settings = FinetuneSettings(validation_fraction=self.validation_fraction, **plain)
        texts, words = table[PROMPT].to_pylist(), id_words(table[ID])
        with tempfile.TemporaryDirectory() as folder:
            start = None
            if previous is not None and self.settings["retrain"] == "continue":
                start = fetch_directory(previous.store.path(previous.folder), Path(folder) / "previous")
            trained = Path(folder) / "trained"
            metrics = train_finetune(
                texts,
                targets(table),
                words,
                settings,
                self.seed,
                trained,
                continue_from=start,
                threads=self.settings["threads"],
            )
            for file in sorted(trained.iterdir()):
                target.store.write_bytes(f"{target.folder}/{file.name}", file.read_bytes())
        return metrics


def read_labels(step: Step) -> pa.Table:
    """What training needs of a round's labels; `soft` is all null where the step has none."""
    table = step.read_all()
    if SOFT not in table.column_names:
        table = table.append_column(SOFT, pa.nulls(table.num_rows, pa.float32()))
    return table.select([ID, HARD, SOFT, VECTOR, PROMPT])


def targets(labels: pa.Table) -> np.ndarray:
    """(N,) float64 in [0, 1]: the judge's probability of hard where it gave one, else 1 for hard and 0 for easy."""
    hard = labels[HARD].cast(pa.float32())
    return pc.coalesce(labels[SOFT], hard).to_numpy().astype(np.float64)  # pyright: ignore[reportAttributeAccessIssue]


class ProbeScores:
    """M of a shard's rows from a probe: a dot product with the vector it already has. See engine.shards.Scores."""

    def __init__(self, checkpoint: Step) -> None:
        self.checkpoint = checkpoint
        self._model: Any = None

    def __reduce__(self):
        return (ProbeScores, (self.checkpoint,))

    def of(self, rows_N: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
        if self._model is None:
            from engine.models.probe import ProbeModel

            data = self.checkpoint.store.read_bytes(f"{self.checkpoint.folder}/{MODEL_FILE}")
            self._model = ProbeModel.from_bytes(data)
        return self._model.probability(x_ND)


class StepScores:
    """M of a shard's rows from a pass of a fine-tuned classifier over the pool."""

    def __init__(self, scored: Step) -> None:
        self.scored = scored

    def of(self, rows_N: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
        return take_rows(self.scored, rows_N, [PROBABILITY])[PROBABILITY].to_numpy().astype(np.float32)


@dataclass(frozen=True)
class TableScores:
    """M of the rows of V, in memory."""

    rows_V: np.ndarray  # int64
    probability_V: np.ndarray  # float32, NaN where the classifier failed

    @staticmethod
    def of_step(scored: Step) -> TableScores:
        table = scored.read_all([ROW, PROBABILITY])
        rows, probability = table[ROW].to_numpy(), table[PROBABILITY].to_numpy().astype(np.float32)
        order = np.argsort(rows, kind="stable")
        return TableScores(rows[order], probability[order])

    def of(self, rows_N: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
        return self.probability_V[np.searchsorted(self.rows_V, rows_N)]


def round_metrics_json(metrics: Mapping[str, Any]) -> bytes:
    return (json.dumps(metrics, indent=1) + "\n").encode()
