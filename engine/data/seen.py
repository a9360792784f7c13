"""Which ids were there before, for any number of them: in memory while they are few, on disk once they are many.

The latest ids lie in a set of at most IN_MEMORY (about 100 bytes each); full, it is emptied into SQLite's own temporary
database: that lives in its page cache of CACHE_MB, then in a file of about 25 bytes an id in the temporary folder
(TMPDIR, SQLITE_TMPDIR), which is gone when the object is. It knows nothing of rows or formats.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

IN_MEMORY = 1_000_000  # a set finds an id ten times faster than the database
CACHE_MB = 16


class SeenIds:
    """A set of 128-bit ids that can only grow. To be used by one thread at a time."""

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._latest: set[bytes] = set()
        self._in_memory = in_memory
        self._database: sqlite3.Connection | None = None

    def add(self, key: str) -> bool:
        """Adds 32 hex digits; returns whether they are new.

        Raises:
            OSError: ENOSPC, the temporary folder is full.
        """
        digest = bytes.fromhex(key)
        if digest in self._latest or (self._database is not None and self._on_disk(self._database, digest)):
            return False
        self._latest.add(digest)
        if len(self._latest) >= self._in_memory:
            self._put_away()
        return True

    def _on_disk(self, database: sqlite3.Connection, digest: bytes) -> bool:
        with _full_disk_told():
            return database.execute("SELECT 1 FROM seen WHERE id = ?", (digest,)).fetchone() is not None

    def _put_away(self) -> None:
        with _full_disk_told():
            if self._database is None:
                self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
                self._database.execute(f"PRAGMA cache_size = -{1000 * CACHE_MB}")
                self._database.execute("PRAGMA journal_mode = OFF")  # nobody reads it after a crash
                self._database.execute("CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID")
                self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO seen VALUES (?)", ((digest,) for digest in sorted(self._latest)))
        self._latest.clear()


@contextmanager
def _full_disk_told() -> Iterator[None]:
    """SQLite writes pages while it reads too, when its cache is full.

    Raises:
        OSError: with its folder; ENOSPC when it is full, else EIO with SQLite's words.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        words = os.strerror(errno.ENOSPC) if full else f"{error}; set SQLITE_TMPDIR to another folder"
        raise OSError(errno.ENOSPC if full else errno.EIO, words, _folder()) from error


def _folder() -> str:
    """Where SQLite puts its temporary files: the first of these that is there (sqlite.org/tempfiles.html)."""
    named = (os.environ.get(name) for name in ("SQLITE_TMPDIR", "TMPDIR"))
    places = [*named, "/var/tmp", "/usr/tmp", "/tmp"]
    return next((place for place in places if place and os.access(place, os.W_OK | os.X_OK)), ".")
