"""Store: the same three writes on a local folder and on an fsspec filesystem."""

from __future__ import annotations

import pickle
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import EnvironmentProblem
from engine.store import Store


@pytest.fixture(params=["local", "file-uri", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        request.getfixturevalue("s3_server")
    roots = {
        "local": str(tmp_path / "run"),
        "file-uri": f"file://{tmp_path}/run",
        "memory": f"memory://{uuid.uuid4().hex}",
        "s3": f"s3://bucket/{uuid.uuid4().hex}",
    }
    return Store(roots[request.param])


def test_write_read_replace_and_list(store: Store) -> None:
    assert store.list("a") == []
    store.write_bytes("a/x", b"1")
    store.write_bytes("a/x", b"2")
    store.write_bytes("a/b/y", b"3")
    assert store.read_bytes("a/x") == b"2"
    assert store.list("a") == ["b", "x"]
    assert store.exists("a/x")
    assert not store.exists("a/z")


def test_create_keeps_the_first(store: Store) -> None:
    assert store.create("marker", b"first")
    assert not store.create("marker", b"second")
    assert store.read_bytes("marker") == b"first"


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_only_one_of_many_creators_wins(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    if kind == "s3":
        request.getfixturevalue("s3_server")
    store = Store(tmp_path if kind == "local" else f"s3://bucket/{uuid.uuid4().hex}")
    with ThreadPoolExecutor(16) as pool:
        wins = list(pool.map(lambda n: store.create("marker", str(n).encode()), range(64)))
    assert sum(wins) == 1
    assert store.read_bytes("marker") == str(wins.index(True)).encode()
    assert store.list() == ["marker"]  # no temporary file is left


def test_append_line_and_pickle(store: Store) -> None:
    store.append_line("log", "one")
    pickle.loads(pickle.dumps(store)).append_line("log", "two")
    assert store.read_bytes("log") == b"one\ntwo\n"


def test_a_relative_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("run").root == str(tmp_path / "run")


def test_a_full_disk_is_a_clear_error_and_loses_nothing(small_disk: Path) -> None:
    store = Store(small_disk)
    store.write_bytes("kept", b"1")
    with pytest.raises(EnvironmentProblem, match="No space left") as caught:
        store.write_bytes("big", b"1" * (4 << 20))
    assert "free space" in caught.value.fix
    assert store.list() == ["kept"]
