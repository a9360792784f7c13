"""What a ledger shows, exports and verifies, and how that looks on a terminal."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from engine.errors import ConfigError
from engine.paid.ledger import Kind, LedgerIndex, LedgerWriter, Record
from engine.paid.ledger_frames import list_segments, pack
from engine.paid.ledger_tools import export, render_show, render_verify, show, verify
from engine.store import Store

RUN, OTHER_RUN = "0123456789abcdef", "fedcba9876543210"


def record(number: int, kind: Kind = Kind.DONE, model: str = "small", **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "kind": kind, "key": f"{number:064x}", "payload": {"model": model, "text": f"answer {number}"},
        "purpose": "judge", "round": 1, "run": RUN, "cost_usd": 0.001, "tokens_in": 100, "tokens_out": 7,
    }  # fmt: skip
    return Record(**fields | changes)


def shown(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(f"{tmp_path}/ledger" if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def filled(store: Store) -> Store:
    """Two runs, two models, a spoiled call, a call in doubt, a repeated one."""
    intent, spoiled = Kind.INTENT, Kind.SPOILED
    groups = [
        [record(1, intent), record(2, intent), record(3, intent, cost_usd=0.5)],
        [record(1), record(2, spoiled, payload={"why": "timeout"}, cost_usd=0.25, tokens_in=0, tokens_out=0)],
        [record(4, intent, "large"), record(4, model="large", purpose="rating", run=OTHER_RUN, cost_usd=0.1 + 0.2)],
        [record(1, purpose="canary")],
    ]
    writer = LedgerWriter(store, roll_bytes=600)
    for group in groups:
        writer.write(group)
    writer.close()
    return store


def figures(calls: int, usd: float, tokens: tuple[int, int], *rest: int) -> dict[str, Any]:
    spoiled, in_doubt, repeated = rest or (0, 0, 0)
    return {
        "calls": calls, "cost_usd": usd, "tokens_in": tokens[0], "tokens_out": tokens[1], "spoiled": spoiled,
        "in_doubt": in_doubt, "repeated": repeated,
    }  # fmt: skip


def test_show(filled: Store) -> None:
    facts = show(filled)
    assert facts["records"] == 8
    assert facts["segments"] == len(list_segments(filled))
    assert facts["bytes"] == sum(len(filled.read_bytes(segment.name)) for segment in list_segments(filled))
    assert facts["total"] == figures(3, 1.052, (300, 21), 1, 1, 1)
    assert facts["by_purpose"] == {
        "judge": figures(1, 0.751, (100, 7), 1, 1, 0),
        "rating": figures(1, 0.3, (100, 7)),
        "canary": figures(1, 0.001, (100, 7), 0, 0, 1),
    }
    assert facts["by_model"] == {
        "small": figures(2, 0.752, (200, 14), 1, 1, 1),
        "large": figures(1, 0.3, (100, 7)),
    }
    assert facts["by_run"] == {
        RUN: figures(2, 0.752, (200, 14), 1, 1, 1),
        OTHER_RUN: figures(1, 0.3, (100, 7)),
    }
    assert json.loads(json.dumps(facts)) == facts
    text = shown(render_show(facts))
    for words in ("8 records", "purpose", "canary", "large", RUN, "1.052000", "in doubt", "all"):
        assert words in text


def test_show_agrees_with_the_index_however_models_are_named(store: Store) -> None:
    """The name that was asked for is what money is counted under, so that a call has one name from INTENT to DONE."""
    writer = LedgerWriter(store)
    writer.write([record(n, Kind.INTENT, model="m") for n in range(20)])
    writer.write([record(n, payload={"asked": "m", "model": "m-2026-01-01"}) for n in range(15)])
    writer.write([record(99, payload={"text": "no model"})])
    facts, index = show(store), LedgerIndex(store)
    index.refresh()
    assert set(facts["by_model"]) == {"m", "unknown"}
    assert facts["by_model"]["m"] == figures(15, 0.02, (1500, 105), 0, 5, 0)
    assert sum(row["calls"] for row in facts["by_model"].values()) == index.totals().calls == facts["total"]["calls"]


def test_an_empty_ledger(store: Store) -> None:
    facts, stream = show(store), io.StringIO()
    assert (facts["records"], facts["segments"], facts["by_run"]) == (0, 0, {})
    assert facts["total"] == figures(0, 0.0, (0, 0))
    assert "0 records" in shown(render_show(facts))
    assert export(store, stream) == 0 and stream.getvalue() == ""
    assert not verify(store).problems


def test_export(filled: Store) -> None:
    stream = io.StringIO()
    assert export(filled, stream) == 3
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0] == {
        "key": f"{1:064x}", "purpose": "judge", "round": 1, "run": RUN, "cost_usd": 0.001, "tokens_in": 100,
        "tokens_out": 7, "model": "small", "text": "answer 1",
    }  # fmt: skip
    assert [line["purpose"] for line in lines] == ["judge", "rating", "canary"]
    assert list(lines[0])[:3] == ["key", "purpose", "round"]
    again, ratings = io.StringIO(), io.StringIO()
    export(filled, again)
    assert again.getvalue() == stream.getvalue()
    assert export(filled, ratings, "rating") == 1
    assert json.loads(ratings.getvalue())["run"] == OTHER_RUN
    with pytest.raises(ConfigError, match="no purpose is called 'verdict'"):
        export(filled, io.StringIO(), "verdict")


def test_export_takes_any_text(store: Store, tmp_path: Path) -> None:
    """Half surrogates, line separators and every script; a payload cannot overwrite what the ledger knows."""
    payload = {"text": "\ud800 \u2028 \u4f60\u597d \x00", "key": "forged", "cost_usd": -1}
    writer = LedgerWriter(store)
    writer.write([record(1, payload=payload)])
    with (tmp_path / "out.jsonl").open("w", encoding="ascii") as stream:
        assert export(store, stream) == 1
    [line] = (tmp_path / "out.jsonl").read_bytes().splitlines()
    found = json.loads(line)
    assert found["text"] == payload["text"]
    assert (found["key"], found["cost_usd"]) == (f"{1:064x}", 0.001)


def test_verify_a_sound_ledger(filled: Store) -> None:
    found = verify(filled)
    assert not found.problems
    assert (found.frames, found.repeated, found.in_doubt) == (8, 1, 1)
    assert found.segments == len(list_segments(filled))
    assert (found.damaged, found.torn, found.bad_indexes) == ((), (), ())
    text = shown(render_verify(found))
    assert "8 records in" in text and "1 calls were repeated" in text and "in doubt" in text


def test_verify_names_every_bad_place(store: Store) -> None:
    """Damage in the middle is a problem; a torn end and a bad index are not."""
    for _ in range(2):
        writer = LedgerWriter(store)
        writer.write([record(n) for n in range(4)])
        writer.close()
    first, second = list_segments(store)
    size = len(pack(record(0)))
    data = bytearray(store.read_bytes(first.name))
    data[size + 90] ^= 1
    data[size * 2 + 5] ^= 1
    store.write_bytes(first.name, bytes(data))
    store.write_bytes(second.name, store.read_bytes(second.name)[: -size // 2])
    store.write_bytes(first.index_name, b"nothing")
    found = verify(store)
    assert found.problems
    assert found.damaged == ((first.name, size, 2 * size),)
    assert [(place.segment, place.offset) for place in found.torn] == [(second.name, 3 * size)]
    assert found.bad_indexes[0] == first.index_name
    assert found.frames == 2 + 3
    text = shown(render_verify(found))
    assert f"damaged: {first.name} at byte {size:,}, {2 * size:,} bytes" in text
    assert f"unfinished end, ignored: {second.name} at byte {3 * size:,}" in text
    assert f"bad index, not used: {first.index_name}" in text


def test_a_model_cannot_write_to_the_terminal(store: Store) -> None:
    LedgerWriter(store).write([record(1, model="[bold]x\x1b[2J\u202e")])
    text = shown(render_show(show(store)))
    assert "[bold]x[2J" in text
    assert "\x1b[2J" not in text and "\u202e" not in text


def test_each_record_counts_once_during_a_merge() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    writer = LedgerWriter(store)
    for n in range(5):
        writer.write([record(n)])
    small = {segment.name: store.read_bytes(segment.name) for segment in list_segments(store)}
    writer.close()
    for name, data in small.items():
        store.create(name, data)
    stream = io.StringIO()
    assert export(store, stream) == 5
    assert len({json.loads(line)["key"] for line in stream.getvalue().splitlines()}) == 5
    assert (show(store)["records"], verify(store).frames) == (5, 5)
