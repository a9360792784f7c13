"""Scoring vectors with the probe, beside scikit-learn's logistic regression with the same weights."""

from __future__ import annotations

import numpy as np

from benchmarks import kmeans
from benchmarks.figures import Figure, Measured, Scope, against_peer
from benchmarks.record import paired
from engine.models.probe import ProbeSettings, train_probe

LABELS = 2000


def measure(scope: Scope) -> Measured:
    """Ours sums each row in float64 in a fixed order, so that its bits do not depend on its neighbours."""
    from sklearn.linear_model import LogisticRegression

    rows = scope.rows or 200_000
    x_ND = kmeans.synthetic(rows, scope.dim, scope.clusters, seed=0)
    hard_T = x_ND[:LABELS, 0] > 0
    words = np.random.default_rng(0).integers(0, 2**63, size=LABELS).astype(np.uint64)
    probe, metrics = train_probe(x_ND[:LABELS], hard_T, words, ProbeSettings(), 0)
    peer = LogisticRegression(max_iter=1000, class_weight="balanced").fit(x_ND[:LABELS].astype(np.float64), hard_T)
    pair = paired(lambda: probe.probability(x_ND), lambda: peer.predict_proba(x_ND.astype(np.float64)), scope.rounds)
    return Measured(
        [
            *against_peer("scikit-learn's LogisticRegression", pair),
            Figure("rows/s", round(rows / pair["first_s"]["median"]), "rows/s", "higher"),
        ],
        {"rows": rows, "dim": scope.dim, "val_auc": metrics["val_auc"], "pair": pair},
    )
