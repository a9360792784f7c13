"""When to stop judging. Pure; the rule is ours (arXiv 2410.13464 says only that it uses validation accuracy)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MIN_VALIDATION_ROWS = 20  # fewer reach any accuracy by luck


def should_stop(rounds: Sequence[Mapping[str, Any]], accuracy_threshold: float, patience: int) -> bool:
    """True when the last round's validation accuracy reaches the threshold, or AUC has not risen for a while.

    Accuracy is balanced over the two classes: where few rows are hard, "always easy" would reach any threshold.

    Args:
        rounds: one mapping a round with `num_val`, `val_balanced_accuracy` and `val_auc`, None where undefined.
        accuracy_threshold: in [0, 1].
        patience: number of rounds without a better AUC that are tolerated.
    """
    last = rounds[-1]
    accuracy = last["val_balanced_accuracy"]
    if accuracy is not None and last["num_val"] >= MIN_VALIDATION_ROWS and accuracy >= accuracy_threshold:
        return True
    values = [entry["val_auc"] for entry in rounds if entry["val_auc"] is not None]
    return len(values) > patience and max(values[-patience:]) <= max(values[:-patience])
