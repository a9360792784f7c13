"""What a judge would be asked about one row, without asking."""

from __future__ import annotations

from typing import Any

from engine.artifacts import Step
from engine.data.ingest import Ingest, IngestOptions
from engine.data.inputs import resolve_inputs
from engine.errors import ConfigError
from engine.judging.pairwise import FIRST, SECOND, conversation, row_fields
from engine.judging.prompts import load_prompt, render
from engine.schema import ANSWER, ID, RESPONSE, ROW
from engine.store import Store


def render_row(row: str, source: str, prompt: str, answer: str | None, order: str) -> list[dict[str, str]]:
    """The chat messages for one row.

    Args:
        row: row number or id.
        source: run folder, or anything `iterselect inspect` reads.
        prompt: name, name/version or path.
        answer: the model's answer; None: the one on record in the run, else the reference itself.
        order: "first" or "second".

    Raises:
        ConfigError: E261, there is no such row; E262, an order that does not exist.
    """
    if order not in (FIRST, SECOND):
        raise ConfigError(f"no order {order!r}", fix="first or second", code="E262")
    found = find_row(row, source)
    chosen = load_prompt(prompt)
    if chosen.kind == "rating":
        return render(chosen, {"conversation": conversation(found), "answer": found[RESPONSE]})
    filled = answer if answer is not None else recorded_answer(found[ROW], source) or found[RESPONSE]
    return render(chosen, row_fields({**found, ANSWER: filled}, order))


def find_row(row: str, source: str) -> dict[str, Any]:
    """A row of the pool of a run folder, or of a data file."""
    store = Store(source)
    if store.exists("status.json"):
        step = _newest(store, "steps", "ingest-")
        tables = (step.read(part.index) for part in step.require().parts) if step else ()
    else:
        tables = Ingest(resolve_inputs(source), IngestOptions(), lambda reject: None)
    for table in tables:
        keys = zip(map(str, table[ROW].to_pylist()), table[ID].to_pylist(), strict=True)
        for position, names in enumerate(keys):
            if row in names:
                return table.slice(position, 1).to_pylist()[0]
    raise ConfigError(f"no row {row} in {source}", fix="give a row number from 0, or an id", code="E261")


def recorded_answer(row: int, source: str) -> str | None:
    """The answer that a run recorded for a row, None when it was in no batch."""
    store = Store(source)
    for number in store.list("rounds"):
        step = _newest(store, f"rounds/{number}", "answers-")
        if step is not None:
            table = step.read_all([ROW, ANSWER])
            rows = table[ROW].to_pylist()
            if row in rows:
                return table[ANSWER][rows.index(row)].as_py()
    return None


def _newest(store: Store, folder: str, prefix: str) -> Step | None:
    """A complete step of a folder; the last by name when settings were changed in between."""
    names = [name for name in store.list(folder) if name.startswith(prefix)]
    complete = [name for name in names if store.exists(f"{folder}/{name}/step.json")]
    return Step.at(store, f"{folder}/{complete[-1]}") if complete else None
