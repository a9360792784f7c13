"""Counters: what an observer hears becomes the right amounts, and the dashboard asks only for names that exist."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.artifacts import Step, write_table
from engine.job import step_figures
from engine.local import LocalRuntime
from engine.metrics import COUNTERS, EXPORTED_PREFIX, MeteredObserver
from engine.models.encoder import Encoder
from engine.runtime import PartWorker, StageSpec
from engine.schema import ID, PROMPT, ROW
from engine.store import Store
from engine.work import count_tokens, counted
from tests.conftest import Recorder

DASHBOARD = Path(__file__).parents[1] / "docs" / "grafana" / "iterselect.json"


class Sums:
    """A Meter that adds up, and knows only the counters that there are."""

    def __init__(self) -> None:
        self.amounts: Counter[tuple[str, ...]] = Counter()

    def count(self, name: str, amount: float, **labels: str) -> None:
        assert amount > 0 and set(labels) == set(COUNTERS[name][1])
        self.amounts[(name, *labels.values())] += amount


class CountWords:
    columns_in = (PROMPT,)
    columns_out = (pa.field("words", pa.int64()), pa.field("error", pa.large_string()))

    def __call__(self, table: pa.Table) -> pa.Table:
        words = [len(text.split()) for text in table[PROMPT].to_pylist()]
        count_tokens(sum(words))
        errors = pa.array([None if number else "empty" for number in words], pa.large_string())
        return pa.table([pa.array(words), errors], ["words", "error"])


def source(store: Store, texts: list[str]) -> Step:
    step = Step(store, "texts", {})
    columns = {ROW: range(len(texts)), ID: [str(row) for row in range(len(texts))], PROMPT: texts}
    write_table(step, pa.table({name: list(values) for name, values in columns.items()}), 2)
    return step


def test_a_pass_counts_what_this_process_did_and_not_what_it_found_done(tmp_path: Path) -> None:
    store, sums, recorder = Store(tmp_path), Sums(), Recorder()
    texts = source(store, ["a b c", "d", "", "e f", "g h i j"])
    stage = StageSpec.of("words", CountWords)
    target = Step(store, "rounds/003/words", {}, [texts.fingerprint])
    first = PartWorker(stage).run(0, texts, target)  # an earlier process did this much
    assert (first.tokens, first.rows) == (4, 2) and first.size_bytes == (
        tmp_path / target.folder / first.file
    ).stat().st_size
    runtime = LocalRuntime(MeteredObserver(recorder, sums))
    record = runtime.map_parts(stage, texts, target)
    assert [part.tokens for part in record.parts] == [4, 2, 4] and record.failed == 1
    runtime.map_parts(stage, texts, target)
    step = "rounds/*/words"
    assert sums.amounts["iterselect_rows_total", step] == 3
    assert sums.amounts["iterselect_tokens_total", step] == 6
    assert sums.amounts["iterselect_failed_rows_total", step] == 1
    assert sums.amounts["iterselect_bytes_total", step] == sum(part.size_bytes for part in record.parts[1:])
    assert sums.amounts["iterselect_steps_total", "false"] == sums.amounts["iterselect_steps_total", "true"] == 1
    assert recorder.done == [(target.name, False), (target.name, True)]


def test_spending_is_counted_from_what_earlier_sessions_had_spent() -> None:
    sums = Sums()
    observer = MeteredObserver(Recorder(), sums)
    facts: dict[str, Any] = {
        "calls": 40,
        "tokens_in": 900,
        "tokens_out": 90,
        "cost_usd": 0.5,
        "limited": 0,
        "failed": 0,
    }
    observer.spent("judge", facts)
    assert not sums.amounts
    observer.spent("judge", {**facts, "calls": 43, "tokens_in": 960, "cost_usd": 0.75, "limited": 2})
    assert sums.amounts["iterselect_paid_calls_total", "judge"] == 3
    assert sums.amounts["iterselect_paid_tokens_total", "judge", "in"] == 60
    assert sums.amounts["iterselect_paid_usd_total", "judge"] == 0.25
    assert sums.amounts["iterselect_retries_total", "judge", "rate_limited"] == 2
    assert ("iterselect_paid_tokens_total", "judge", "out") not in sums.amounts


def test_an_encoder_counts_its_tokens_without_padding(small_pool: Path) -> None:
    from transformers import AutoTokenizer

    encoder = Encoder(str(small_pool.parent / "encoder"), max_tokens=64)
    texts = ["one", "one two three", "word " * 200]
    with counted() as work:
        encoder.encode(texts)
    own = AutoTokenizer.from_pretrained(small_pool.parent / "encoder")
    lengths = [len(own(text, truncation=True)["input_ids"]) for text in texts]
    assert work.tokens == sum(lengths) and lengths[2] == 64
    encoder.encode(texts)  # outside of a block nothing is counted
    assert work.tokens == sum(lengths)


def test_figures_of_a_step_are_of_what_this_run_computed() -> None:
    step = {"name": "embed", "rows": 100, "seconds": 4.0, "failed": 0, "reused": False}
    parts = {"used_rows": 60, "busy_s": 6.0, "bytes": 10, "tokens": 1200}
    found = step_figures({**step, **parts}, workers=2)
    assert (found["rows_per_s"], found["tokens_per_s"], found["busy_share"]) == (15.0, 300.0, 0.75)
    assert step_figures(step, 2)["rows_per_s"] == 25.0
    assert step_figures({**step, "reused": True, "seconds": 0.0}, 2)["rows_per_s"] is None


def test_the_dashboard_asks_only_for_names_and_labels_that_exist() -> None:
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    asked = {name for query in queries for name in re.findall(r"\bray_\w+", query)}
    ours = {f"{EXPORTED_PREFIX}{name}" for name in COUNTERS}
    panels = importlib.resources.files("ray.dashboard.modules.metrics.dashboards")
    rays = set(re.findall(r"\bray_\w+", (panels / "default_dashboard_panels.py").read_text()))
    assert asked <= ours | rays
    assert ours <= asked  # every counter is shown
    for query in queries:
        for labels, name in re.findall(r"sum by \((\w+)\) \((?:rate\()?ray_(iterselect_\w+)", query):
            assert labels in COUNTERS[name][1], query
