"""What a judge would be asked about one row, without asking."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.artifacts import Step
from engine.data.ingest import Ingest, IngestOptions
from engine.data.inputs import resolve_inputs
from engine.errors import ConfigError
from engine.judging.pairwise import FIRST, SECOND, conversation, row_fields
from engine.judging.prompts import FIELDS, Prompt, load_prompt, render
from engine.paid.tagging import queries_of
from engine.schema import ANSWER, ID, MESSAGES, PROMPT, RESPONSE, ROW
from engine.store import Store
from engine.yaml_document import parse_yaml


@dataclass(frozen=True)
class Preview:
    """One request.

    Attributes:
        messages: as they are sent.
        stands_in: nobody has answered the row, so its own response is shown in the answer's place.
    """

    messages: list[dict[str, str]]
    stands_in: bool


def render_row(row: str, source: str, prompt: str | None, answer: str | None, order: str) -> Preview:
    """The request about one row.

    Args:
        row: row number or id.
        source: run folder, or anything `iterselect inspect` reads.
        prompt: name, name/version or path; None: the one of the run's judge, else "pairwise".
        answer: the model's answer; None: the one on record in the run, else the row's own response.
        order: "first" or "second".

    Raises:
        ConfigError: E261, there is no such row; E262, an order that does not exist.
    """
    if order not in (FIRST, SECOND):
        raise ConfigError(f"no order {order!r}", fix="first or second", code="E262")
    store = Store(source)
    run = store if store.exists("status.json") else None
    chosen = load_prompt(prompt or (run and judge_prompt(run)) or "pairwise")
    found = find_row(row, source, run)
    if chosen.kind != "pairwise":
        return Preview(render(chosen, shown_fields(chosen, found)), False)
    if answer is None and run is not None:
        answer = recorded_answer(run, found[ID])
    filled = {**found, ANSWER: found[RESPONSE] if answer is None else answer}
    return Preview(render(chosen, row_fields(filled, order)), answer is None)


def shown_fields(prompt: Prompt, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a prompt that is no comparison would show of a row; a choice shows it as the only one of its region."""
    query = queries_of(row[MESSAGES], "last")[0]
    everything = {
        "conversation": conversation(row),
        "answer": row[RESPONSE],
        "query": query,
        "instruction": query,
        "count": 1,
        "instructions": [{"id": 1, "text": row[PROMPT]}],
    }
    return {name: everything[name] for name in FIELDS[prompt.kind]}


def judge_prompt(run: Store) -> str | None:
    """The prompt that the judge of a run was given, None when it is no model."""
    if not run.exists("config.yaml"):
        return None
    config = parse_yaml(run.read_bytes("config.yaml").decode(), run.path("config.yaml")).value
    return (config["recipe"].get("judge") or {}).get("prompt")


def find_row(row: str, source: str, run: Store | None) -> dict[str, Any]:
    """A row of the pool of a run, or of a data file."""
    if run is not None:
        step = _newest(run, "steps", "ingest-")
        tables = (step.read(part.index) for part in step.require().parts) if step else ()
    else:
        tables = Ingest(resolve_inputs(source), IngestOptions(), lambda reject: None)
    for table in tables:
        keys = zip(map(str, table[ROW].to_pylist()), table[ID].to_pylist(), strict=True)
        for position, names in enumerate(keys):
            if row in names:
                return table.slice(position, 1).to_pylist()[0]
    raise ConfigError(f"no row {row} in {source}", fix="give a row number from 0, or an id", code="E261")


def recorded_answer(run: Store, key: str) -> str | None:
    """The answer that a run recorded for a row, by its id; None when it was in no batch or the answer failed."""
    for number in run.list("rounds"):
        batch, answers = (_newest(run, f"rounds/{number}", f"{name}-") for name in ("batch", "answers"))
        if batch is not None and answers is not None:
            ids, rows = batch.read_all([ID])[ID].to_pylist(), answers.read_all([ANSWER])
            if key in ids:
                return rows[ANSWER][ids.index(key)].as_py()
    return None


def _newest(store: Store, folder: str, prefix: str) -> Step | None:
    """A complete step of a folder: the last to be finished where settings were changed in between."""
    names = [f"{folder}/{name}" for name in store.list(folder) if name.startswith(prefix)]
    complete = [name for name in names if store.exists(f"{name}/step.json")]
    if store.is_local:
        complete.sort(key=lambda name: os.stat(store.path(f"{name}/step.json")).st_mtime_ns)
    return Step.at(store, complete[-1]) if complete else None
