"""Ids that were there before, more of them than the memory for them holds."""

from __future__ import annotations

import errno
import hashlib

import pytest

from engine.data import seen
from engine.data.seen import SeenIds


def key(number: int) -> str:
    return hashlib.blake2b(number.to_bytes(8), digest_size=16).hexdigest()


@pytest.mark.parametrize("in_memory", [100, 9_999, 10_000_000])
def test_every_id_is_new_once(monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(seen, "CACHE_MB", 1)  # 60,000 ids take more, so they go to the file
    ids = SeenIds(in_memory)
    assert all(ids.add(key(number)) for number in range(60_000))
    assert not any(ids.add(key(number)) for number in range(0, 60_000, 7))
    assert ids.add(key(60_000)) and SeenIds().add(key(0))


def test_a_full_temporary_folder_is_an_error_of_the_disk() -> None:
    ids = SeenIds(100)
    list(map(ids.add, map(key, range(100))))
    assert ids._database is not None
    ids._database.execute("PRAGMA max_page_count = 20")
    with pytest.raises(OSError, match="No space left") as caught:
        list(map(ids.add, map(key, range(10_000))))
    assert caught.value.errno == errno.ENOSPC
