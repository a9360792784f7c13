"""Files of one run folder, on a local disk or on any fsspec filesystem, with the three writes a run needs.

`write_bytes` replaces a file atomically, `create` makes a file only if nobody has (the commit primitive) and
`append_line` adds to a log. A Store is a value: it pickles, and any process may open the same root. One with a Fence
refuses to write once a later driver has taken the folder over. It knows nothing of steps or recipes.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.errors import EnvironmentProblem

if TYPE_CHECKING:
    from engine.remote import RemoteFiles


def absolute_root(root: str | os.PathLike[str]) -> str:
    """An absolute local path, or the URI as given: Ray's workers run in another directory."""
    text = os.fspath(root)
    if "://" in text and not text.startswith("file://"):
        return text.rstrip("/")
    return str(Path(text.removeprefix("file://")).expanduser().resolve())


@dataclass(frozen=True)
class Fence:
    """The right of one driver and its workers to write into a run folder. It ends when a later epoch exists.

    Attributes:
        root: the run folder.
        epoch: of the driver, from 1.
    """

    root: str
    epoch: int

    def check(self) -> None:
        """Returns while the right lasts.

        Raises:
            EnvironmentProblem: E341, another driver has taken the folder over.
        """
        try:
            holder = Store(self.root).read_bytes(epoch_name(self.epoch + 1))
        except FileNotFoundError:
            return
        raise EnvironmentProblem(
            f"this run lost {self.root} to another one",
            why=f"it gave no sign of life for longer than its lease, and was replaced by {holder.decode()}",
            fix="nothing is to be done if the other run goes on; else run the same command again",
            code="E341",
        )


def epoch_name(epoch: int) -> str:
    """The file whose creation makes somebody the driver of this epoch."""
    return f".lease/epoch-{epoch:08d}.json"


class Store:
    """A folder of files addressed by relative paths with forward slashes.

    Args:
        root: local path, `file://` path, or any fsspec URI such as `s3://bucket/run`.
        fence: checked before every write.
    """

    def __init__(self, root: str | os.PathLike[str], fence: Fence | None = None) -> None:
        self.root, self.fence = absolute_root(root), fence
        self.is_local = "://" not in self.root

    def __reduce__(self):
        return (Store, (self.root, self.fence))

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def path(self, relative: str = "") -> str:
        return f"{self.root}/{relative.lstrip('/')}" if relative else self.root

    def sub(self, relative: str) -> Store:
        return Store(self.path(relative), self.fence)

    def check_fence(self) -> None:
        """Raises EnvironmentProblem E341 when another driver has taken the run folder over."""
        if self.fence is not None:
            self.fence.check()

    @cached_property
    def remote(self) -> RemoteFiles:
        """The files of a remote root."""
        from engine.remote import RemoteFiles

        return RemoteFiles(self.root)

    def exists(self, relative: str) -> bool:
        return os.path.exists(self.path(relative)) if self.is_local else self.remote.exists(self.path(relative))

    def read_bytes(self, relative: str) -> bytes:
        if self.is_local:
            return Path(self.path(relative)).read_bytes()
        return self.remote.read(self.path(relative))

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """Many small files, from an object store all at once.

        Raises:
            FileNotFoundError: one of them is gone.
        """
        if self.is_local:
            return [self.read_bytes(name) for name in names]
        nothing = [None] * len(names)
        found = self.remote.read_ranges([self.path(name) for name in names], nothing, nothing)
        if None in found:
            raise FileNotFoundError(self.path(names[found.index(None)]))
        return [data for data in found if data is not None]

    def open_read(self, relative: str, whole: bool = False) -> Any:
        """What `pyarrow.parquet` reads from: a path (memory-mappable), an open remote file, or its bytes if `whole`."""
        if self.is_local:
            return self.path(relative)
        if whole:
            from pyarrow import BufferReader

            return BufferReader(self.read_bytes(relative))
        return self.remote.open(self.path(relative))

    def list(self, relative: str = "") -> list[str]:
        """Names directly inside a folder, sorted; empty when the folder does not exist."""
        if not self.is_local:
            return self.remote.list(self.path(relative))
        try:
            return sorted(os.listdir(self.path(relative)))
        except FileNotFoundError:
            return []

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Creates or replaces a file; a reader sees the old bytes or the new ones, never a mixture."""
        if not self.is_local:
            self.check_fence()
            self.remote.write(self.path(relative), data)
            return
        self._replace(relative, io.BytesIO(data))

    def write_file(self, relative: str, path: str) -> None:
        """As `write_bytes`, from a file of this machine, a piece at a time."""
        if not self.is_local:
            self.check_fence()
            self.remote.upload(path, self.path(relative))
            return
        with open(path, "rb") as source:
            self._replace(relative, source)

    def copy_file(self, source: Store, name: str, relative: str) -> None:
        """As `write_file`, from another store or this one."""
        if source.is_local:
            self.write_file(relative, source.path(name))
            return
        with tempfile.TemporaryDirectory() as folder:
            source.remote.download(source.path(name), f"{folder}/copy")
            self.write_file(relative, f"{folder}/copy")

    def _replace(self, relative: str, source: BinaryIO) -> None:
        with self._written(relative, source) as temporary:
            os.replace(temporary, self.path(relative))
            _sync_directory(self.path(relative))

    def create(self, relative: str, data: bytes) -> bool:
        """Creates a file only if it is absent.

        Returns:
            True when this call created it, False when it was there already (and stays as it is).
        """
        if not self.is_local:
            self.check_fence()
            return self.remote.create(self.path(relative), data)
        with self._written(relative, io.BytesIO(data)) as temporary:
            try:
                os.link(temporary, self.path(relative))  # atomic, and fails when the name is taken
            except FileExistsError:
                return False
            _sync_directory(self.path(relative))
        return True

    def remove(self, relative: str) -> None:
        """Deletes one file: only for outputs that are rebuilt from steps."""
        self.check_fence()
        if self.is_local:
            os.unlink(self.path(relative))
        else:
            self.remote.remove(self.path(relative))

    def append_line(self, relative: str, line: str) -> None:
        """Adds one line to a log. On an object store the log is rewritten, so keep such logs small."""
        data = (line + "\n").encode()
        self.check_fence()
        if self.is_local:
            Path(self.path(relative)).parent.mkdir(parents=True, exist_ok=True)
            with open(self.path(relative), "ab") as file:
                file.write(data)
            return
        try:
            before = self.read_bytes(relative)
        except FileNotFoundError:
            before = b""
        self.remote.write(self.path(relative), before + data)

    @contextmanager
    def _written(self, relative: str, source: BinaryIO) -> Iterator[str]:
        """A temporary file with the data on disk, to be given its name in the body; gone afterwards."""
        target = Path(self.path(relative))
        temporary = f"{target.parent}/.{target.name}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
            self.check_fence()  # as late as can be: between this and the name lies no work
            yield temporary
        except OSError as error:
            raise storage_problem(error, str(target)) from error
        finally:
            Path(temporary).unlink(missing_ok=True)


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
