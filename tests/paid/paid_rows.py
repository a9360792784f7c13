"""What the tests of paid stages share: rows with answers, a judge on them, and the run that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.artifacts import Step, write_table
from engine.config import PaidConfig
from engine.config_endpoint import OpenAIGeneratorConfig, OpenAIJudgeConfig, OpenAIRaterConfig
from engine.local import LocalRuntime
from engine.paid.rating import rating_pass
from engine.paid.service import PaidBackend, PaidRun, paid_generator, paid_judge
from engine.schema import canonical_json, conversation_id
from engine.store import Store
from tests.conftest import Recorder

PRICE = {"input": 1.0, "output": 2.0}


def make_rows(count: int, start: int = 0, reference: str = "", answer: str = "") -> list[dict[str, Any]]:
    """Rows whose reference and answer carry a quality mark, in all combinations."""
    rows = []
    for number in range(start, start + count):
        messages = canonical_json(
            [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"r{number}"}]
        )
        rows.append(
            {
                "id": conversation_id(messages, ""),
                "messages": messages,
                "tools": "",
                "response": f"quality={number % 7} reference {number}{reference}",
                "answer": f"quality={number // 7 % 7} answer {number}{answer}",
            }
        )
    return rows


def expected(number: int) -> str:
    """The verdict of an honest judge on a row of `make_rows`."""
    reference, answer = number % 7, number // 7 % 7
    return "tie" if reference == answer else "reference" if reference > answer else "answer"


def batch_step(store: Store, rows: list[dict[str, Any]], part_rows: int = 64, name: str = "rounds/000/batch") -> Step:
    table = pa.Table.from_pylist([{"row": number, **row} for number, row in enumerate(rows)])
    step = Step(store, name, {"ids": [row["id"] for row in rows], "part_rows": part_rows})
    write_table(step, table, part_rows)
    return step


def judge_config(url: str, **settings: Any) -> OpenAIJudgeConfig:
    plain = {"model": "m", "base_url": url, "api_key_env": None, "price": PRICE, "canaries": 0.0, "concurrency": 32}
    return OpenAIJudgeConfig(**{**plain, **settings})


def generator_config(url: str, **settings: Any) -> OpenAIGeneratorConfig:
    plain = {"model": "m", "base_url": url, "api_key_env": None, "price": PRICE, "concurrency": 32}
    return OpenAIGeneratorConfig(**{**plain, **settings})


def judge_rows(
    out: Path, rows: list[dict[str, Any]], config: OpenAIJudgeConfig, runtime: Any = None, **paid: Any
) -> pa.Table:
    """Verdicts on rows, in a run folder of their own."""
    run = PaidRun(Store(out), runtime or LocalRuntime(Recorder()), PaidConfig(**paid))
    return _made(run, paid_judge(run, config, seed=0), rows, "verdicts")


def answer_rows(out: Path, rows: list[dict[str, Any]], config: OpenAIGeneratorConfig, **paid: Any) -> pa.Table:
    """Answers to rows, in a run folder of their own."""
    run = PaidRun(Store(out), LocalRuntime(Recorder()), PaidConfig(**paid))
    return _made(run, paid_generator(run, config), rows, "answers")


def rate_rows(out: Path, rows: list[dict[str, Any]], config: OpenAIRaterConfig) -> pa.Table:
    """Ratings of rows, in a run folder of their own."""
    run = PaidRun(Store(out), LocalRuntime(Recorder()), PaidConfig())
    one = rating_pass(config)
    backend = PaidBackend(run, one.role, one.factory, config, one.asks, one.settings, one.identity)
    return _made(run, backend, rows, "ratings")


def _made(run: PaidRun, backend: PaidBackend, rows: list[dict[str, Any]], name: str) -> pa.Table:
    source = batch_step(run.store, rows)
    target = Step(run.store, f"rounds/000/{name}", dict(backend.identity), [source.fingerprint])
    try:
        backend.run(source, target)
    finally:
        backend.close()
        run.close()
    return target.read_all()
