"""A finished run goes on with new rows: more rounds of judging among them, then the selector that comes of it selects.

`apply` scores new rows with the selector of a finished run and learns nothing. `update` goes on with the loop of
IterSelectTune: K-Means over the new rows gives their diverse subset V; its batches are answered and judged, the first
drawn at random, later ones by F; hard rows join the D^H of the run; the classifier learns from the labels of the run
and the new ones together, held out by id as before. Then every new row is scored by the new classifier and the D^H
that has grown. Rows judged hard are selected, rows judged easy are left out, and of the others those with an F of at
least the cut. `rule: budget` fills a number of rows instead, those judged hard first.

The cut of the run means nothing on the scale of a new classifier. So it is measured anew: it is the F that as large a
share of all rows so far reaches as the first run selected of its pool, by the updated selector, on a sample of at most
20,000 of them.

The result is a finished run: `apply` and `update` start from it as from the first, and nothing of that is read again.

Needs: a finished run of `iterselect` or `update` with its steps, the same encoder, and the generator and the judge of
its rounds. `iterselect apply --update` writes the config.
Cost: as the rounds of `iterselect` over the new rows alone; no row that an earlier run labelled is judged again. One
pass of the encoder over the new rows, one of the classifier over them and the sample.
Known bias: that of `iterselect`. The share is kept over all rows so far, so a pool far better than those before gets
more of its rows in and makes the cut rise a little for those after it.

Differs from the paper in: the paper has one pool. Its inference lets rows join D^H that no judge saw; here only those
judged hard do.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.ranking import top_rows
from engine.artifacts import Step
from engine.config_base import PathOrName
from engine.cut import PoolScores, reference_scores
from engine.errors import DataError
from engine.labelling import Before, Labelled, label_rounds
from engine.recipes.apply import checked_selector, drift_report, new_scores, score
from engine.recipes.base import Context, Selection
from engine.recipes.iterselect import DiverseConfig, diverse_subset, judged_reasons, save_selection
from engine.schema import HARD, PROMPT, ROW
from engine.shards import PoolIndex
from engine.takeover import FRESH, hard_before, labels_before, reference
from engine.trained import REFERENCE_SCORES, TrainedSelector, load_selector

EXAMPLE = {"run": "runs/iterselect"}


class Config(DiverseConfig):
    name: Literal["update"] = "update"
    run: PathOrName = Field(description="Folder of the finished run that goes on")
    rule: Literal["threshold", "budget"] = Field(
        default="threshold",
        description="threshold: every row that reaches the cut, whatever `budget` says; budget: the best",
    )


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    former, old = checked_selector(context, config.run)
    vectors = pool_vectors(context)
    index = context.index(vectors)
    try:
        diverse, labelled = rounds(context, index, vectors)
    finally:
        index.close()
    assert labelled.checkpoint is not None
    sample = reference(context, former, vectors, old.share)
    selector = TrainedSelector(
        run=context.outputs,
        config=context.config,
        pool=context.pool,
        diverse=diverse,
        checkpoint=labelled.checkpoint,
        texts=sample,
        vectors=sample,
        log=tuple(index.log),
        encoder=former.encoder,
    )
    measured = score(context, selector, sample, sample, (0.0, 1.0), REFERENCE_SCORES)
    seen = reference_scores(selector, measured)
    scored = score(context, selector, context.pool, vectors, seen.scale(config.similarity), "scores")
    new = new_scores(context, scored)
    verdicts = verdicts_of(labelled)
    selected = choose(context, config, new, seen.cut, verdicts, scored)
    report = drift_report(only_before(seen, sample), new)
    facts = {
        "clusters": diverse.require().extra["clusters"],
        "rounds": labelled.metrics,
        "judge": labelled.judge,
        "drift": report,
        "card": {
            "continues": former.run.root,
            "rows labelled before": index.log[0].require().rows,
            "cut": f"score of at least {seen.cut:.4f}" if config.rule == "threshold" else "best scores",
        },
    }
    out = "score below the cut" if config.rule == "threshold" else "not among the best scores"
    return Selection(selected, scored, out, reasons(labelled, verdicts), facts, "score")


def pool_vectors(context: Context) -> Step:
    """One unit vector per new row, from the encoder as the earlier run had it."""
    assert isinstance(context.config.recipe, Config)
    return context.embedded("embed", context.pool, PROMPT, load_selector(context.config.recipe.run).encoder)


def rounds(context: Context, index: PoolIndex, vectors: Step) -> tuple[Step, Labelled]:
    """V of the new rows, and what the rounds over it learned; what an earlier run labelled or took is not drawn."""
    config = context.config.recipe
    assert isinstance(config, Config)
    former = load_selector(config.run)
    labels = labels_before(context, former)
    index.remember(labels)
    index.remember(hard_before(context, former, labels))
    diverse = diverse_subset(context, config, index, vectors)
    return diverse, label_rounds(context, config, index, diverse, Before(labels, former.checkpoint))


def verdicts_of(labelled: Labelled) -> dict[bool, np.ndarray]:
    """Rows of the new pool that were judged hard (True) and easy (False), in whichever run."""
    assert labelled.before is not None
    tables = [labelled.before.labels.read_all([ROW, HARD]), *labelled.tables]
    rows, hard = (np.concatenate([table[name].to_numpy() for table in tables]) for name in (ROW, HARD))
    return {flag: rows[(rows >= 0) & (hard == flag)] for flag in (True, False)}


def choose(
    context: Context, config: Config, new: PoolScores, cut: float, verdicts: dict[bool, np.ndarray], scored: Step
) -> Step:
    """The step `selected`: rows judged hard, then the others by F, each best first.

    Raises:
        DataError: E472, no row was judged hard, and none reaches the cut.
    """
    f_N = new.columns["score"]
    able_N = np.isfinite(f_N)  # a row that the classifier failed on has no score

    def best(rows: np.ndarray, num: int) -> np.ndarray:
        rows = rows[able_N[rows]]
        return rows[top_rows(f_N[rows], new.words_P[rows], num)]

    judged = np.concatenate([verdicts[True], verdicts[False]])
    others = np.setdiff1d(np.arange(len(f_N)), judged)
    if config.rule == "threshold":
        settings: dict[str, Any] = {"rule": config.rule, "cut": cut}
        hard, others = best(verdicts[True], len(f_N)), best(others[f_N[others] >= cut], len(f_N))
        chosen = [(hard, "judged hard"), (others, f"score of at least {cut:.4f}, the cut")]
    else:
        settings = {"rule": config.rule, "budget": context.budget}
        hard = best(verdicts[True], context.budget)
        others = best(others, context.budget - len(hard))
        easy = best(verdicts[False], context.budget - len(hard) - len(others))
        chosen = [
            (hard, "judged hard"),
            (others, "among the best scores"),
            (easy, "judged easy, nothing else was left"),
        ]
    if not sum(len(rows) for rows, _ in chosen):
        raise DataError(
            f"no new row reaches the cut {cut:.4f}",
            where=scored.folder,
            why="and none was judged hard",
            fix="give a budget= to take the best all the same",
            code="E472",
        )
    parts = [(rows, np.array([reason] * len(rows))) for rows, reason in chosen]
    return save_selection(context, parts, settings, [scored.fingerprint], cut if config.rule == "threshold" else None)


def reasons(labelled: Labelled, verdicts: dict[bool, np.ndarray]) -> pa.Table:
    """Why rows that a judge saw were left out."""
    told = judged_reasons(labelled, {True: ", but over the budget", False: ""})
    earlier = {flag: rows[~np.isin(rows, told[ROW].to_numpy())] for flag, rows in verdicts.items()}
    words = {True: "judged hard in an earlier run, but over the budget", False: "judged easy in an earlier run"}
    tables = [
        pa.table([pa.array(rows, pa.int64()), pa.array([words[flag]] * len(rows), pa.string())], [ROW, "reason"])
        for flag, rows in earlier.items()
    ]
    return pa.concat_tables([told, *tables])


def only_before(seen: PoolScores, sample: Step) -> PoolScores:
    """Of the sample, the rows that did not come with this update: what new rows drift from."""
    before_S = ~sample.read_all([FRESH])[FRESH].to_numpy(zero_copy_only=False)
    return PoolScores(
        seen.words_P[before_S], {name: values[before_S] for name, values in seen.columns.items()}, seen.selected
    )
