"""IterSelectTune: a judge labels a few rows hard or easy, a classifier learns it and selects the rest for free.

Song, Liu, Zhu, Rao 2024, arXiv 2410.13464; no code was published. S = pool, V = diverse subset, D = batch,
D^H = hard set, M(x) = the classifier's probability of hard, R(x) = largest cosine to D^H (self excluded, clipped to
[0, 1]), F = alpha * M + (1 - alpha) * R.

1. K-Means over S; V is drawn from the clusters.
2. Rounds: a batch D of V (at random, later by F) is answered by the model and judged against the reference; hard rows
   join D^H; the classifier is retrained on all labels so far.
3. Inference, Figure 1 of the paper: K-Means over what is left gives V, its best rows by F join D^H without the judge,
   R is updated, until the budget is reached. `one_shot` ranks the whole pool once instead.

`scores/` holds the F of the final D^H. With iterative inference a row was scored in the turns that drew it, when D^H
was smaller: its reason names the last of these turns, its F then, and the F of the last row which that turn took.

Needs: a generator and a judge for the labelled rows (offline stand-ins are there), an encoder, a classifier. No
gradients and no tuning of the language model.
Cost: rounds x batch_size answers and as many judgements, twice that with both orders; one pass of the encoder and one
of the classifier over the pool, K-Means, and similarity to D^H. A million rows need no more judgements than 10,000.
Known bias: follows the judge, its taste for length and position among them (`judge.json` measures these); what is near
the hard set is preferred, so a topic that V missed is found late.

Differs from the paper in: the judge's ties count as easy; rows that the judge failed on stay unlabelled; the defaults
of every number the paper leaves out (see each field); rows judged easy are taken only when nothing else is left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from engine.algorithms.kmeans_methods import Method, refit
from engine.algorithms.ranking import combine_scores, top_rows
from engine.artifacts import Step, take_rows, write_table
from engine.config_base import Fraction
from engine.errors import DataError
from engine.labelling import Labelled, LoopConfig, label_rounds, pool_scores
from engine.recipes.base import Context, Selection
from engine.schema import HARD, ID, ROW, VECTOR
from engine.shards import PoolIndex, Rows, Scores

DRAWN = "drawn"  # steps with what each inference turn drew


class DiverseConfig(LoopConfig):
    """Settings of rounds over a diverse subset of the pool."""

    clusters: int = Field(default=100, ge=1, description="K of K-Means; at most a tenth of the pool's rows")
    iterations: int = Field(default=20, ge=1, description="Most K-Means iterations")
    diverse_fraction: Fraction = Field(default=0.3, description="Size of the diverse subset V as a share of the pool")
    diverse_max: int = Field(default=15_000, ge=1, description="Largest V, in rows")
    draw: Literal["equal", "proportional"] = Field(default="equal", description="How many rows each cluster gives to V")


class Config(DiverseConfig):
    name: Literal["iterselect"] = "iterselect"
    inference: Literal["iterative", "one_shot"] = Field(default="iterative", description="How the rest is selected")
    inference_steps: int = Field(default=10, ge=1, description="Turns in which iterative inference fills the budget")
    always_keep_hard: bool = Field(default=False, description="one_shot: put the rows judged hard first")
    exclude_easy: bool = Field(default=False, description="one_shot: leave out the rows judged easy")


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    vectors = pool_vectors(context)
    index = context.index(vectors)
    try:
        diverse, labelled = rounds(context, index, vectors)
        scores = pool_scores(context, config, labelled)
        choose = iterative_inference if config.inference == "iterative" else one_shot_inference
        selected, default_reason, reasons = choose(context, config, index, labelled, scores, diverse)
        scored = write_pool_scores(context, config, index, labelled, scores, diverse, selected)
    finally:
        index.close()
    return Selection(
        selected=selected,
        scores=scored,
        default_reason=default_reason,
        reasons=reasons,
        facts={"clusters": diverse.require().extra["clusters"], "rounds": labelled.metrics, "judge": labelled.judge},
        score="score",
    )


def pool_vectors(context: Context) -> Step:
    """One unit vector per row of the pool."""
    return context.vectors()


def rounds(context: Context, index: PoolIndex, vectors: Step) -> tuple[Step, Labelled]:
    """V, and what the rounds over it learned."""
    config = context.config.recipe
    assert isinstance(config, Config)
    diverse = diverse_subset(context, config, index, vectors)
    return diverse, label_rounds(context, config, index, diverse)


def pool_method(context: Context, config: DiverseConfig) -> Method:
    """How the pool is clustered, at first and in every inference turn, whatever is left of it then."""
    return context.kmeans_method(max(1, min(config.clusters, context.pool_rows // 10)))


def diverse_subset(context: Context, config: DiverseConfig, index: PoolIndex, vectors: Step) -> Step:
    """V with everything a round needs: the pool's columns and the vector of each row, sorted by id.

    Rows that the index remembers are not candidates.

    Raises:
        DataError: E474, there is no candidate.
    """
    names = ("clusters", "iterations", "diverse_fraction", "diverse_max", "draw")
    settings = {"seed": context.config.seed, **{name: getattr(config, name) for name in names}}
    settings["kmeans"] = pool_method(context, config)
    inputs = [vectors.fingerprint, *(entry.fingerprint for entry in index.log)]
    target = context.step("diverse", settings, inputs)
    if not context.reused(target):
        candidates = index.count()
        if not candidates:
            raise DataError(
                f"all {context.pool_rows:,} rows were judged or selected before",
                fix="give new rows, or apply the run without --update",
                code="E474",
            )
        started = time.monotonic()
        context.runtime.observer.step_started("diverse", candidates)
        size = diverse_rows(config, candidates)
        clusters = max(1, min(config.clusters, candidates // 10))
        result = context.kmeans(index, clusters, config.iterations, settings["kmeans"])
        drawn = index.draw(result.centroids_KD, result.counts_K, size, config.draw, context.config.seed, "diverse")
        table = take_rows(context.pool, drawn.rows)
        table = table.append_column(VECTOR, index.vectors_arrow(drawn.rows))
        facts = {"clusters": len(result.centroids_KD), "inertia": result.inertia[-1]}
        save_centroids(target, result.centroids_KD)
        record = write_table(target, table, context.config.data.part_rows, facts, started)
        context.runtime.observer.step_done("diverse", record.rows, record.seconds, 0, reused=False)
    return target


def diverse_rows(config: DiverseConfig, pool_rows: int) -> int:
    """Rows of V: a share of the pool, bounded."""
    return max(1, min(config.diverse_max, round(config.diverse_fraction * pool_rows)))


def save_centroids(step: Step, centroids_KD: np.ndarray) -> None:
    step.store.write_bytes(f"{step.folder}/centroids.f32", centroids_KD.astype("<f4").tobytes())


def load_centroids(step: Step, dim: int) -> np.ndarray:
    data = step.store.read_bytes(f"{step.folder}/centroids.f32")
    return np.frombuffer(data, dtype="<f4").reshape(-1, dim)


def iterative_inference(
    context: Context, config: Config, index: PoolIndex, labelled: Labelled, scores: Scores, diverse: Step
) -> tuple[Step, str, pa.Table]:
    """Fills the budget turn by turn: cluster what is left, draw V, take the best by F, add them to D^H.

    Returns:
        The selection, why most rows are out, and (row, reason) of those that are out for a reason of their own.
    """
    hard = labelled.rows(index, hard=True, scores=scores)
    kept = hard.rows[top_rows(f_scores(config, index, hard), hard.words, context.budget)]
    rounds = labelled.rounds()
    chosen = [(kept, np.array([f"judged hard in round {rounds[row]}" for row in kept.tolist()]))]
    batch = max(1, -(-context.budget // config.inference_steps))
    names = (
        "clusters",
        "iterations",
        "diverse_fraction",
        "diverse_max",
        "draw",
        "alpha",
        "similarity",
        "inference_steps",
    )
    settings = {"budget": context.budget, "seed": context.config.seed, **{n: getattr(config, n) for n in names}}
    previous, draws = labelled.fingerprint, list[Step]()
    centroids_KD = load_centroids(diverse, index.dim())
    while (missing := context.budget - sum(len(rows) for rows, _ in chosen)) > 0 and (left := index.count()) > 0:
        turn = len(draws)
        drawn = context.step(f"{DRAWN}/{turn:03d}", {**settings, "turn": turn}, [previous])
        picked = context.step(f"inference/{turn:03d}", {}, [drawn.fingerprint], version=3)
        if not context.reused(picked):
            started = time.monotonic()
            context.runtime.observer.step_started(picked.name, left)
            table = drawn_rows(context, config, index, scores, centroids_KD, min(batch, missing), left, turn)
            write_table(drawn, table, context.pool_rows)
            write_table(picked, log_entry(index, table), context.pool_rows, started=started)
            record = picked.require()
            context.runtime.observer.step_done(picked.name, record.rows, record.seconds, 0, reused=False)
        rows, f = taken_in(drawn)
        if not len(rows):
            break  # the classifier failed on everything that is left
        chosen.append((rows, np.array([f"taken in inference turn {turn + 1}, score {one:.4f} then" for one in f])))
        draws.append(drawn)
        index.remember(picked)
        previous = picked.fingerprint
    missing = context.budget - sum(len(rows) for rows, _ in chosen)
    if missing > 0:
        easy = labelled.rows(index, hard=False, scores=scores)
        best = top_rows(f_scores(config, index, easy), easy.words, missing)
        chosen.append((easy.rows[best], np.array(["judged easy, nothing else was left"] * len(best))))
    selected = save_selection(context, chosen, {**settings, "how": "iterative"}, [previous])
    default_reason = "not drawn in any inference turn" if draws else "the rows judged hard filled the budget"
    reasons = pa.concat_tables([judged_reasons(labelled, {True: ", but over the budget", False: ""}), missed(draws)])
    return selected, default_reason, reasons


def drawn_rows(
    context: Context,
    config: Config,
    index: PoolIndex,
    scores: Scores,
    centroids_KD: np.ndarray,
    take: int,
    left: int,
    turn: int,
) -> pa.Table:
    """A fresh V with its F at this turn: row, score, taken (the `take` best), best first.

    K-Means over what is left starts from the pool's centroids: it ends near them, in a few iterations.
    """
    seed = context.config.seed
    method = pool_method(context, config)
    result = refit(index, centroids_KD, method, seed=seed, iterations=config.iterations, tol=1e-4)
    size = max(diverse_rows(config, left), min(left, 2 * take))
    drawn = index.draw(result.centroids_KD, result.counts_K, size, config.draw, seed, f"inference/{turn}", scores)
    f = f_scores(config, index, drawn)
    best = top_rows(f, drawn.words, len(f))
    return pa.table([drawn.rows[best], f[best], np.arange(len(best)) < take], names=[ROW, "score", "taken"])


def log_entry(index: PoolIndex, drawn: pa.Table) -> pa.Table:
    """The rows that a turn took, as an entry of the index's log (row, hard, vector), best first."""
    rows = drawn[ROW].to_numpy()[drawn["taken"].to_numpy()]
    return pa.table([pa.array(rows), pa.array([True] * len(rows)), index.vectors_arrow(rows)], [ROW, HARD, VECTOR])


def taken_in(drawn: Step) -> tuple[np.ndarray, np.ndarray]:
    """((M,) rows, (M,) F then) that a turn took, best first."""
    table = drawn.read_all([ROW, "score", "taken"])
    taken = table["taken"].to_numpy()
    return table[ROW].to_numpy()[taken], table["score"].to_numpy()[taken]


def missed(draws: Sequence[Step]) -> pa.Table:
    """(row, reason) of the rows that turns drew and did not take, each with the last turn that drew it."""
    found: dict[int, str] = {}
    for turn, drawn in enumerate(draws, 1):
        table = drawn.read_all([ROW, "score", "taken"])
        lowest = taken_in(drawn)[1][-1]
        rest = table.filter(pc.invert(table["taken"]))  # pyright: ignore[reportAttributeAccessIssue]
        for row, f in zip(rest[ROW].to_pylist(), rest["score"].to_pylist(), strict=True):
            found[row] = f"not taken in inference turn {turn}: score {f:.4f} then, the last row taken had {lowest:.4f}"
    return pa.table([pa.array(found, pa.int64()), pa.array(found.values(), pa.string())], names=[ROW, "reason"])


def one_shot_inference(
    context: Context, config: Config, index: PoolIndex, labelled: Labelled, scores: Scores, diverse: Step
) -> tuple[Step, str, pa.Table]:
    """Ranks the whole pool once by F, the labelled rows among it unless asked otherwise. Returns as the other one."""
    hard, easy = (labelled.rows(index, hard=flag, scores=scores) for flag in (True, False))
    ranked = index.top(scores, config.alpha, config.similarity, context.budget + len(hard.rows) + len(easy.rows))
    kept = ~np.isin(ranked.rows, easy.rows) if config.exclude_easy else np.ones(len(ranked.rows), dtype=bool)
    first = np.empty(0, dtype=np.int64)
    if config.always_keep_hard:
        first = hard.rows[top_rows(f_scores(config, index, hard), hard.words, context.budget)]
        kept &= ~np.isin(ranked.rows, first)
    rest = ranked.take(np.flatnonzero(kept)[: context.budget - len(first)])
    chosen = [(first, np.array(["judged hard"] * len(first))), (rest.rows, np.array(["score"] * len(rest.rows)))]
    names = ("alpha", "similarity", "always_keep_hard", "exclude_easy")
    settings = {"budget": context.budget, "how": "one_shot", **{name: getattr(config, name) for name in names}}
    cut = float(f_scores(config, index, rest)[-1]) if len(rest.rows) else None
    selected = save_selection(context, chosen, settings, [labelled.fingerprint], cut)
    out = "not among the best scores"
    why = {True: f", {'but over the budget' if config.always_keep_hard else out}"}
    why[False] = "" if config.exclude_easy else f", {out}"
    return selected, out, judged_reasons(labelled, why)


def f_scores(config: Config, index: PoolIndex, rows: Rows) -> np.ndarray:
    """F of some rows."""
    return combine_scores(rows.probability, index.scaled(rows.similarity, config.similarity), config.alpha)


def save_selection(
    context: Context,
    chosen: list[tuple[np.ndarray, np.ndarray]],
    settings: dict[str, Any],
    inputs: list[str],
    cut: float | None = None,
) -> Step:
    """The step `selected`, which also remembers the lowest F taken where one ranking gave it."""
    target = context.step("selected", settings, inputs, version=3)
    if target.record() is None:
        rows = np.concatenate([rows for rows, _ in chosen])
        reasons = np.concatenate([reasons.astype(object) for _, reasons in chosen])
        ids = take_rows(context.pool, rows, [ID])
        columns = [ids[ROW], ids[ID], pa.array(np.arange(len(rows))), pa.array(reasons.tolist(), pa.string())]
        write_table(target, pa.table(columns, ["row", "id", "rank", "reason"]), context.pool_rows, {"cut": cut})
    return target


def write_pool_scores(
    context: Context,
    config: Config,
    index: PoolIndex,
    labelled: Labelled,
    scores: Scores,
    diverse: Step,
    selected: Step,
) -> Step:
    """M, R, F and cluster of every row of the pool, parallel to its parts. R is to the final D^H."""
    settings = {"alpha": config.alpha, "similarity": config.similarity}
    inputs = [diverse.fingerprint, selected.fingerprint]
    target = context.step("scores", settings, inputs, version=2)
    if not context.reused(target):
        started = time.monotonic()
        context.runtime.observer.step_started("scores", context.pool_rows)
        index.write_scores(load_centroids(diverse, index.dim()), scores, config.alpha, config.similarity, target)
        record = target.finish(started=started, rows=context.pool_rows)
        context.runtime.observer.step_done("scores", record.rows, record.seconds, 0, reused=False)
    return target


def judged_reasons(labelled: Labelled, why: Mapping[bool, str]) -> pa.Table:
    """(row, reason) of every row that the judge saw, should it be left out.

    Args:
        why: hard or not -> what goes on after the verdict.
    """
    rows, reasons = [], []
    for number, table in enumerate(labelled.tables):
        for row, hard in zip(table[ROW].to_pylist(), table[HARD].to_pylist(), strict=True):
            rows.append(row)
            reasons.append(f"judged {'hard' if hard else 'easy'} in round {number + 1}{why[hard]}")
    return pa.table([pa.array(rows, pa.int64()), pa.array(reasons, pa.string())], names=[ROW, "reason"])
