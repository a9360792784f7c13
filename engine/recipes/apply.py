"""The selector of a finished run on new rows: same classifier, same hard set, same cut, no judge.

A run of `iterselect` ends with a classifier, a hard set D^H and a cut. New rows are embedded with the run's encoder and
scored as its pool was: M from the classifier, R to D^H, F = alpha * M + (1 - alpha) * R. Those with an F of at least
the cut are selected, so as much of the new data goes out as is good enough, which may be more or less than the share
that the run took; `rule: budget` takes the best by F instead. A row that the run's pool had too gets the very numbers
it has there.

How far the new rows are from the pool is measured by score and by cluster (engine/compare/drift.py), told in the
summary, the card and `drift.json`, and warned of above the usual limits.

Needs: a finished run of `iterselect` or `update` with its steps, and the same encoder. `iterselect apply` writes the
config.
Cost: one pass of the encoder over the new rows, and the product of their vectors with D^H; no calls.
Known bias: that of the run it applies. D^H does not grow, so a topic that is new since then has a low R; the drift
of the clusters tells of it, and `update` (`iterselect apply --update`) judges some of the new rows.

Differs from the paper in: the paper has no second pool. Its D^H grows while rows are selected; here it stays.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.ranking import top_rows
from engine.artifacts import Joined, Source, Step, take_rows, write_table
from engine.compare.drift import decile_counts, drift, group_counts
from engine.config import RecipeConfig
from engine.config_base import PathOrName
from engine.cut import PoolScores, pool_scores
from engine.errors import ConfigError, DataError
from engine.labelling import classify
from engine.recipes.base import Context, Selection
from engine.runtime import StageSpec
from engine.schema import ID, PROBABILITY, PROMPT, ROW, VECTOR, id_words
from engine.trained import SCORED, ScoreNewRows, TrainedSelector, load_selector

EXAMPLE = {"run": "runs/iterselect"}


class Config(RecipeConfig):
    name: Literal["apply"] = "apply"
    run: PathOrName = Field(description="Folder of the finished run whose selector is applied")
    rule: Literal["threshold", "budget"] = Field(
        default="threshold",
        description="threshold: every row that reaches the cut of the run, whatever `budget` says; budget: the best",
    )


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    selector, old = checked_selector(context, config.run)
    vectors = context.embedded("embed", context.pool, PROMPT, selector.encoder)
    scored = score(context, selector, context.pool, vectors, old.scale(selector.recipe.similarity), "scores")
    new = new_scores(context, scored)
    selected = choose(context, config, new, old.cut, scored)
    report = drift_report(old, new)
    context.outputs.write_bytes("drift.json", (json.dumps(report, indent=1) + "\n").encode())
    for name, found in report["columns"].items():
        if found["level"] != "none":
            context.runtime.observer.note(warning(name, found))
    facts = {
        "clusters": selector.diverse.require().extra["clusters"],
        "drift": report,
        "applied": {"run": selector.run.root, "rule": config.rule, "cut": old.cut},
        "card": card_facts(selector, config, old.cut, report),
    }
    out = "score below the cut" if config.rule == "threshold" else "not among the best scores"
    return Selection(selected, scored, out, None, facts, "score")


def checked_selector(context: Context, run: str) -> tuple[TrainedSelector, PoolScores]:
    """The run's selector and scores.

    Raises:
        ConfigError: E226, E227, as `load_selector`, and for an output folder that is the run's own; E228, the config
            names another encoder than the run's.
    """
    selector = load_selector(run)
    if context.outputs.root == selector.run.root:
        raise ConfigError("out= is the run itself", where=run, fix="choose another folder", code="E227")
    theirs, ours = selector.config.encoder, context.config.encoder
    if ours != theirs:
        other = [key for key, value in theirs.model_dump().items() if getattr(ours, key) != value]
        raise ConfigError(
            f"the run was made with another encoder ({', '.join(f'encoder.{key}' for key in other)} differ)",
            where=run,
            fix="leave the encoder as it was: `iterselect apply` copies it",
            code="E228",
        )
    return selector, pool_scores(selector)


def score(
    context: Context, selector: TrainedSelector, texts: Step, vectors: Step, scale: tuple[float, float], name: str
) -> Step:
    """M, R, F and cluster of rows: the step `name`, parallel to the parts of their texts and vectors."""
    source: Source = Joined(texts, vectors)
    columns = [ID, VECTOR]
    inputs = [vectors.fingerprint, *selector.fingerprints]
    if selector.recipe.classifier.kind == "finetune":
        passed = "classify" if name == "scores" else f"{name}_classify"
        classified = classify(context, selector.recipe, texts, selector.checkpoint, passed)
        source, columns = Joined(source, classified), [*columns, PROBABILITY]
        inputs.append(classified.fingerprint)
    recipe = selector.recipe
    settings = {"alpha": recipe.alpha, "similarity": recipe.similarity, "scale": list(scale)}
    target = context.step(name, settings, inputs)
    stage = StageSpec(
        name=name,
        factory=ScoreNewRows,
        kwargs={"selector": selector, "scale": scale},
        columns_in=columns,
        columns_out=ScoreNewRows.columns_out,
        resources=context.resources(),
    )
    context.runtime.map_parts(stage, source, target)
    return target


def new_scores(context: Context, scored: Step) -> PoolScores:
    """Ids and numbers of all new rows."""
    words, pieces = [], []
    for part in context.pool.require().parts:
        words.append(id_words(context.pool.read(part.index, [ID])[ID]))
        pieces.append(scored.read(part.index, [*SCORED, "cluster"]))
    table = pa.concat_tables(pieces)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return PoolScores(np.concatenate(words), columns, 0)


def choose(context: Context, config: Config, new: PoolScores, cut: float, scored: Step) -> Step:
    """The step `selected`, best first.

    Raises:
        DataError: E472, no row reaches the cut.
    """
    f_N = new.columns["score"]
    able_I = np.flatnonzero(np.isfinite(f_N))  # a row that the classifier failed on has no score
    settings: dict[str, Any] = {"rule": config.rule, "budget": context.budget, "cut": cut}
    num, reason = context.budget, "among the best scores"
    if config.rule == "threshold":
        settings |= {"budget": None}
        able_I = able_I[f_N[able_I] >= cut]
        num, reason = len(able_I), f"score of at least {cut:.4f}, the cut of the run"
    rows = able_I[top_rows(f_N[able_I], new.words_P[able_I], num)]
    if not len(rows):
        best = f"the best has {np.nanmax(f_N):.4f}" if np.isfinite(f_N).any() else "no row has a score"
        raise DataError(
            f"no new row reaches the cut {cut:.4f}",
            where=scored.folder,
            why=best,
            fix="give a budget= to take the best all the same, or run iterselect on the new data",
            code="E472",
        )
    target = context.step("selected", settings, [scored.fingerprint], version=2)
    if target.record() is None:
        ids = take_rows(context.pool, rows, [ID])
        columns = [ids[ROW], ids[ID], pa.array(np.arange(len(rows))), pa.array([reason] * len(rows))]
        applied = cut if config.rule == "threshold" else float(f_N[rows[-1]])
        write_table(target, pa.table(columns, ["row", "id", "rank", "reason"]), context.pool_rows, {"cut": applied})
    return target


def drift_report(old: PoolScores, new: PoolScores) -> dict[str, Any]:
    """How far the new rows are from the run's pool.

    Returns:
        `pool_rows`, `new_rows`, `known_rows` (new rows that the pool had too), `columns`: per column `psi`, `js`,
        `chance_psi`, `chance_js`, `level`.
    """
    columns = {}
    for name in (*SCORED, "cluster"):
        a, b = old.columns[name], new.columns[name]
        counts = group_counts(a, b) if name == "cluster" else decile_counts(a[np.isfinite(a)], b[np.isfinite(b)])
        found = drift(*counts)
        columns[name] = {
            key: round(value, 5) for key, value in dataclasses.asdict(found).items()
        } | {"level": found.level}  # fmt: skip
    known = int(np.isin(new.words_P, old.words_P).sum())
    return {
        "pool_rows": len(old.words_P),
        "new_rows": len(new.words_P),
        "known_rows": known,
        "columns": columns,
    }


def warning(name: str, found: dict[str, Any]) -> str:
    return (
        f"{found['level']} drift of the {name}: PSI {found['psi']:.3f}, Jensen-Shannon distance {found['js']:.3f} "
        f"(by chance up to {found['chance_psi']:.3f} and {found['chance_js']:.3f}); the selector was trained on other "
        "data: judge some of the new rows (`iterselect apply --update`) before trusting it"
    )


def card_facts(selector: TrainedSelector, config: Config, cut: float, report: dict[str, Any]) -> dict[str, Any]:
    """What the dataset card tells of it."""
    facts: dict[str, Any] = {"selector of": selector.run.root}
    facts["rule"] = f"score of at least {cut:.4f}" if config.rule == "threshold" else "best scores"
    facts["rows that the pool of that run had too"] = report["known_rows"]
    for name, found in report["columns"].items():
        facts[f"drift of the {name}"] = (
            f"{found['level']} (PSI {found['psi']:.3f}, Jensen-Shannon distance {found['js']:.3f})"
        )
    return facts
