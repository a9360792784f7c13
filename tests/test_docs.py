"""Every command in the README and the docs is one that the command line takes; those of the tutorial are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from engine.cli import app
from engine.settings import load_config
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, *kinds: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def commands(page: Path) -> list[list[str]]:
    """The words after `iterselect` of every command line in a code block."""
    lines = "\n".join(blocks(page, "", "bash", "sh", "console")).replace("\\\n", " ").splitlines()
    found = [line.strip().removeprefix("$ ") for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in found if line.startswith("iterselect ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_is_one_that_the_command_line_takes(page: Path) -> None:
    for words in commands(page):
        if page.name == "commands.md" and ("[OPTIONS]" in words or "COMMAND" in words):
            continue  # the reference's usage lines
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]  # pyright: ignore[reportAttributeAccessIssue]
        command.make_context("iterselect", words)  # parses, and calls nothing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_whole_config_loads(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        if re.search(r"^data:", text, re.MULTILINE) and re.search(r"^recipe:", text, re.MULTILINE):
            (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
            load_config(str(tmp_path / "config.yaml"), [])


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "pool.jsonl", tmp_path / "examples")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "iterselect"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m engine "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    script = "\n".join(["set -eu", *blocks(TUTORIAL, "bash")])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "first/report/index.html").exists() and (tmp_path / "comparison/index.html").exists()
    for folder in ("first-messages", "random-jsonl", "week2/data"):
        assert any((tmp_path / folder).rglob("*.*")), folder
