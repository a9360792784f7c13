"""One engine and its rows: what does not fit, what kills it, and that nothing else notices."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.artifacts import Step, write_table
from engine.errors import ConfigError, EnvironmentProblem
from engine.local import LocalRuntime
from engine.models.vllm_stages import VllmGenerator
from engine.runtime import PartWorker, Resources, StageSpec, map_on_group
from engine.store import Store
from tests.conftest import Recorder
from tests.vllm.engines import (
    HANGS,
    check_poisoned,
    engine_events,
    engine_processes,
    poisoned,
    prompts,
    row_id,
    rows_of,
    serving,
)

pytestmark = pytest.mark.vllm


def test_poison_rows_are_error_rows_and_all_others_as_without_them(vllm_model: Path, tmp_path: Path) -> None:
    log = Store(tmp_path)
    poison = {"logits_processors": ["tests.vllm.poison:Poison"], "max_num_seqs": 4}
    stage = VllmGenerator(replace(serving(vllm_model, log, **poison), hang_s=6.0), None)
    try:
        texts = prompts(60)
        undisturbed = stage(rows_of(texts)).to_pylist()
        assert all(row["error"] is None for row in undisturbed)
        table, expected = poisoned(texts, 0.1)
        check_poisoned(stage(rows_of(table)).to_pylist(), undisturbed, expected)
        hanging = rows_of([f"Say {HANGS} now"])
        assert stage(hanging)["error"].to_pylist() == ["the engine dies of this row"]
    finally:
        stage.close()
    events = engine_events(log)
    assert [event["row"] for event in events if event["event"] == "blamed"] == [row_id(30), row_id(0)]
    died = [event["why"] for event in events if event["event"] == "died"]
    assert died[-2:] == ["no step for 6 s"] * 2 and len(died) <= 2 + 8
    wait_until_gone()


def test_no_progress_ends_the_run_and_names_what_was_stuck(vllm_model: Path) -> None:
    poison = {"logits_processors": ["tests.vllm.poison:Poison"]}
    stage = VllmGenerator(replace(serving(vllm_model, **poison), hang_s=3.0, give_up_after_s=1.0), None)
    try:
        with pytest.raises(EnvironmentProblem, match=row_id(0)) as caught:
            stage(rows_of([f"Say {HANGS} now"]))
        assert caught.value.code == "E352" and caught.value.why == "no step for 3 s"
    finally:
        stage.close()


def test_settings_that_vllm_does_not_take_are_an_error(vllm_model: Path) -> None:
    with pytest.raises(ConfigError, match="E236"):
        VllmGenerator(serving(vllm_model, no_such_argument=1), None)
    with pytest.raises(EnvironmentProblem, match="E351"):
        VllmGenerator(serving(vllm_model, quantization="no-such-thing"), None)


def source_of(store: Store, parts: int, rows: int) -> Step:
    """A step of prompts in parts of `rows`."""
    table = rows_of(prompts(parts * rows))
    table = table.add_column(0, "row", pa.array(range(len(table)), pa.int64()))
    step = Step(store, "source", {}, [])
    write_table(step, table, rows)
    return step


def stage_of(model: Path, store: Store) -> StageSpec:
    return StageSpec(
        name="answer",
        factory=VllmGenerator,
        kwargs={"serving": serving(model, store, max_tokens=48), "system": "Be brief."},
        columns_in=VllmGenerator.columns_in,
        columns_out=VllmGenerator.columns_out,
        resources=Resources(resident=True, apart=True, concurrency=2),
    )


class Killer(threading.Thread):
    """Kills the engine's process after some parts, and after some more the actor that holds its successor."""

    def __init__(self, store: Store, target: Step) -> None:
        super().__init__(daemon=True)
        self.store, self.target = store, target
        self.engine, self.actor = 0, 0

    def run(self) -> None:
        self._wait_for(2)
        (process,) = engine_processes()
        self.engine = process.pid
        process.kill()
        self._wait_for(5)
        self.actor = engine_events(self.store)[-1]["pid"]
        assert self.actor != os.getpid()
        os.kill(self.actor, signal.SIGKILL)

    def _wait_for(self, parts: int) -> None:
        while len(self.target.committed()) < parts:
            time.sleep(0.02)


@pytest.mark.ray
def test_killed_engine_and_killed_actor_change_nothing(vllm_model: Path, tmp_path: Path, ray_cluster: Any) -> None:
    from actors.cluster import plan, resources
    from actors.runtime import RayRuntime
    from engine.config import RuntimeConfig

    quiet, disturbed = Store(tmp_path / "quiet"), Store(tmp_path / "disturbed")
    source = source_of(quiet, 12, 30)
    alone = Step(quiet, "alone", {}, [])
    LocalRuntime(Recorder()).map_parts(stage_of(vllm_model, quiet), source, alone)
    assert [event["event"] for event in engine_events(quiet)] == ["started"]
    assert alone.require().failed == 0
    wait_until_gone()

    runtime = RayRuntime(plan(resources(), RuntimeConfig(workers=1)), Recorder())
    stage, target = stage_of(vllm_model, disturbed), Step(disturbed, "killed", {}, [])
    group = runtime.group(PartWorker, [{"stage": stage}], stage.resources)
    killer = Killer(disturbed, target)
    killer.start()
    map_on_group(Recorder(), group, source, target)
    group.close()
    killer.join(5)
    events = [event["event"] for event in engine_events(disturbed)]
    assert killer.engine and killer.actor and events == ["started", "died", "started", "started"]
    assert target.read_all().to_pylist() == alone.read_all().to_pylist()
    wait_until_gone()

    passed = Step(disturbed, "passed", {}, [])
    runtime.map_parts(stage, source, passed)  # the other form: a pass of Ray Data, its engine started for it
    assert passed.read_all().to_pylist() == alone.read_all().to_pylist()
    wait_until_gone()


def wait_until_gone() -> None:
    """Nothing of an engine outlives the actor that was killed or released."""
    deadline = time.monotonic() + 60
    while engine_processes():
        assert time.monotonic() < deadline, engine_processes()
        time.sleep(0.1)


def test_a_seed_of_each_row_makes_a_sampled_answer_its_own(vllm_model: Path) -> None:
    given = serving(vllm_model)
    stage = VllmGenerator(replace(given, sampling={**given.sampling, "temperature": 1.0}), None)
    try:
        table = rows_of(prompts(24))
        answers = stage(table).to_pylist()
        backwards = table.take(pa.array(range(23, -1, -1)))
        assert stage(backwards).to_pylist()[::-1] == answers
        assert stage(table.slice(5, 1)).to_pylist() == answers[5:6]
        twins = rows_of(["the same"] * 8)
        assert len({row["answer"] for row in stage(twins).to_pylist()}) == 8
        tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
        turns = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": "x"},
        ]
        one = pa.table({"id": [row_id(1)], "messages": [json.dumps(turns)], "tools": [json.dumps(tools)]})
        text = stage.text(turns[:-1], tools)
        assert text.index("clock") < text.index("Be kind.") < text.index("Hi") < text.index("What time")
        assert stage(one).to_pylist()[0]["tokens_in"] == len(stage.tokenizer(text, add_special_tokens=False).input_ids)
    finally:
        stage.close()
