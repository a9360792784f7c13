"""Files on an object store, or on any other fsspec filesystem: whole objects, conditional creates, large counted reads.

It says in plain words what a storage client means by its errors, and counts what is read, since many small remote
reads are the usual reason for a slow run. It knows nothing of runs; what it does not know of each kind of store
(credentials, endpoints, retries) is fsspec's and the client's own configuration: see docs/storage.md.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from engine.errors import ConfigError, EnvironmentProblem

RANGE_BYTES = 8 << 20  # read at once: below some MB the latency of a request costs more than its bytes
CREATE_TRIES = 5  # of a conditional write that met another one of the same object in flight (HTTP 409)
EXTRAS = {"s3": "iterselect[s3]", "s3a": "iterselect[s3]"}


class Reads(NamedTuple):
    """Requests for data of remote objects, and the bytes that came."""

    requests: int = 0
    bytes: int = 0


class Tally:
    """Counts the remote reads of this process. Any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads = Reads()

    def add(self, num_bytes: int, requests: int = 1) -> None:
        with self._lock:
            self._reads = Reads(self._reads.requests + requests, self._reads.bytes + num_bytes)

    def take(self) -> Reads:
        """What was read since the last time."""
        with self._lock:
            taken, self._reads = self._reads, Reads()
        return taken


READS = Tally()  # of this process, until a part or a step takes them
FINISHED = Tally()  # of the steps whose records this process wrote, their workers' among them, until they are reported


class RemoteFiles:
    """Objects under one root URI. Not picklable: a Store makes its own in every process.

    Every method raises EnvironmentProblem E311..E314 where the client fails, FileNotFoundError where a reader's object
    is not there.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            self.fs, _ = filesystem(root)
        except ValueError as error:
            raise ConfigError(f"{root} is no path and no known URI", why=str(error), code="E243") from error

    def exists(self, path: str) -> bool:
        with told(path):
            return self.fs.exists(path)

    def read(self, path: str) -> bytes:
        """The whole object, in one request."""
        with told(path, missing_ok=True):
            data = self.fs.cat_file(path)
        READS.add(len(data))
        return data

    def read_ranges(
        self, paths: Sequence[str], starts: Sequence[int | None], ends: Sequence[int | None]
    ) -> list[bytes | None]:
        """Bytes [start, end) of many objects at once, so that their latencies overlap; None for one that is gone."""
        with told(self.root):
            found = self.fs.cat_ranges(list(paths), list(starts), list(ends), on_error="return")
        for path, data in zip(paths, found, strict=True):
            with told(path):
                if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                    raise data
        kept = [None if isinstance(data, Exception) else bytes(data) for data in found]
        READS.add(sum(len(data) for data in kept if data is not None), len(kept))
        return kept

    def download(self, path: str, into: str) -> None:
        """The object as a file of this machine, a piece at a time."""
        with told(path, missing_ok=True):
            self.fs.get_file(path, into)
        READS.add(os.path.getsize(into))

    def upload(self, source: str, path: str) -> None:
        """Creates or replaces an object from a file of this machine, a piece at a time."""
        with told(path):
            self.fs.put_file(source, path)

    def open(self, path: str) -> Any:
        """A binary file of which nothing is read but what is asked for.

        For Parquet: pyarrow asks for the footer and then for whole columns, neighbours together, so that reading ahead
        would only fetch columns that nobody wants.
        """
        with told(path, missing_ok=True):
            return counted(self.fs.open(path, "rb", cache_type="none"), path)

    def list(self, path: str) -> list[str]:
        try:
            with told(path, missing_ok=True):
                found = self.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        # an object whose name ends in "/" only stands for the folder itself
        return sorted(name.rsplit("/", 1)[-1] for name in found if not name.endswith("/"))

    def write(self, path: str, data: bytes) -> None:
        with told(path):
            self.fs.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object only if it is absent, by the store's own condition (on S3: `If-None-Match: *`)."""
        for attempt in range(CREATE_TRIES):
            try:
                self.fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if status_of(error) == 412:  # some servers do not name the condition that failed
                    return False
                if status_of(error) != 409 or attempt == CREATE_TRIES - 1:
                    with told(path):
                        raise
                time.sleep(0.1 * 2**attempt)  # another write of it is in flight: soon it is there, or has failed
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def remove(self, path: str) -> None:
        with told(path):
            self.fs.rm_file(path)


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URI, which never answers from an old listing, and the path inside it.

    Raises:
        EnvironmentProblem: E311, the package for this kind of URI is missing.
        ValueError: an unknown kind of URI.
    """
    import fsspec

    with told(uri):
        return fsspec.core.url_to_fs(uri, use_listings_cache=False)


def counted(file: Any, path: str) -> Any:
    """An open fsspec file whose requests are counted, and whose failures cannot be taken for the end of the file."""
    cache = getattr(file, "cache", None)
    if cache is None:  # in memory, or a stream
        return file
    fetch = cache.fetcher

    def fetch_counted(start: int, end: int) -> bytes:
        with told(path):
            data = fetch(start, end)
        READS.add(len(data))
        return data

    cache.fetcher = fetch_counted
    return file


@contextmanager
def told(where: str, *, missing_ok: bool = False) -> Iterator[None]:
    """Turns a storage client's failures into EnvironmentProblems; FileNotFoundError stays if it is `missing_ok`.

    What this library raises, and Python's own errors other than OSError and ImportError, pass unchanged.
    """
    try:
        yield
    except FileNotFoundError as error:
        if missing_ok and code_of(error) != "NoSuchBucket":
            raise
        raise remote_problem(error, where) from error
    except Exception as error:
        foreign = type(error).__module__ not in ("builtins", "engine.errors")
        if foreign or isinstance(error, OSError | ImportError):
            raise remote_problem(error, where) from error
        raise


def remote_problem(error: Exception, where: str) -> EnvironmentProblem:
    """What a storage client's failure means to a user."""
    protocol, _, rest = where.partition("://")
    why = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        extra = EXTRAS.get(protocol)
        fix = f"pip install '{extra}', on every node" if extra else "install the package named above, on every node"
        return EnvironmentProblem(f"no package reads {protocol}:// ({where})", why=why, fix=fix, code="E311")
    if isinstance(error, FileNotFoundError):
        return EnvironmentProblem(
            f"{protocol}://{rest.split('/')[0]} is not there, or nothing lies at {where}",
            why=why,
            fix="create the bucket, or check its name and the endpoint",
            code="E312",
        )
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        return EnvironmentProblem(
            f"no access to {where}",
            why=why,
            fix="give credentials as the storage client expects them, on every node, or check their rights: "
            "see docs/storage.md",
            code="E313",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            f"{where} is full", why=why, fix="free space, then run the same command again", code="E310"
        )
    return EnvironmentProblem(
        f"the object store does not do its work: {where}",
        why=f"{why}{retries_of(error)}",
        fix="run the same command again when it answers: finished work is kept. AWS_MAX_ATTEMPTS sets the S3 client's "
        "retries",
        code="E314",
    )


def _response(error: BaseException) -> dict[str, Any]:
    """The answer that botocore keeps in its error, from which s3fs makes an OSError."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def code_of(error: BaseException) -> str:
    """The store's own name of an error, such as NoSuchBucket; empty when it gave none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    """HTTP status of the answer, 0 when there was none."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def retries_of(error: BaseException) -> str:
    """How often the client repeated the request, where it says so."""
    facts = _response(error).get("ResponseMetadata", {})
    return f" (HTTP {status_of(error)}; tried {1 + facts['RetryAttempts']} times)" if "RetryAttempts" in facts else ""
