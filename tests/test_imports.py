"""Who may import whom, in fresh interpreters: the command line stays light, and `engine` never touches Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "ray", "vllm", "transformers", "faiss"}

HELP = """
import runpy
import sys
sys.argv = ["engine", "--help"]
try:
    runpy.run_module("engine", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code
"""
EVERY_MODULE = """
import importlib
import pkgutil
import engine
def refuse(name):
    raise ImportError(name)
names = [found.name for found in pkgutil.walk_packages(engine.__path__, "engine.", onerror=refuse)]
assert "engine.recipes.iterselect" in names
for name in names:
    importlib.import_module(name)
"""
FILES = """
import importlib
import json
print(json.dumps([importlib.import_module(name).__file__ for name in ("engine", "actors")]))
"""


def run_fresh(code: str) -> str:
    """The last line that a fresh interpreter prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after `code`."""
    report = "import json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    return set(json.loads(run_fresh(f"{code}\n{report}")))


@pytest.mark.parametrize("code", [HELP, "import engine.recipes", "import engine.cli", "import engine.settings"])
def test_the_command_line_loads_nothing_heavy(code: str) -> None:
    assert not loaded_by(code) & HEAVY


def test_no_module_of_the_engine_imports_ray_or_actors() -> None:
    assert not loaded_by(EVERY_MODULE) & {"ray", "actors"}


def test_engine_and_actors_are_those_of_this_repository() -> None:
    found = json.loads(run_fresh(FILES))
    assert [Path(file).resolve() for file in found] == [ROOT / "engine/__init__.py", ROOT / "actors/__init__.py"]
