"""Which files an input specification names, and how to open them as bytes.

It turns a file, folder, glob or fsspec URI into a list of input files and opens one of them, decompressed. It knows
nothing of rows. Zstandard goes through pyarrow, whose stream reports a truncated frame; the `zstandard` package ends
such a stream in silence (measured with 0.25).
"""

from __future__ import annotations

import glob
import gzip
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import PurePath
from typing import Any, cast

import pyarrow as pa

from engine.errors import DataError
from engine.remote import RANGE_BYTES, counted, filesystem, told

KINDS = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
WANTED = ".json .jsonl .ndjson (each also .gz or .zst), .parquet, .arrow"
# What Hugging Face and LLaMA-Factory put next to data; in a folder they are not rows.
SIDECARS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@dataclass(frozen=True)
class InputFile:
    """One input file: path or URI as the user wrote it, bytes on disk, kind (values of KINDS), ""|"gz"|"zst"."""

    path: str
    size_bytes: int
    kind: str
    compression: str = ""

    @property
    def stem(self) -> str:
        """File name without its extensions: the source name of rows that carry none."""
        name = self.path.rsplit("/", 1)[-1]
        for suffix in (*COMPRESSIONS, *KINDS):
            name = name.removesuffix(suffix)
        return name or "data"


def resolve_inputs(spec: str | Iterable[str]) -> list[InputFile]:
    """Lists the files that an input specification names.

    Args:
        spec: one or several of: file, folder (searched recursively), glob, fsspec URI of any of these.

    Returns:
        At least one file. In the order of the specifications, within one sorted by path; a repeated file is kept once.

    Raises:
        DataError: E401 nothing there, E402 not readable, E403 folder or glob without data files, E404 unknown
            extension, E408 a name that is not UTF-8.
        EnvironmentProblem: E311 the package that reads this kind of URI is not installed, E312..E314 no bucket, no
            access, or no answer.
    """
    found: dict[str, InputFile] = {}
    for one in [spec] if isinstance(spec, str) else spec:
        files = _list_uri(one) if "://" in one else _list_local(one)
        for file in sorted(files, key=lambda file: file.path):
            found.setdefault(file.path, file)
    if not found:
        raise DataError("no input was given", fix="name a file, a folder, a glob or a URI", code="E401")
    return list(found.values())


def classify(path: str) -> tuple[str, str] | None:
    """(kind, compression) from the file name, None when the extension is unknown."""
    base, extension = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(extension, "")
    kind = KINDS.get(os.path.splitext(base)[1] if compression else extension)
    if kind is None or (compression and kind in ("parquet", "arrow")):
        return None
    return kind, compression


def _list_local(spec: str) -> list[InputFile]:
    if os.path.isdir(spec):
        names = [os.path.join(folder, name) for folder, _, names in os.walk(spec, onerror=_refuse) for name in names]
        return [_local_file(path) for path in _data_files(spec, names)]
    if os.path.exists(spec):
        return [_local_file(spec)]
    if glob.has_magic(spec):
        names = [path for path in glob.glob(spec, recursive=True) if os.path.isfile(path)]
        return [_local_file(path) for path in _data_files(spec, names)]
    raise _missing(spec, "the path is taken relative to the working directory")


def _local_file(path: str) -> InputFile:
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file", fix="name a file on disk", code="E402")
    if not os.access(path, os.R_OK):
        raise unreadable(path, PermissionError("permission denied"))
    return _input_file(path, status.st_size)


def _list_uri(spec: str) -> list[InputFile]:
    try:
        with told(spec, missing_ok=True):
            fs, path = filesystem(spec)
            if fs.isfile(path):
                return [_input_file(spec, int(fs.size(path) or 0))]
            search = fs.glob if glob.has_magic(path) else fs.find
            entries = search(path, detail=True)
    except FileNotFoundError as error:
        raise _missing(spec, str(error)) from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {spec}", why=str(error), fix="use a path or a known URI", code="E401") from error
    sizes = {
        fs.unstrip_protocol(name): int(entry.get("size") or 0)
        for name, entry in cast("dict[str, dict[str, Any]]", entries).items()
        if entry.get("type") == "file"
    }
    if not sizes:
        raise _missing(spec, "no file lies under this URI")
    return [_input_file(path, sizes[path]) for path in _data_files(spec, list(sizes))]


def _data_files(spec: str, paths: list[str]) -> list[str]:
    """The paths with a known extension; hidden, underscored and sidecar files are passed over."""

    def is_data(path: str) -> bool:
        inner = PurePath(path[len(spec) :] if path.startswith(spec) else path).parts
        hidden = any(part.startswith((".", "_")) and part not in (".", "..") for part in inner)
        return not hidden and PurePath(path).name not in SIDECARS and classify(path) is not None

    kept = [path for path in paths if is_data(path)]
    if not kept:
        raise DataError(
            f"no data file in {spec}",
            why=f"{len(paths)} other files were seen there",
            fix=f"expected {WANTED}",
            code="E403",
        )
    return kept


def _input_file(path: str, size_bytes: int) -> InputFile:
    kinds = classify(path)
    if kinds is None:
        raise DataError(
            f"cannot tell the format of {path} from its extension",
            fix=f"rename or convert it to one of: {WANTED}",
            code="E404",
        )
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the name of {path!r} is not UTF-8", why="it goes into the outputs", fix="rename the file", code="E408"
        ) from error
    return InputFile(path, size_bytes, *kinds)


def _missing(spec: str, why: str) -> DataError:
    return DataError(f"input not found: {spec}", why=why, fix="check the spelling of the path", code="E401")


def _refuse(error: OSError) -> None:
    raise unreadable(str(error.filename), error)


def unreadable(path: str, error: OSError) -> DataError:
    """E402 for a file that exists and cannot be read."""
    return DataError(f"cannot read {path}", why=str(error), fix="check the file's permissions", code="E402")


def _open(path: str, range_bytes: int) -> Any:
    if "://" not in path:  # fsspec would give "::" in the name of a local file a meaning
        return open(path, "rb")
    with told(path, missing_ok=True):
        fs, inner = filesystem(path)
        return counted(fs.open(inner, "rb", block_size=range_bytes, cache_type="readahead"), path)


@contextmanager
def opened(file: InputFile, range_bytes: int = RANGE_BYTES) -> Iterator[BufferedReader]:
    """One decompressed binary stream with a bounded buffer; E402 when it cannot be opened.

    Args:
        range_bytes: of a remote file that are read at once.
    """
    try:
        raw = _open(file.path, range_bytes)
    except OSError as error:
        raise unreadable(file.path, error) from error
    with raw:
        if file.compression == "gz":
            yield cast("BufferedReader", gzip.GzipFile(fileobj=raw))
        elif file.compression == "zst":
            yield BufferedReader(cast("Any", pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")))
        elif isinstance(raw, BufferedReader) or file.kind in ("parquet", "arrow"):
            yield cast("BufferedReader", raw)
        else:
            yield BufferedReader(cast("Any", raw))
