"""`handoff/` of a run: for each trainer a config that trains on the selection, and the same on two random baselines.

It decides which files every trainer is given (`trainers.py` has the rules, `configs.py` the texts) and writes them,
with LLaMA-Factory's dataset_info.json beside data/. All of it is rebuilt from committed steps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.artifacts import Step
from engine.baselines import SELECTED, SETS, TrainingSet, training_sets
from engine.data.card import dataset_info
from engine.errors import DataError
from engine.handoff.configs import TrainingData, config_text
from engine.handoff.llamafactory import llamafactory_row
from engine.handoff.readme import readme
from engine.handoff.trainers import COPIES, LLAMAFACTORY, TRL, reading
from engine.outputs import Chosen, choose, remove_others, write_training_files
from engine.recipes.base import Context, Selection
from engine.schema import ID
from engine.store import Store

FOLDER = "handoff"


@dataclass(frozen=True)
class Given:
    """What a trainer is given: rows in the format of data/ or of a copy, which it reads in this way."""

    output: str
    kind: str


@dataclass(frozen=True)
class Handoff:
    """What was written.

    Attributes:
        sets: the selection and the baselines, by name.
        folders: baseline -> folder of its rows, in the format of data/ if a trainer is given that.
    """

    sets: Mapping[str, TrainingSet]
    folders: Mapping[str, str]

    def steps(self) -> dict[str, str]:
        """Folders of the steps, for run.json."""
        return {name: one.step.folder for name, one in self.sets.items()}


def write_handoff(context: Context, selection: Selection) -> Handoff:
    """Writes handoff/ and dataset_info.json into the output folder; nothing when the config does not want them."""
    store, output = context.outputs, context.config.output
    sets = training_sets(context, selection)
    if not output.handoff:
        remove_handoff(store)
        return Handoff(sets, {})
    chosen = {name: choose(context.pool, one.step, output.format) for name, one in sets.items()}
    given = give(chosen)
    outputs = {one.output for one in given.values()}
    info: dict[str, Any] = {}
    for name, rows in chosen.items():
        write_set(store, name, rows, outputs, output.shard_rows)
        if name != SELECTED:
            ids = sets[name].step.read_all([ID])[ID].to_pylist()
            store.write_bytes(f"{place(name)}/ids.txt", "".join(f"{key}\n" for key in ids).encode())
        for trainer, one in given.items():
            data = training_data(context, name, rows, sets[name].step, one, trainer)
            path = f"{place(name)}/{trainer}_sft.yaml"
            store.write_bytes(path, config_text(trainer, data, path).encode())
            if trainer == LLAMAFACTORY:
                info |= dataset_info(data.entry, data.fmt, data.folder)
    store.write_bytes("dataset_info.json", (json.dumps(info, indent=2) + "\n").encode())
    own = chosen[SELECTED].output
    places = {trainer: data_folder(SELECTED, own, one.output) for trainer, one in given.items()}
    store.write_bytes(f"{FOLDER}/README.md", readme(sets, places).encode())
    shown = own if own in outputs else given[TRL].output
    return Handoff(sets, {name: data_folder(name, own, shown) for name in sets if name != SELECTED})


def remove_handoff(store: Store) -> None:
    """Drops what an earlier run wrote: it would train on rows that are no longer the selection."""
    copies = [copy for copy, _ in COPIES.values()]
    files = ["README.md", "ids.txt", *(f"{trainer}_sft.yaml" for trainer in COPIES)]
    for folder in map(place, SETS):
        for last in ("data", *copies):
            remove_others(store, f"{folder}/{last}", [])
        for file in set(store.list(folder)) & set(files):
            store.remove(f"{folder}/{file}")
    if store.exists("dataset_info.json"):
        store.remove("dataset_info.json")


def training_data(context: Context, name: str, rows: Chosen, step: Step, given: Given, trainer: str) -> TrainingData:
    """What the config of a trainer is about, for one set."""
    config = context.config
    return TrainingData(
        folder=data_folder(name, rows.output, given.output),
        fmt=replace(rows, output="sharegpt" if given.output == LLAMAFACTORY else given.output).written,
        entry=dataset_key(config.output.name, name),
        output=f"trained/{trainer}-{name}",
        fingerprint=step.fingerprint[:8],
        seed=config.seed,
        kind=given.kind,
    )


def give(sets: Mapping[str, Chosen]) -> dict[str, Given]:
    """What each trainer is given, the same for all sets: data/ if it reads every row of it, else its copy."""
    own = sets[SELECTED].output
    return {
        trainer: Given(own, kind) if kind else Given(*COPIES[trainer]) for trainer, kind in kinds(sets.values()).items()
    }


def kinds(sets: Iterable[Chosen]) -> dict[str, str]:
    """How each trainer reads the rows of all sets; "" when it does not read all of them, or not all alike."""
    seen: dict[str, set[str]] = {trainer: set() for trainer in COPIES}
    for rows in sets:
        fmt = rows.written
        try:
            for batch in rows.batches():
                for trainer, found in seen.items():
                    found.update(reading(trainer, fmt, row) for row in batch)
        except DataError as error:
            if error.code != "E420":
                raise
            return dict.fromkeys(COPIES, "")  # a baseline has a row that the format of data/ cannot hold
    return {trainer: found.pop() if len(found) == 1 else "" for trainer, found in seen.items()}


def write_set(store: Store, name: str, rows: Chosen, outputs: set[str], shard_rows: int) -> None:
    """The files of a set in the formats that are needed; those of formats no longer needed are removed."""
    wanted = {data_folder(name, rows.output, output): output for output in sorted(outputs)}
    for folder, output in wanted.items():
        if folder != "data":  # written with the outputs
            write_training_files(store, folder, variant(rows, output), "parquet", shard_rows)
    possible = {f"{place(name)}/{last}" for last in ("data", *(copy for copy, _ in COPIES.values()))}
    for folder in possible - wanted.keys():
        remove_others(store, folder, [])


def variant(rows: Chosen, output: str) -> Chosen:
    """The same rows in the format of data/ or of a copy."""
    if output == LLAMAFACTORY:
        return replace(rows, output="messages", convert=llamafactory_row)
    return replace(rows, output=output)


def place(name: str) -> str:
    """Folder of the configs of a set."""
    return FOLDER if name == SELECTED else f"{FOLDER}/{name}"


def data_folder(name: str, own: str, output: str) -> str:
    """Folder of the rows of a set in a format; `own` is the format of data/."""
    if output == own:
        return "data" if name == SELECTED else f"{place(name)}/data"
    return f"{place(name)}/{output}"


def dataset_key(dataset: str, name: str) -> str:
    """Key in dataset_info.json. LLaMA-Factory splits its `dataset:` at commas."""
    key = re.sub(r"[^\w.-]+", "_", dataset).strip("_") or "selection"
    return key if name == SELECTED else f"{key}_{name}"
