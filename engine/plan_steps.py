"""What a run would do in its folder: steps to reuse and to make, rows, seconds as measured, memory of a member.

The recipe is walked over the committed steps as in engine/paid/standing.py. A pass that is missing is taken for made,
without rows, so the walk goes on until something has to read what is not there; what comes after that is named, not
counted. Seconds are those of a finished run of the same settings on the same kind of machine, scaled by rows, or not
known. Nothing is written, started or guessed.
"""

# Shape letters: N rows, D dimensions, K clusters, H hard rows, S members.

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.algorithms.hard_similarity import HARD_BLOCK
from engine.algorithms.kmeans_methods import method_for, multiplications
from engine.algorithms.similarity import TILE_ROWS
from engine.artifacts import Part, Source, Step, StepRecord
from engine.config import RunConfig, budget_rows
from engine.data.inputs import resolve_inputs
from engine.errors import EnvironmentProblem, StepError, TooManyFailures
from engine.labelling import LoopConfig
from engine.lineage import steps_of
from engine.models.encoder import encoder_dim
from engine.paid.estimate import draw_sample
from engine.paid.service import PaidRun
from engine.paid.standing import CommittedStore, NoRuntime, NotThere, frozen_pool, standing
from engine.plan_run import machine
from engine.pool import PILOT, run_pool
from engine.recipes import load_recipe
from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.store import Store

POOL_STEPS = ("ingest", PILOT)
MEMORY_FORMULA = "4ND/S + 33N/S + 2048(22D + 4K) + 24KD + min(H, 4096)(4D + 8192) bytes"


class PlanningStore(CommittedStore):
    """A run folder that is only read, in which passes may be taken for made, and the pool is if it is not there.

    Attributes:
        rows: of the pool.
        found, made: steps by folder, in the order of the walk: complete ones, and those that would be made -> rows.
    """

    def __init__(self, root: str, rows: int) -> None:
        super().__init__(root)
        self.rows = rows
        self.found: dict[str, int] = {}
        self.made: dict[str, int] = {}
        self._records: dict[str, bytes] = {}

    def take_for_made(self, folder: str, parts: Sequence[Part], rows: int) -> None:
        """From now on the step looks complete; its parts cannot be read."""
        self.made[folder] = rows
        nothing = [Part(part.index, "not-made", part.rows, 0, 0.0, "") for part in parts]
        record = StepRecord(plain(folder), "", {}, [], rows, 0, 0.0, 0.0, nothing, {"formats": {}})
        self._records[f"{folder}/step.json"] = record.to_json()

    def exists(self, relative: str) -> bool:
        return relative in self._records or super().exists(relative)

    def read_bytes(self, relative: str) -> bytes:
        folder, _, file = relative.rpartition("/")
        if file == "step.json" and plain(folder) in POOL_STEPS and not self.exists(relative):
            self.take_for_made(folder, [Part(0, "", self.rows, 0, 0.0, "")], self.rows)
        if relative in self._records:
            return self._records[relative]
        data = super().read_bytes(relative)
        if file == "step.json":
            self.found[folder] = json.loads(data)["rows"]
        return data


class PlanningRuntime(NoRuntime):
    """Takes every pass that is missing for made."""

    def __init__(self, store: PlanningStore) -> None:
        super().__init__()
        self.store = store

    def map_parts(self, stage: StageSpec, source: Source, target: Step) -> StepRecord:
        if target.record() is None:
            known = source.require()
            self.store.take_for_made(target.folder, known.parts, known.rows)
        return target.require()


def plan_steps(config: RunConfig, shards: int, like: str | None = None) -> dict[str, Any]:
    """The plan of a run but for its money.

    Args:
        config: of the run.
        shards: members that share the pool's vectors.
        like: folder of a finished run to take seconds from; the run's own when None.

    Returns:
        `rows`; `reuse`: names of complete steps; `run`: per step that is known to be missing `step`, `rows`, `seconds`
        (None: not known); `then`: names of what comes after; `seconds` of `run` together (None when one is not known)
        and `seconds_from`: the run they come from or why there is none; `memory`, see `member_memory`; `kmeans`, see
        `clustering_cost`; `missing`: what this machine lacks, so that nothing is known of what comes after, or "".

    Raises:
        DataError, ConfigError, EnvironmentProblem: as the run would.
    """
    frozen = frozen_pool(config)
    rows = frozen.require().rows if frozen is not None else draw_sample(config, None, frozenset()).rows
    store = PlanningStore(config.out, rows)
    budget_rows(config.budget, rows)
    missing = walk(config, store)
    finished = finished_steps(config, frozen)
    rates, source = measured(config, like or config.out)
    steps = [
        {"step": name, "rows": count, "seconds": None if name not in rates else round(rates[name] * count, 1)}
        for name, count in ((plain(folder), count) for folder, count in store.made.items())
    ]
    try:
        memory, clustering = member_memory(config, rows, shards), clustering_cost(config, rows)
    except EnvironmentProblem:  # no encoder: `missing` says so
        memory, clustering = None, None
    reuse = finished or [plain(folder) for folder in store.found]
    seconds = [step["seconds"] for step in steps]
    known = all(one is not None for one in seconds)
    return {
        "rows": rows,
        "reuse": reuse,
        "run": steps,
        "then": ["write"] if finished else later(config, {*reuse, *(step["step"] for step in steps)}),
        "seconds": round(sum(seconds), 1) if known else None,
        "seconds_from": source,
        "memory": memory,
        "kmeans": clustering,
        "missing": missing,
    }


def walk(config: RunConfig, store: PlanningStore) -> str:
    """Goes through the recipe until something would have to be read that is not there.

    Returns:
        what this machine lacks to go on, such as a model; "" otherwise.
    """
    runtime = PlanningRuntime(store)
    try:
        pool = run_pool(config, store, runtime, resolve_inputs(config.data.path))
        paid = PaidRun(store, runtime, config.paid)
        budget = budget_rows(config.budget, pool.require().rows)
        load_recipe(config.recipe.name).module.select(Context(config, store, pool, runtime, budget, paid, store))
    except EnvironmentProblem as error:
        return f"{error.what} [{error.code}]"
    except (NotThere, StepError, TooManyFailures, FileNotFoundError):
        return ""
    return ""


def plain(folder: str) -> str:
    """steps/embed-1a2b3c4d -> embed, rounds/000/labels-1a2b3c4d -> rounds/000/labels."""
    head, dash, _ = folder.rpartition("-")
    return (head if dash else folder).removeprefix("steps/")


def finished_steps(config: RunConfig, pool: Step | None) -> list[str]:
    """All steps of a run that is finished with these settings on this pool; none when there is no such run."""
    run = Store(config.out)
    if pool is None or not run.exists("run.json"):
        return []
    theirs, ours = json.loads(run.read_bytes("run.json")), config.model_dump(mode="json")
    apart = ("out", "paid", "runtime", "tracking")
    same = all(theirs["config"].get(name) == ours[name] for name in ours if name not in apart)
    return [step.name for step in steps_of(run)] if same and theirs["steps"]["ingest"] == pool.folder else []


def later(config: RunConfig, seen: set[str]) -> list[str]:
    """What follows the steps that could be foreseen, in order; some of it may turn out to be there."""
    recipe = config.recipe
    names = ["scores", "selected", "write"]
    if isinstance(recipe, LoopConfig):
        at = standing(config)
        rounds = [] if at.over else [f"rounds (at most {recipe.max_rounds}, {at.rounds} done)"]
        inference = ["inference"] if getattr(recipe, "inference", "") == "iterative" else []
        names = ["embed", "diverse", *rounds, *inference, "scores", "selected", "write"]
    return [name for name in names if name not in seen]


def measured(config: RunConfig, out: str) -> tuple[dict[str, float], str]:
    """Seconds per row of the steps of a finished run, and where they are from.

    Only a run of the same recipe, encoder and runtime settings on the same kind of machine counts. Its seconds hold
    the time it took to load models, so a small pilot gives more than a large run will take for each row.
    """
    run = Store(out)
    if not run.exists("run.json"):
        return {}, "unknown: no run has been finished here; a pilot (run --limit) would tell"
    record = json.loads(run.read_bytes("run.json"))
    ours = config.model_dump(mode="json")
    differing = [name for name in ("recipe", "encoder", "runtime") if record["config"][name] != ours[name]]
    differing += ["machine"] if record.get("machine") != machine() else []
    if differing:
        return {}, f"unknown: the run in {out} had another {', '.join(differing)}"
    records = [(step.name, step.require()) for step in steps_of(run)]
    return {name: record.seconds / record.rows for name, record in records if record.rows}, out


def member_memory(config: RunConfig, rows: int, shards: int) -> dict[str, Any] | None:
    """Most memory of one member that holds vectors, by MEMORY_FORMULA, without its Python and its libraries.

    Per row of its N / S: 2D bytes of vectors, twice while they are read, and 33 of numbers (row, id, state, similarity,
    label). Once: a tile of 2048 rows and its products with K centroids, the centroids and their sums, a block of at
    most 4096 hard vectors and their products with a tile.

    Returns:
        `formula`, `rows`, `dim`, `clusters`, `members`, `hard`, `megabytes` (10^6); None for methods without vectors.
    """
    if not isinstance(config.recipe, LoopConfig):
        return None
    dim = encoder_dim(config.encoder.model)
    clusters = max(1, min(getattr(config.recipe, "clusters", 1), rows // 10))
    hard = budget_rows(config.budget, rows)
    members = max(1, min(shards, -(-rows // config.data.part_rows)))
    size = member_bytes(-(-rows // members), dim, clusters, hard)
    return {
        "formula": MEMORY_FORMULA, "rows": rows, "dim": dim, "clusters": clusters, "members": members, "hard": hard,
        "megabytes": round(size / 1e6, 1),
    }  # fmt: skip


def clustering_cost(config: RunConfig, rows: int) -> dict[str, Any] | None:
    """Most multiplications of clustering the pool once, k-means++ left out, and those that Lloyd on all rows takes.

    Returns:
        `method`, `clusters`, `multiplications`, `lloyd`; None for methods that say no number of clusters.
    """
    recipe = config.recipe.model_dump()
    if "clusters" not in recipe or "iterations" not in recipe or recipe.get("by") == "source":
        return None
    dim, clusters = encoder_dim(config.encoder.model), max(1, min(recipe["clusters"], rows // 10))
    method = method_for(config.kmeans.method, clusters)
    cost, lloyd = (multiplications(one, rows, dim, clusters, recipe["iterations"]) for one in (method, "lloyd"))
    return {"method": method, "clusters": clusters, "multiplications": cost, "lloyd": lloyd}


def member_bytes(rows: int, dim: int, clusters: int, hard: int) -> int:
    """MEMORY_FORMULA for one member of `rows` rows."""
    once = TILE_ROWS * (22 * dim + 4 * clusters) + 24 * clusters * dim
    return rows * (4 * dim + 33) + once + min(hard, HARD_BLOCK) * (4 * dim + 4 * TILE_ROWS)


def describe(plan: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal."""
    unknown = "unknown"
    lines = [f"rows     {plan['rows']:,}"]
    lines.append(f"reuse    {', '.join(plan['reuse']) or 'nothing'}")
    for number, step in enumerate(plan["run"]):
        seconds = unknown if step["seconds"] is None else f"{step['seconds']:,.1f} s"
        lines.append(f"{'run' if not number else '':<8} {step['step']}: {step['rows']:,} rows, {seconds}")
    lines.append(f"then     {', '.join(plan['then']) or 'nothing'}")
    lines.append(f"seconds  {unknown if plan['seconds'] is None else plan['seconds']} ({plan['seconds_from']})")
    if plan["missing"]:
        lines.append(f"missing  {plan['missing']}: what comes after is not known")
    if memory := plan["memory"]:
        lines.append(
            f"memory   {memory['megabytes']:,.1f} MB for each of {memory['members']} members = {memory['formula']}, "
            f"N={memory['rows']:,} D={memory['dim']} K={memory['clusters']} H={memory['hard']:,} S={memory['members']}"
        )
    if kmeans := plan["kmeans"]:
        than = "" if kmeans["multiplications"] == kmeans["lloyd"] else f", lloyd {kmeans['lloyd']:.1e}"
        lines.append(
            f"kmeans   {kmeans['method']}, {kmeans['clusters']:,} clusters: at most {kmeans['multiplications']:.1e} "
            f"multiplications{than}"
        )
    return lines
