"""Which ids were there before, for any number of them: on disk once they are many, with bounded memory.

SQLite's own temporary database: it lives in its page cache of CACHE_MB, then in a file of about 25 bytes an id in the
temporary folder (TMPDIR, SQLITE_TMPDIR), which is gone when the object is. It knows nothing of rows or formats.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile

CACHE_MB = 16


class SeenIds:
    """A set of 128-bit ids that can only grow. To be used by one thread at a time."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size = -{1000 * CACHE_MB}")
        self._database.execute("PRAGMA journal_mode = OFF")  # nobody reads it after a crash
        self._database.execute("CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, key: str) -> bool:
        """Adds 32 hex digits; returns whether they are new.

        Raises:
            OSError: ENOSPC, the temporary folder is full.
        """
        try:
            return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (bytes.fromhex(key),)).rowcount == 1
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir()) from error
