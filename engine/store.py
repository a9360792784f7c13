"""Files of one run folder, on a local disk or on any fsspec filesystem, with the three writes a run needs.

`write_bytes` replaces a file atomically, `create` makes a file only if nobody has (the commit primitive) and
`append_line` adds to a log. A Store is a value: it pickles, and any process may open the same root. It knows nothing
of steps or recipes.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from engine.errors import EnvironmentProblem


def absolute_root(root: str | os.PathLike[str]) -> str:
    """An absolute local path, or the URI as given: Ray's workers run in another directory."""
    text = os.fspath(root)
    if "://" in text and not text.startswith("file://"):
        return text.rstrip("/")
    return str(Path(text.removeprefix("file://")).expanduser().resolve())


class Store:
    """A folder of files addressed by relative paths with forward slashes.

    Args:
        root: local path, `file://` path, or any fsspec URI such as `s3://bucket/run`.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = absolute_root(root)
        self.is_local = "://" not in self.root
        self._fs: Any = None

    def __reduce__(self):
        return (Store, (self.root,))

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def path(self, relative: str = "") -> str:
        return f"{self.root}/{relative.lstrip('/')}" if relative else self.root

    def sub(self, relative: str) -> Store:
        return Store(self.path(relative))

    @property
    def fs(self) -> Any:
        """The fsspec filesystem of a remote root."""
        if self._fs is None:
            import fsspec

            self._fs = fsspec.core.url_to_fs(self.root)[0]
        return self._fs

    def exists(self, relative: str) -> bool:
        return os.path.exists(self.path(relative)) if self.is_local else self.fs.exists(self.path(relative))

    def read_bytes(self, relative: str) -> bytes:
        if self.is_local:
            return Path(self.path(relative)).read_bytes()
        return self.fs.cat_file(self.path(relative))

    def open_read(self, relative: str) -> Any:
        """What `pyarrow.parquet` reads from: a path (memory-mappable) or an open remote file."""
        return self.path(relative) if self.is_local else self.fs.open(self.path(relative), "rb", block_size=8 << 20)

    def list(self, relative: str = "") -> list[str]:
        """Names directly inside a folder, sorted; empty when the folder does not exist."""
        if self.is_local:
            try:
                return sorted(os.listdir(self.path(relative)))
            except FileNotFoundError:
                return []
        if not self.fs.exists(self.path(relative)):
            return []
        self.fs.invalidate_cache(self.path(relative))
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in self.fs.ls(self.path(relative), detail=False))

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Creates or replaces a file; a reader sees the old bytes or the new ones, never a mixture."""
        if not self.is_local:
            self.fs.pipe_file(self.path(relative), data)
            return
        temporary = self._write_temporary(relative, data)
        os.replace(temporary, self.path(relative))
        _sync_directory(self.path(relative))

    def create(self, relative: str, data: bytes) -> bool:
        """Creates a file only if it is absent.

        Returns:
            True when this call created it, False when it was there already (and stays as it is).
        """
        if not self.is_local:
            try:
                self.fs.pipe_file(self.path(relative), data, mode="create")
            except FileExistsError:
                return False
            return True
        temporary = self._write_temporary(relative, data)
        try:
            os.link(temporary, self.path(relative))  # atomic, and fails when the name is taken
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        _sync_directory(self.path(relative))
        return True

    def remove(self, relative: str) -> None:
        """Deletes one file: only for outputs that are rebuilt from steps."""
        if self.is_local:
            os.unlink(self.path(relative))
        else:
            self.fs.rm_file(self.path(relative))

    def append_line(self, relative: str, line: str) -> None:
        """Adds one line to a log. On an object store the log is rewritten, so keep such logs small."""
        data = (line + "\n").encode()
        if self.is_local:
            Path(self.path(relative)).parent.mkdir(parents=True, exist_ok=True)
            with open(self.path(relative), "ab") as file:
                file.write(data)
            return
        before = self.read_bytes(relative) if self.exists(relative) else b""
        self.fs.pipe_file(self.path(relative), before + data)

    def _write_temporary(self, relative: str, data: bytes) -> str:
        target = Path(self.path(relative))
        temporary = f"{target.parent}/.{target.name}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            Path(temporary).unlink(missing_ok=True)
            raise storage_problem(error, str(target)) from error
        return temporary


def storage_problem(error: OSError, where: str) -> EnvironmentProblem:
    """What a failed write means to a user. Everything committed before it stays valid."""
    return EnvironmentProblem(
        f"cannot write {where}: {error.strerror or error}",
        fix="free space or choose another `out=` folder, then run the same command again: finished work is kept",
        code="E310",
    )


def _sync_directory(path: str) -> None:
    """Makes a rename or link durable: without it a power cut may forget the name of a file that is already on disk."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
