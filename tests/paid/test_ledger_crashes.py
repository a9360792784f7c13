"""The ledger under damage, `kill -9`, merging object stores and a full disk: what write() returned for stays there."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EnvironmentProblem
from engine.paid.ledger import Kind, LedgerIndex, LedgerWriter, Totals
from engine.paid.ledger_frames import list_segments, pack
from engine.paid.ledger_tools import verify
from engine.store import Store
from tests.paid.ledgers import fresh, key_of, logs, on_disk, record, written

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(tmp_path / "ledger")


# ---------------------------------------------------------------------------------------------------- damage


def test_a_torn_tail_at_every_byte(local: Store) -> None:
    written(local, [record(1), record(2)], [record(3)], close=False)
    whole = logs(local)[0].read_bytes()
    start = len(whole) - len(pack(record(3)))
    for size in range(start, len(whole)):
        logs(local)[0].write_bytes(whole[:size])
        index = fresh(local)
        assert len(index) == 2 and index.done(key_of(2)) and index.done(key_of(3)) is None
        found = verify(local)
        assert not found.problems
        assert [(place.offset, place.bytes) for place in found.torn] == (
            [(start, size - start)] if size > start else []
        )
        with logs(local)[0].open("ab") as file:
            file.write(whole[size:])  # the reader was quicker than the writer
        index.refresh()
        assert len(index) == 3 and index.totals().calls == 3 and index.done(key_of(3)) == record(3).payload


def test_zeros_at_the_end_are_not_there_yet(local: Store) -> None:
    """A reader on NFS may see the length of a file before its bytes, and later pages before earlier ones."""
    written(local, [record(1)], [record(2)], [record(3)], close=False)
    whole = logs(local)[0].read_bytes()
    one = len(pack(record(1)))
    logs(local)[0].write_bytes(whole[:one] + bytes(len(whole) - one + 5000))
    index = fresh(local)
    assert len(index) == 1 and not verify(local).problems
    logs(local)[0].write_bytes(whole[:one] + bytes(one) + whole[2 * one :])
    index.refresh()
    assert len(index) == 2 and index.done(key_of(2)) is None
    logs(local)[0].write_bytes(whole)
    index.refresh()
    assert len(index) == 3 and index.totals() == fresh(local).totals()


@pytest.mark.parametrize("sealed", [False, True])
def test_a_flipped_byte_in_the_middle_costs_one_record(local: Store, sealed: bool) -> None:
    written(local, [record(n) for n in range(3)], close=sealed)
    [path] = logs(local)
    whole, size = path.read_bytes(), len(pack(record(0)))
    for at in range(size, 2 * size):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        index = fresh(local)
        assert [index.done(key_of(n)) is not None for n in range(3)] == [True, False, True]
        found = verify(local)
        assert found.problems and found.frames == 2
        assert found.damaged == ((path.name, size, size),)


def test_foreign_files_are_left_alone(local: Store) -> None:
    written(local, [record(1)])
    for name in ("notes.txt", "seg-1.log", "seg-zz.log", ".seg.tmp", "seg-0123456789ab-1.log.bak"):
        local.write_bytes(name, b"ILG1 nothing of ours")
    assert len(fresh(local)) == 1
    assert verify(local).segments == 1


# ---------------------------------------------------------------------------------------------------- many processes


def write_many(store: Store, number: int, groups: int) -> None:
    writer = LedgerWriter(store, roll_bytes=20_000)
    for group in range(groups):
        writer.write([record((number, group, n)) for n in range(8)])
    writer.close()


def in_processes(work: Callable[..., None], *calls: tuple[Any, ...]) -> list[Any]:
    processes = [FORK.Process(target=work, args=call) for call in calls]
    for process in processes:
        process.start()
    return processes


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_a_reader_follows_several_writers(tmp_path: Path, scheme: str) -> None:
    """It sees a growing set, each writer's records in their order, while segments are sealed and merged."""
    store = on_disk(tmp_path / "ledger", scheme)
    writers = in_processes(write_many, *[(store, number, 40) for number in range(4)])
    index, sizes, alive = LedgerIndex(store), [0], True
    while alive:
        alive = any(process.is_alive() for process in writers)
        index.refresh()
        sizes.append(len(index))
        assert sizes[-1] == index.totals().calls >= sizes[-2]
        for number in range(4):
            seen = [index.done(key_of((number, group, 7))) is not None for group in range(40)]
            assert seen == sorted(seen, reverse=True)
    assert [process.exitcode for process in writers] == [0] * 4
    assert sizes[-1] == 4 * 40 * 8
    assert index.totals() == fresh(store).totals()
    assert not verify(store).problems


def write_and_tell(store: Store, told: Path, seed: int) -> None:
    writer, names = LedgerWriter(store, roll_bytes=30_000), iter(itertools.count())
    rng = random.Random(seed)
    with told.open("a", buffering=1) as file:
        while True:
            group = [(seed, next(names)) for _ in range(rng.randrange(1, 64))]
            writer.write([record(name, Kind.INTENT) for name in group])
            writer.write([record(name, payload={"text": "x" * rng.randrange(2000)}) for name in group])
            file.write(json.dumps(group) + "\n")


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_kill_at_any_moment_loses_nothing(tmp_path: Path, scheme: str) -> None:
    """`kill -9` of a writing process: every record that write() returned for is there, and no other is damaged."""
    store, told, rng = on_disk(tmp_path / "ledger", scheme), tmp_path / "told", random.Random(3)
    index = LedgerIndex(store)
    for seed in range(25):
        [process] = in_processes(write_and_tell, (store, told, seed))
        time.sleep(rng.uniform(0.02, 0.12))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        index.refresh()
    names = [tuple(name) for line in told.read_text().splitlines() for name in json.loads(line)]
    assert len(names) > 1000
    after = fresh(store)
    assert all(after.done(key_of(name)) is not None for name in names)
    assert after.totals() == index.totals()
    assert after.totals().calls == len(after) and after.totals().repeated == 0
    assert after.totals().in_doubt <= 25 * 63
    assert len(names) <= len(after) <= len(names) + 25 * 63
    assert not verify(store).problems


# ---------------------------------------------------------------------------------------------------- object stores


def test_small_objects_are_merged() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    writer = LedgerWriter(store, roll_bytes=5000)
    early = LedgerIndex(store)
    for n in range(100):
        writer.write([record(n)])
        if n % 30 == 29:
            early.refresh()
    assert len(list_segments(store)) < 40
    writer.close()
    segments = list_segments(store)
    assert len(segments) < 10 and all(segment.indexed for segment in segments)
    assert [segment.begin for segment in segments[1:]] == [segment.end for segment in segments[:-1]]
    # `early` holds a listing whose objects are gone, and finds the replies in the merged ones
    assert all(early.done(key_of(n)) == record(n).payload for n in range(90))
    early.refresh()
    assert early.totals() == fresh(store).totals() == Totals(100, 0, 0, 0, 100_000_000, 10_000, 700)


@pytest.mark.parametrize("left", [0, 1, 3, 5])
def test_a_merge_that_was_cut_short(left: int) -> None:
    """The merged object and any of the small ones: every record counts once."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    groups = [[record((group, n)) for n in range(3)] for group in range(5)]
    writer = written(store, *groups, close=False)
    small = {segment.name: store.read_bytes(segment.name) for segment in list_segments(store)}
    partly = LedgerIndex(store)
    for name in list(small)[2:]:
        store.remove(name)
    partly.refresh()
    assert len(partly) == 6
    for name, data in small.items():
        store.create(name, data)
    writer.close()
    for name, data in list(small.items())[5 - left :]:
        store.create(name, data)
    for index in (partly, fresh(store)):
        index.refresh()
        assert len(index) == 15 and index.totals().repeated == 0 and index.totals().calls == 15
        assert all(index.done(key_of((group, n))) for group in range(5) for n in range(3))
    found = verify(store)
    assert (found.frames, found.repeated, found.problems, found.torn) == (15, 0, False, ())


def test_half_an_object_hides_nothing() -> None:
    """Where the store is not atomic, a merged object may be cut short while the small ones still exist."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    writer = written(store, *[[record(n)] for n in range(4)], close=False)
    small = {segment.name: store.read_bytes(segment.name) for segment in list_segments(store)}
    writer.close()
    [merged] = list_segments(store)
    whole = store.read_bytes(merged.name)
    store.remove(merged.index_name)
    store.write_bytes(merged.name, whole[: len(whole) // 2 + 9])
    for name, data in small.items():
        store.create(name, data)
    index = fresh(store)
    index.refresh()
    assert len(index) == 4 == index.totals().calls
    assert all(index.done(key_of(n)) for n in range(4))


def write_and_merge(store: Store) -> None:
    writer = LedgerWriter(store, roll_bytes=1500)
    for n in range(600):
        writer.write([record(n, Kind.INTENT), record(n)])
    writer.close()


def test_reading_while_objects_are_merged(tmp_path: Path) -> None:
    """Objects vanish between listing and reading; nothing is missed and nothing counts twice."""
    store = on_disk(tmp_path / "ledger", "local://")
    index, [process] = LedgerIndex(store), in_processes(write_and_merge, (store,))
    while process.is_alive():
        before = len(index)
        index.refresh()
        assert len(index) >= before
        assert index.totals().in_doubt == 0
    index.refresh()
    assert index.totals() == Totals(600, 0, 0, 0, 600_000_000, 60_000, 4200)


# ---------------------------------------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_a_full_disk_is_a_clear_error_and_the_ledger_stays_readable(small_disk: Path, scheme: str) -> None:
    store = on_disk(small_disk / "ledger", scheme)
    writer, count = LedgerWriter(store), 0
    big = {"text": "x" * 9000}
    with pytest.raises(EnvironmentProblem, match="No space left on device") as caught:  # noqa: PT012
        for count in itertools.count():
            writer.write([record(count, payload=big)])
    assert caught.value.code == "E310" and "free space" in caught.value.fix
    assert count > 50
    assert all(fresh(store).done(key_of(n)) == big for n in range(count))
    with pytest.raises(EnvironmentProblem, match="No space left"):
        writer.write([record("also", payload=big)])
    assert not verify(store).problems
    index = fresh(store)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    writer.write([record("later")])
    writer.close()
    index.refresh()
    for found in (index, fresh(store)):
        assert found.done(key_of("later")) == record("later").payload
        assert all(found.done(key_of(n)) for n in range(count))
        assert found.totals().repeated == 0
    assert not verify(store).problems
