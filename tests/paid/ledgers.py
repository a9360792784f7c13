"""Records and ledgers for the tests of the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.paid.ledger import Kind, LedgerIndex, LedgerWriter, Record
from engine.paid.ledger_frames import list_segments
from engine.store import Store

RUN, OTHER_RUN = "0123456789abcdef", "fedcba9876543210"


def key_of(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def record(name: object, kind: Kind = Kind.DONE, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "kind": kind, "key": key_of(name), "payload": {"model": "m", "text": f"answer {name}"}, "purpose": "judge",
        "round": 0, "run": RUN, "cost_usd": 0.001, "tokens_in": 100, "tokens_out": 7,
    }  # fmt: skip
    return Record(**fields | changes)


def written(store: Store, *groups: Sequence[Record], close: bool = True, **settings: Any) -> LedgerWriter:
    writer = LedgerWriter(store, **settings)
    for group in groups:
        writer.write(group)
    if close:
        writer.close()
    return writer


def fresh(store: Store) -> LedgerIndex:
    index = LedgerIndex(store)
    index.refresh()
    return index


def logs(store: Store) -> list[Path]:
    return [Path(store.path(segment.name)) for segment in list_segments(store)]


def on_disk(folder: Path, scheme: str) -> Store:
    """`local://` is an object store whose objects are files; unlike a real one it wants its folder made."""
    folder.mkdir(parents=True)
    return Store(f"{scheme}{folder}")
