"""The ledger: what is written is found, counts once, and costs what it cost."""

from __future__ import annotations

import itertools
import math
import stat
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.paid.ledger import Kind, LedgerIndex, LedgerWriter, Record, Totals
from engine.paid.ledger_frames import HEADER_BYTES, ROW, list_segments, pack, scan
from engine.paid.ledger_tools import verify
from engine.store import Store
from tests.paid.ledgers import OTHER_RUN, RUN, fresh, key_of, logs, on_disk, record, written


@pytest.fixture(params=["", "memory://", "local://"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A growing file, an object store in memory, and an object store whose objects are files."""
    if request.param == "memory://":
        return Store(f"memory://{uuid.uuid4().hex}")
    return on_disk(tmp_path / "ledger", request.param)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(tmp_path / "ledger")


# ---------------------------------------------------------------------------------------------------- round trips

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.builds(
    record,
    st.integers(0, 9),
    st.sampled_from(Kind),
    payload=st.dictionaries(st.text(), JSON, max_size=4),
    purpose=st.sampled_from(["answer", "judge", "canary", "rating", "check"]),
    round=st.integers(0, 65535),
    run=st.sampled_from([RUN, OTHER_RUN, "00" * 8]),
    cost_usd=st.integers(0, 10**15).map(lambda nano: nano / 1e9),
    tokens_in=st.integers(0, 2**32 - 1),
    tokens_out=st.integers(0, 2**32 - 1),
)


def expected_totals(streams: list[list[Record]], run: str | None = None, round_: int | None = None) -> Totals:
    """The definition, record by record."""

    def counted(one: Record) -> bool:
        return run in (None, one.run) and round_ in (None, one.round)

    total, seen = Totals(), set()
    for stream in streams:
        still_open: dict[str, Record] = {}
        for one in stream:
            nano = round(one.cost_usd * 1e9)
            if one.kind == Kind.INTENT:
                still_open[one.key] = one
                continue
            still_open.pop(one.key, None)
            done = one.kind == Kind.DONE
            if counted(one):
                again = done and one.key in seen
                total += Totals(done, not done, 0, again, nano, one.tokens_in, one.tokens_out)
            if done:
                seen.add(one.key)
        for one in still_open.values():
            if counted(one):
                total += Totals(in_doubt=1, cost_nano_usd=round(one.cost_usd * 1e9))
    return total


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.lists(RECORDS, min_size=1, max_size=6), max_size=6), roll=st.integers(1, 4000), data=st.data()
)
def test_what_is_written_is_found(store: Store, groups: list[list[Record]], roll: int, data: st.DataObject) -> None:
    """In any order, for any payload, whether it is followed live or read afterwards, sealed or merged or not."""
    store = store.sub(uuid.uuid4().hex)
    if store.root.startswith("local://"):
        Path(store.root.removeprefix("local://")).mkdir()
    live, writer = LedgerIndex(store), LedgerWriter(store, roll)
    for group in groups:
        writer.write(group)
        if data.draw(st.booleans()):
            live.refresh()
    if data.draw(st.booleans()):
        writer.close()
    live.refresh()
    records = list(itertools.chain(*groups))
    first = {}
    for one in records:
        if one.kind == Kind.DONE:
            first.setdefault(one.key, one.payload)
    for index in (live, fresh(store)):
        assert len(index) == len(first)
        for name in range(10):
            assert index.done(key_of(name)) == first.get(key_of(name))
        assert index.totals() == expected_totals([records])
        for run, round_ in {(one.run, one.round) for one in records}:
            assert index.totals(run, round_) == expected_totals([records], run, round_)
            assert index.totals(run) == expected_totals([records], run)
            assert index.totals(round=round_) == expected_totals([records], None, round_)


def test_half_a_surrogate_pair_survives(store: Store) -> None:
    written(store, [record(1, payload={"text": "a\ud800b \u00e9 \x00\x01"})])
    assert fresh(store).done(key_of(1)) == {"text": "a\ud800b \u00e9 \x00\x01"}


def test_an_answer_cannot_pretend_to_be_a_record(local: Store) -> None:
    """A reply that holds the bytes of a frame stays text, even where the frame around it is damaged."""
    forged = pack(record("forged", cost_usd=0.0)).decode("latin-1")
    written(local, [record(1, payload={"text": "ILG1" + forged}), record(2)], close=False)
    index = fresh(local)
    assert index.done(key_of(1)) == {"text": "ILG1" + forged}
    damaged = bytearray(logs(local)[0].read_bytes())
    damaged[5] ^= 1
    logs(local)[0].write_bytes(damaged)
    index = fresh(local)
    assert index.done(key_of("forged")) is None
    assert len(index) == 1


def test_bad_names_are_refused(local: Store) -> None:
    for wrong in ({"key": "ab"}, {"run": "ab"}, {"purpose": "fun"}):
        with pytest.raises(ValueError, match=r"hex digits|not in"):
            written(local, [record(1, **wrong)])
    assert local.list() == []


def test_segments_are_private(local: Store) -> None:
    written(local, [record(1)])
    assert [stat.S_IMODE(path.stat().st_mode) for path in logs(local)] == [0o600]


def test_an_empty_or_absent_ledger(store: Store) -> None:
    writer = written(store, [])
    index = fresh(store)
    assert (len(index), index.done(key_of(1)), index.totals()) == (0, None, Totals())
    assert len(writer.writer) == 12
    assert store.list() == []


# ---------------------------------------------------------------------------------------------------- accounting


def test_money_is_exact(store: Store) -> None:
    """Tenths and thousandths that floats cannot hold add up exactly, over many small sums."""
    costs = [0.1, 0.2, 0.000000001, 0.3, 1e-9, 123.456789012] * 500
    written(store, [record(n, cost_usd=cost) for n, cost in enumerate(costs)])
    exact = 500 * (100_000_000 + 200_000_000 + 1 + 300_000_000 + 1 + 123_456_789_012)
    assert fresh(store).totals().cost_nano_usd == exact
    assert fresh(store).totals().cost_usd == exact / 1e9


def test_totals_by_run_and_round(store: Store) -> None:
    written(store, [record(n, run=run, round=n % 3) for n in range(12) for run in (RUN, OTHER_RUN)])
    index = fresh(store)
    assert index.totals() == Totals(24, 0, 0, 12, 24_000_000, 2400, 168)
    assert index.totals(RUN) == Totals(12, 0, 0, index.totals(RUN).repeated, 12_000_000, 1200, 84)
    assert index.totals(round=2).calls == 8
    assert index.totals(OTHER_RUN, 1).calls == 4
    assert index.totals("00" * 8) == Totals()
    assert index.totals(RUN).repeated + index.totals(OTHER_RUN).repeated == 12


def test_what_is_in_doubt(store: Store) -> None:
    """An INTENT is closed by what follows from the same writer; only writers that are gone leave doubts."""
    intent, spoiled = Kind.INTENT, Kind.SPOILED
    dead = written(
        store,
        [record("lost", intent, cost_usd=0.5), record("done", intent), record("spoiled", intent)],
        [record("done"), record("spoiled", spoiled, cost_usd=0.25, tokens_in=0, tokens_out=0)],
        [record("again", intent), record("again", spoiled), record("again", intent, cost_usd=0.125, round=4)],
        close=False,
    )
    alive = written(store, [record("lost", intent), record("flying", intent)], [record("lost")], close=False)
    index = fresh(store)
    assert index.totals(live=[alive.writer]) == Totals(2, 2, 2, 0, 878_000_000, 300, 21)
    assert index.totals(live=[alive.writer], round=4) == Totals(in_doubt=1, cost_nano_usd=125_000_000)
    assert index.totals().in_doubt == 3
    assert index.totals(live=[alive.writer, dead.writer]).in_doubt == 0
    alive.write([record("flying")])
    index.refresh()
    assert index.totals().in_doubt == 2


def test_an_intent_is_closed_across_segments(store: Store) -> None:
    written(store, *[[record(n, Kind.INTENT)] for n in range(9)], *[[record(n)] for n in range(8)], roll_bytes=700)
    assert sum(segment.indexed for segment in list_segments(store)) >= 3
    assert fresh(store).totals() == Totals(8, 0, 1, 0, 9_000_000, 800, 56)


def test_the_first_of_repeated_calls_is_used(store: Store) -> None:
    writer, index = written(store, [record(1, payload={"text": "first"})], close=False), LedgerIndex(store)
    index.refresh()
    writer.write([record(1, payload={"text": "second"}), record(2), record(2)])
    writer.close()
    index.refresh()
    for found in (index, fresh(store)):
        assert found.done(key_of(1)) == {"text": "first"}
        assert (len(found), found.totals().calls, found.totals().repeated) == (2, 4, 2)


# ---------------------------------------------------------------------------------------------------- memory and time


def test_the_index_is_small_and_answers_fast(local: Store) -> None:
    count = 100_000
    records = [record(n, kind) for n in range(count // 2) for kind in (Kind.INTENT, Kind.DONE)]
    written(local, *itertools.batched(records, 1000)) if hasattr(itertools, "batched") else written(local, records)
    index = fresh(local)
    arrays = sum(part.key_N.nbytes + part.place_N.nbytes for part in index._sorted)
    assert arrays <= 100 * count / 2 and not any(index._open.values())
    assert len(index._sorted) <= math.log(count, 4)
    begin = time.perf_counter()
    for n in range(2000):
        index.done(key_of(f"unknown {n}"))
    assert (time.perf_counter() - begin) / 2000 < 0.001


def test_scanning_reports_places_in_the_stream(local: Store) -> None:
    frames = [pack(record(n)) for n in range(3)]
    found = scan(b"junk" + b"".join(frames) + b"rest", 1000)
    size = len(frames[0])
    assert found.rows.dtype == ROW and found.rows["offset"].tolist() == [1004 + n * size for n in range(3)]
    assert found.damaged == [(1000, 1004)] and found.tail == (1004 + 3 * size, 1008 + 3 * size)
    assert np.all(found.rows["length"] == size - HEADER_BYTES)


# ---------------------------------------------------------------------------------------------------- index files


def test_a_bad_index_file_changes_nothing(store: Store) -> None:
    groups = [[record(n), record(n + 100, Kind.INTENT)] for n in range(20)]
    written(store, *groups, roll_bytes=2000)
    expected = fresh(store).totals()
    name = next(segment.index_name for segment in list_segments(store) if segment.indexed)
    good = store.read_bytes(name)
    for bad in (b"", good[:10], good[:-1], good + b"\0", good[:-50] + b"x" + good[-49:], bytes(len(good)), None):
        store.remove(name)
        if bad is not None:
            store.write_bytes(name, bad)
        index = fresh(store)
        assert index.totals() == expected and all(index.done(key_of(n)) for n in range(20))
        assert verify(store).bad_indexes == (() if bad is None else (name,))
    elsewhere = Store(f"memory://{uuid.uuid4().hex}")
    written(elsewhere, [record("x")])
    store.write_bytes(name, elsewhere.read_bytes(list_segments(elsewhere)[0].index_name))
    assert fresh(store).totals() == expected  # an index file of another segment
    assert not verify(store).problems
