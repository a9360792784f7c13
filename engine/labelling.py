"""The labelling rounds: choose a batch, have it answered and judged, teach the classifier, decide whether to go on.

Everything a round makes is a committed step that depends on the steps before it, so a run that was interrupted walks
through the finished rounds by reading and continues in the middle of one. It knows nothing of how the rest of the
pool is selected afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from engine.algorithms.ranking import combine_scores, top_rows
from engine.algorithms.stopping import should_stop
from engine.artifacts import Joined, Source, Step, write_table
from engine.backends import Backend, build_generator, build_judge
from engine.config import (
    ClassifierConfig,
    EmbeddingJudgeConfig,
    FinetuneConfig,
    GeneratorConfig,
    JudgeConfig,
    NeighborConfig,
    ProbeConfig,
    RecipeConfig,
    check_backends,
)
from engine.config_base import Fraction, OpenFraction
from engine.labels import judge_report, label_table
from engine.recipes.base import Context
from engine.runtime import Resources, StageSpec
from engine.schema import (
    HARD,
    ID,
    PROBABILITY_COLUMNS,
    PROMPT,
    ROW,
    id_words,
    seeded_hash,
)  # fmt: skip
from engine.shards import PoolIndex, Rows, Scores
from engine.trainer import ProbeScores, StepScores, TableScores, Trainer, classifier_settings, round_metrics_json

WEAK_AUC = 0.6  # 0.5 is a coin

# What the rounds table and the stop rule read of a classifier's metrics
REPORTED = ("num_train", "num_val", "val_accuracy", "val_balanced_accuracy", "val_auc", "val_ece", "train_s")


class LoopConfig(RecipeConfig):
    """Settings of the rounds, shared by every recipe that has them. The paper leaves most of the numbers out."""

    batch_size: int = Field(default=1000, ge=1, description="Rows judged per round; less when V is small")
    max_rounds: int = Field(default=5, ge=1, description="Most rounds of judging and retraining")
    accuracy_threshold: Fraction = Field(default=0.95, description="Stop at this balanced validation accuracy")
    patience: int = Field(default=3, ge=1, description="Stop after so many rounds without a better validation AUC")
    alpha: Fraction = Field(default=0.7, description="Weight of the classifier in F; the rest is similarity to D^H")
    similarity: Literal["clip", "minmax"] = Field(
        default="clip", description="Range of R: clipped to [0, 1], or min-max"
    )
    explore_fraction: Fraction = Field(default=0.0, description="Share of a later batch drawn at random, not by F")
    validation_fraction: OpenFraction = Field(default=0.2, description="Share of labelled rows held out, by id")
    tie: Literal["easy", "hard", "drop"] = Field(default="easy", description="What a tie of the judge counts as")
    inconsistent: Literal["easy", "hard", "drop"] = Field(
        default="drop", description="What a verdict counts as that changes with the order of the answers"
    )
    soft_labels: bool = Field(
        default=True, description="Teach the classifier the judge's probabilities, where the judge gives them"
    )
    part_rows: int = Field(default=256, ge=1, description="Rows given to a generator or judge worker at a time")
    generator: GeneratorConfig = Field(default=NeighborConfig(), description="Answers the prompts of a batch")
    judge: JudgeConfig = Field(default=EmbeddingJudgeConfig(), description="Compares answer and reference")
    classifier: ClassifierConfig = Field(default=ProbeConfig(), description="Learns hard from easy")

    @model_validator(mode="after")
    def _backends_fit(self) -> LoopConfig:
        check_backends(self.generator, self.judge)
        return self


@dataclass(frozen=True)
class Before:
    """What the rounds of an earlier run left, for rounds that go on from there (engine/takeover.py).

    Attributes:
        labels: its labelled rows, in the form of a round's labels.
        checkpoint: its last classifier.
    """

    labels: Step
    checkpoint: Step


@dataclass
class Labelled:
    """What the rounds learned.

    Attributes:
        before: what they went on from.
        tables: per round, the labelled rows: row, id, hard, vector, prompt.
        metrics: per round, what the summary shows.
        checkpoint: the last classifier.
        judge: what is known of a model judge's reliability, None for other judges.
    """

    before: Before | None = None
    tables: list[pa.Table] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    metrics: list[Mapping[str, Any]] = field(default_factory=list)
    checkpoint: Step | None = None
    judge: dict[str, Any] | None = None

    @property
    def learned_from(self) -> list[Step]:
        """The labels that the classifier learns from, those of an earlier run first."""
        return [*([self.before.labels] if self.before is not None else []), *self.steps]

    @property
    def latest(self) -> Step | None:
        """The classifier to continue from: of these rounds, else of an earlier run."""
        return self.checkpoint or (self.before.checkpoint if self.before is not None else None)

    @property
    def fingerprint(self) -> str:
        assert self.checkpoint is not None
        return self.checkpoint.fingerprint

    def rows(self, index: PoolIndex, *, hard: bool, scores: Scores) -> Rows:
        """The rows judged hard (or easy), with their scores; a row that the classifier failed on is left out."""
        chosen = [table.filter(pc.equal(table[HARD], hard))[ROW].to_numpy() for table in self.tables]  # pyright: ignore
        found = index.lookup(np.concatenate(chosen), scores)[0]
        return found.take(np.flatnonzero(np.isfinite(found.probability)))

    def rounds(self) -> dict[int, int]:
        """Round (from 1) in which each row was judged."""
        return {row: number + 1 for number, table in enumerate(self.tables) for row in table[ROW].to_pylist()}


def label_rounds(
    context: Context, config: LoopConfig, index: PoolIndex, diverse: Step, before: Before | None = None
) -> Labelled:
    """Runs the rounds over the diverse subset.

    Args:
        diverse: V: the pool's columns and `vector`, sorted by id.
        before: what an earlier run's rounds left. The first batch is drawn at random all the same: its classifier has
            not seen these rows.
    """
    generator, judge = build_generator(context, config.generator, index), build_judge(context, config.judge)
    trainer = TrainerGroup(context, config)
    labelled, asked = Labelled(before), np.empty(0, dtype=np.int64)
    judged: list[Source] = []
    # A tenth of V at most, so that later batches have something to choose from.
    size = min(config.batch_size, max(1, diverse.require().rows // 10))
    if size < config.batch_size:
        context.runtime.observer.note(f"batches of {size} rows: a tenth of the {diverse.require().rows} rows of V")
    try:
        for number in range(config.max_rounds):
            started = time.monotonic()
            batch = choose_batch(context, config, index, diverse, labelled, asked, size, number)
            if batch.require().rows == 0:
                break
            asked = np.concatenate([asked, batch.read_all([ROW])[ROW].to_numpy()])
            labels, verdicts = judge_batch(context, config, generator, judge, batch, number)
            judged.append(verdicts)
            labelled.steps.append(labels)
            labelled.tables.append(labels.read_all())
            index.remember(labels)
            checkpoint, metrics = trainer.learn(labelled, number)
            labelled.checkpoint = checkpoint
            labelled.metrics.append(round_report(number, labels, metrics, time.monotonic() - started))
            context.store.write_bytes(f"rounds/{number:03d}/metrics.json", round_metrics_json(labelled.metrics[-1]))
            context.runtime.observer.round_done(dict(labelled.metrics[-1]))
            if should_stop(labelled.metrics, config.accuracy_threshold, config.patience):
                break
    finally:
        for backend in (generator, judge, trainer):
            if backend is not None:
                backend.close()
    labelled.judge = judge_report(context.outputs, judged, judge.identity)
    if warning := weak_classifier(labelled.metrics):
        context.runtime.observer.note(warning)
    return labelled


def weak_classifier(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A warning when the last classifier cannot tell hard from easy, or nobody knows, "" otherwise."""
    if not metrics:
        return ""
    auc, more = (
        metrics[-1]["val_auc"],
        "judge more rows (recipe.batch_size, recipe.diverse_fraction, recipe.max_rounds)",
    )
    judged, hard = (sum(entry[key] for entry in metrics) for key in ("judged", "hard"))
    if auc is None:
        return (
            f"nobody can say whether the classifier tells hard from easy: {hard} of {judged} judged rows were hard, "
            f"too few of one kind to hold some out; the selection is close to arbitrary; {more}"
        )
    if auc >= WEAK_AUC:
        return ""
    labels = metrics[-1]["num_train"] + metrics[-1]["num_val"]  # of an update: those of earlier runs as well
    return (
        f"the classifier tells hard from easy hardly better than chance (validation AUC {auc:.2f}, {labels} labels): "
        f"the selection is mostly similarity; {more}"
    )


def choose_batch(
    context: Context,
    config: LoopConfig,
    index: PoolIndex,
    diverse: Step,
    labelled: Labelled,
    asked: np.ndarray,
    size: int,
    number: int,
) -> Step:
    """D of one round: at random in round 1, later the best of V by F, a share of it at random if asked for."""
    settings = {"size": size, "round": number, "seed": context.config.seed, "part_rows": config.part_rows}
    inputs = [diverse.fingerprint]
    if labelled.checkpoint is not None:
        settings |= {"alpha": config.alpha, "similarity": config.similarity, "explore": config.explore_fraction}
        inputs += [labelled.fingerprint, labelled.steps[-1].fingerprint]
    target = context.step(f"rounds/{number:03d}/batch", settings, inputs)
    if target.record() is not None:
        return target
    table = diverse.read_all()
    table = table.filter(pa.array(~np.isin(table[ROW].to_numpy(), asked)))
    words = id_words(table[ID])
    at_random = np.argsort(seeded_hash(words, context.config.seed, f"batch/{number}"), kind="stable")
    if labelled.checkpoint is None:
        picked = at_random[:size]
    else:
        scores = batch_scores(context, config, diverse, labelled, number)
        rows, _ = index.lookup(table[ROW].to_numpy(), scores)
        explored = at_random[: round(config.explore_fraction * size)]
        scored = np.flatnonzero(np.isfinite(rows.probability))
        similarity = index.scaled(rows.similarity[scored], config.similarity)
        f = combine_scores(rows.probability[scored], similarity, config.alpha)
        best = scored[top_rows(f, words[scored], len(scored))]
        picked = np.concatenate([explored, best[~np.isin(best, explored)]])[:size]
    write_table(target, table.take(pa.array(np.sort(picked))), config.part_rows)
    return target


def batch_scores(context: Context, config: LoopConfig, diverse: Step, labelled: Labelled, number: int) -> Scores:
    """M for the rows of V, from the classifier of the round before."""
    assert labelled.checkpoint is not None
    if config.classifier.kind == "probe":
        return ProbeScores(labelled.checkpoint)
    return TableScores.of_step(classify(context, config, diverse, labelled.checkpoint, f"rounds/{number:03d}/scored"))


def pool_scores(context: Context, config: LoopConfig, labelled: Labelled) -> Scores:
    """M for every row of the pool, from the last classifier."""
    assert labelled.checkpoint is not None
    if config.classifier.kind == "probe":
        return ProbeScores(labelled.checkpoint)
    return StepScores(classify(context, config, context.pool, labelled.checkpoint, "classify"))


def classify(context: Context, config: LoopConfig, source: Step, checkpoint: Step, name: str) -> Step:
    """One pass of the fine-tuned classifier."""
    from engine.models.classifier import FinetuneStage

    assert isinstance(config.classifier, FinetuneConfig)
    stage = StageSpec(
        name="classify",
        factory=FinetuneStage,
        kwargs={"directory": checkpoint.store.path(checkpoint.folder), "max_tokens": config.classifier.max_tokens},
        columns_in=[PROMPT],
        columns_out=PROBABILITY_COLUMNS,
        resources=context.resources(),
    )
    target = context.step(name, {"stage": "classify"}, [source.fingerprint, checkpoint.fingerprint])
    record = context.runtime.map_parts(stage, source, target)
    context.check_failures(target.folder, record.failed, record.rows)
    return target


def judge_batch(
    context: Context, config: LoopConfig, generator: Backend | None, judge: Backend, batch: Step, number: int
) -> tuple[Step, Source]:
    """Answers and verdicts of a batch.

    Returns:
        (its labels: row, id, hard, soft, vector, prompt of every labelled row; its verdicts joined with its rows).
    """
    source: Source = batch
    inputs = [batch.fingerprint]
    if generator is not None:
        answers = context.paid_step(f"rounds/{number:03d}/answers", generator.identity, inputs)
        record = generator.run(batch, answers)
        context.check_failures(answers.folder, record.failed, record.rows)
        source, inputs = Joined(batch, answers), [*inputs, answers.fingerprint]
    verdicts = context.paid_step(f"rounds/{number:03d}/verdicts", judge.identity, inputs)
    record = judge.run(source, verdicts)
    context.check_failures(verdicts.folder, record.failed, record.rows)
    rules = {name: getattr(config, name) for name in ("tie", "inconsistent", "soft_labels", "part_rows")}
    labels = context.step(f"rounds/{number:03d}/labels", rules, [verdicts.fingerprint])
    if labels.record() is None:
        table, facts = label_table(batch, verdicts, config.tie, config.inconsistent, config.soft_labels)
        write_table(labels, table, config.part_rows, facts)
    return labels, Joined(verdicts, source)  # of columns that both have, the verdicts' own


def round_report(number: int, labels: Step, metrics: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """One line of the rounds table."""
    facts = labels.require().extra
    hard = labels.read_all([HARD])[HARD]
    count = int(pc.sum(hard).as_py() or 0)  # pyright: ignore
    return {
        "round": number + 1,
        "judged": facts["judged"],
        "failed": facts["failed"],
        "ties": facts["ties"],
        "inconsistent": facts["inconsistent"],
        **({"usd": facts["usd"]} if "usd" in facts else {}),
        "hard": count,
        "hard_rate": round(count / max(1, len(hard)), 4),
        **{key: metrics.get(key) for key in REPORTED},
        "seconds": round(seconds, 3),
    }


class TrainerGroup:
    """The one trainer of a run, made when the first round needs it."""

    def __init__(self, context: Context, config: LoopConfig) -> None:
        self.context, self.config = context, config
        self.settings = classifier_settings(config.classifier.model_dump())
        self.group: Any = None

    def learn(self, labelled: Labelled, number: int) -> tuple[Step, Mapping[str, Any]]:
        """The checkpoint of a round and its metrics."""
        seed = self.context.config.seed
        settings = {**self.settings, "seed": seed, "validation_fraction": self.config.validation_fraction}
        inputs = [step.fingerprint for step in labelled.learned_from]
        target = self.context.step(f"rounds/{number:03d}/classifier", settings, inputs)
        record = target.record()
        if record is not None:
            return target, record.extra
        if self.group is None:
            member = {"settings": self.settings, "seed": seed, "validation_fraction": self.config.validation_fraction}
            resources = Resources(cpus=self.settings.get("threads", 1), gpus=0.0, resident=True)
            self.group = self.context.runtime.group(Trainer, [member], resources)
        return target, self.group.call("learn", labelled.learned_from, target, labelled.latest)[0]

    def close(self) -> None:
        if self.group is not None:
            self.group.close()
