"""What the tests of paid commands share: the arguments of a small run whose calls go to the scripted server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.cli import run_cli
from tests.fake_server import FakeServer
from tests.runs import settings

PRICE = {"input": 1.0, "output": 2.0}


class Told(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def tell(capsys: pytest.CaptureFixture[str], *arguments: object) -> Told:
    """Runs a command in this process."""
    capsys.readouterr()
    code = run_cli([str(item) for item in arguments])
    return Told(code, *capsys.readouterr())


def endpoint(url: str, **more: Any) -> dict[str, Any]:
    """Settings of a paid generator or judge, as a config file would have them."""
    plain = {"kind": "openai", "model": "m", "base_url": url, "api_key_env": None, "price": PRICE, "concurrency": 16}
    return {**plain, **more}


def judge(server: FakeServer, **more: Any) -> str:
    """The override that makes the scripted server the judge; no canaries unless asked for."""
    return f"recipe.judge={json.dumps(endpoint(server.url, canaries=0.0, **more))}"


def generator(server: FakeServer, **more: Any) -> str:
    return f"recipe.generator={json.dumps(endpoint(server.url, max_tokens=24, **more))}"


def words(pool: Path, out: Path, *overrides: str) -> list[str]:
    """Arguments of `run` and `plan` alike; `run` needs --local besides."""
    return ["iterselect", *settings(pool, out, *overrides)]


def labels(out: Path) -> list[list[dict[str, Any]]]:
    """The labels that the last run in a folder used, per round."""
    import pyarrow.parquet as pq

    found = []
    for folder in sorted((out / "rounds").iterdir()):
        steps = sorted(folder.glob("labels-*/step.json"), key=lambda file: file.stat().st_mtime_ns)
        table = pq.read_table(sorted(steps[-1].parent.glob("*.parquet")), columns=["row", "id", "hard", "soft"])
        found.append(table.to_pylist())
    return found
