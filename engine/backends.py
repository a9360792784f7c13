"""Builds the generator and the judge that a config names, as something that turns one step of a round into the next.

A backend has `identity` (what determines its bytes), `run(source, target)` and `close()`. Most are resident groups of
a stage: loaded at the first round that needs them and kept until the last. A new backend is one class with the stage
contract and one line in `GENERATORS` or `JUDGES`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from engine.artifacts import Part, Source, Step, StepRecord, take_rows
from engine.config_base import Strict
from engine.config_endpoint import OpenAIGeneratorConfig, OpenAIJudgeConfig
from engine.config_vllm import VllmConfig, VllmGeneratorConfig, VllmJudgeConfig, vllm_identity
from engine.judging.prompts import load_prompt
from engine.models.generators import TransformersGenerator
from engine.models.judges import EmbeddingJudge
from engine.models.recorded import RecordedAnswers, RecordedVerdicts, content_hash
from engine.models.vllm_installed import vllm_gpus
from engine.models.vllm_stages import Serving, VllmGenerator, VllmJudge
from engine.paid.service import judging_identity, paid_generator, paid_judge
from engine.paid.stages import judge_settings
from engine.recipes.base import Context
from engine.runtime import Group, PartWorker, Resources, StageSpec, map_on_group, run_pass
from engine.schema import ANSWER_COLUMNS, RESPONSE, ROW, VERDICT_COLUMNS
from engine.shards import PoolIndex


class Backend(Protocol):
    @property
    def identity(self) -> Mapping[str, Any]: ...

    def run(self, source: Source, target: Step) -> StepRecord: ...
    def close(self) -> None: ...


class Resident:
    """A stage on a group of workers that stay up from round to round. Nothing is loaded until it is needed.

    A runtime that needs the GPUs for another phase closes the group; the next step then loads the model again.

    Args:
        members: how many workers; None: as many as the runtime has.
    """

    def __init__(
        self, context: Context, stage: StageSpec, identity: Mapping[str, Any], members: int | None = None
    ) -> None:
        self.context, self.stage, self.identity = context, stage, identity
        self.members = members or context.runtime.workers
        self.group: Group | None = None

    def run(self, source: Source, target: Step) -> StepRecord:
        runtime = self.context.runtime
        if self.group is not None and not self.group.is_open:
            self.group = None
        if self.group is None and target.record() is None:
            self.group = runtime.group(PartWorker, [{"stage": self.stage}] * self.members, self.stage.resources)
        if self.group is None:
            return run_pass(runtime.observer, source, target, lambda todo: iter(()))
        return map_on_group(runtime.observer, self.group, source, target)

    def close(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None


class Neighbor:
    """Offline stand-in for a model: the response of the most similar other row, which is what a model that has
    memorised the pool would say. Needs the pool's vectors, so it runs where the index is."""

    def __init__(self, context: Context, index: PoolIndex) -> None:
        self.context, self.index = context, index
        self.identity = {"kind": "neighbor"}

    def run(self, source: Source, target: Step) -> StepRecord:
        def answers(todo: list[int]) -> Iterator[Part]:
            for part in todo:
                started = time.perf_counter()
                rows = source.read(part, [ROW])[ROW]
                found, vectors = self.index.lookup(rows.to_numpy())
                nearest = self.index.nearest(vectors, found.rows)
                alone = nearest < 0  # there is no other row
                wanted = np.unique(nearest[~alone])
                responses = take_rows(self.context.pool, wanted, [RESPONSE])[RESPONSE]
                responses = responses.take(pa.array(np.searchsorted(wanted, nearest), mask=alone))
                errors = pa.array(np.where(alone, "no other row in the pool", ""), pa.large_string(), mask=~alone)
                schema = pa.schema([pa.field(ROW, pa.int64()), *ANSWER_COLUMNS])
                table = pa.table([rows, responses, errors], schema=schema)
                seconds = time.perf_counter() - started
                yield target.commit(part, table, seconds=seconds, failed=int(alone.sum()))

        return run_pass(self.context.runtime.observer, source, target, answers)

    def close(self) -> None:
        """The index belongs to the recipe."""


# Without this a weak judge fills its reply with spaces, which JSON allows.
STRUCTURED = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}

GENERATORS = {"transformers": TransformersGenerator, "recorded": RecordedAnswers}
JUDGES = {"embedding": EmbeddingJudge, "recorded": RecordedVerdicts}


def build_generator(context: Context, config: Strict, index: PoolIndex | None) -> Backend | None:
    """The generator, or None when the judge needs no answers. Kind `neighbor` needs the index."""
    settings = config.model_dump()
    kind = settings.pop("kind")
    if kind == "none":
        return None
    if kind == "neighbor":
        assert index is not None
        return Neighbor(context, index)
    if isinstance(config, OpenAIGeneratorConfig):
        return paid_generator(context.paid, config)
    if isinstance(config, VllmGeneratorConfig):
        return vllm_generator(context, config)
    settings, identity = pinned(kind, settings)
    return _resident(context, "answer", GENERATORS[kind], settings, ANSWER_COLUMNS, identity)


def build_judge(context: Context, config: Strict) -> Backend:
    if isinstance(config, OpenAIJudgeConfig):
        return paid_judge(context.paid, config, context.config.seed)
    if isinstance(config, VllmJudgeConfig):
        return vllm_judge(context, config)
    settings = config.model_dump()
    kind = settings.pop("kind")
    settings, identity = pinned(kind, settings)
    if kind == "embedding":
        settings["encoder"] = context.encoder()
    return _resident(context, "judge", JUDGES[kind], settings, VERDICT_COLUMNS, identity)


def vllm_generator(context: Context, config: VllmGeneratorConfig) -> Resident:
    """The model on vLLM's engine, in `replicas` workers."""
    sampling = {"max_tokens": config.max_tokens, "stop": config.stop}
    return _vllm(context, "answer", VllmGenerator, config, sampling, {"system": config.system}, {}, {})


def vllm_judge(context: Context, config: VllmJudgeConfig) -> Resident:
    """The judge on vLLM's engine. Its system text is the same in every request, so the engine keeps that prefix."""
    prompt = load_prompt(config.prompt, "pairwise")
    settings = judge_settings(config, prompt, context.config.seed)
    settings |= {"structured": config.structured, "logprobs": config.logprobs}
    sampling = {"max_tokens": config.max_tokens}
    return _vllm(context, "judge", VllmJudge, config, sampling, settings, judging_identity(prompt), STRUCTURED)


def _vllm(
    context: Context,
    name: str,
    factory: Any,
    config: VllmConfig,
    sampling: Mapping[str, Any],
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Resident:
    """A stage on `replicas` engines.

    Args:
        sampling: fields of SamplingParams beside those that every stage has.
        settings: arguments of `factory` beside `serving`.
        identity: what determines the bytes beside the config.
        defaults: engine arguments that the user may change.
    """
    found, identified = pinned("vllm", {key: value for key, value in vllm_identity(config).items() if key != "kind"})
    gpus = vllm_gpus(config)
    serving = Serving(
        name=name,
        args={
            "enable_prefix_caching": True,
            **({"gpu_memory_utilization": round(0.9 * gpus, 3)} if 0 < gpus < 1 else {}),
            **defaults,
            **config.engine_args,
            "model": found["model"],
            "max_model_len": config.max_model_len,
            "tensor_parallel_size": config.tensor_parallel_size,
            "pipeline_parallel_size": config.pipeline_parallel_size,
        },
        sampling={"temperature": config.temperature, "top_p": config.top_p, **config.sampling, **sampling},
        template=config.chat_template_kwargs,
        hang_s=config.hang_s,
        give_up_after_s=config.give_up_after_s,
        seed=context.config.seed,
        log=context.store,
    )
    resources = Resources(
        cpus=context.config.runtime.threads, gpus=gpus, resident=True, apart=True, concurrency=config.parts
    )
    stage = StageSpec.of(name, factory, resources, serving=serving, **settings)
    drawn = {"seed": context.config.seed} if config.temperature > 0 else {}
    device = {"device": "cuda" if gpus else "cpu"}  # a GPU rounds differently
    return Resident(context, stage, {**identified, **identity, **drawn, **device}, config.replicas)


def pinned(kind: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a stage is built with, and what determines its bytes.

    Local paths become absolute, since workers run in another directory. In the identity a hash of the contents stands
    for a recorded `file` or a `model`, so that one that changed is not taken for the old one.

    Returns:
        (arguments of the stage, identity).

    Raises:
        DataError: E431, the file cannot be read.
        EnvironmentProblem: E320, the model is not here.
    """
    settings = dict(settings)
    identity = {"kind": kind, **settings}
    if settings.get("file") is not None:
        if "://" not in settings["file"]:
            settings["file"] = str(Path(settings["file"]).expanduser().absolute())
        identity["file"] = content_hash(settings["file"])
    if "model" in settings:
        from engine.models.encoder import fingerprint, resolve_model

        folder = resolve_model(settings["model"])
        if Path(settings["model"]).expanduser().is_dir():
            settings["model"] = folder
        identity["model"] = fingerprint(folder)
    return settings, identity


def _resident(
    context: Context, name: str, factory: Any, settings: dict[str, Any], out: list[pa.Field], identity: dict[str, Any]
) -> Resident:
    stage = StageSpec(
        name=name,
        factory=factory,
        kwargs=settings,
        columns_in=factory.columns_in,
        columns_out=out,
        resources=context.resources(resident=True),
    )
    return Resident(context, stage, identity)
