"""Judgments per second: the paid judge, with ledger and limits, against a bare asyncio + AsyncOpenAI loop.

    python -m benchmarks.judge [--rows 1000 --latency-s 0.03 --concurrency 64]

Both send the same requests (both orders of every row, json_schema and logprobs asked for) to the same scripted server
on loopback, at the same concurrency, in interleaved rounds of one process. The bare loop keeps only the text of each
reply; ours renders the prompts, records INTENT and DONE durably, reads verdicts and probabilities, and commits the
steps. Times and ratios are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

from benchmarks.record import paired, write_record
from engine.artifacts import Step, write_table
from engine.config import PaidConfig
from engine.config_endpoint import OpenAIJudgeConfig
from engine.judging.pairwise import FIRST, SECOND, row_fields
from engine.judging.prompts import load_prompt, render
from engine.live_table import LiveTable
from engine.local import LocalRuntime
from engine.paid.lease_client import LeaseClient
from engine.paid.ledger import LedgerIndex
from engine.paid.limits import Limiter, Limits
from engine.paid.requests import Dialect, Request, wire_body
from engine.paid.service import PaidRun, paid_judge
from engine.paid.stages import judge_asks
from engine.schema import canonical_json, conversation_id
from engine.store import Store

WORDS = [
    "the",
    "model",
    "answers",
    "a",
    "question",
    "about",
    "data",
    "selection",
    "with",
    "care",
    "and",
    "some",
    "detail",
    "while",
    "it",
    "keeps",
    "to",
    "the",
    "point",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--words", type=int, default=120, help="of each answer")
    parser.add_argument("--latency-s", type=float, default=0.03)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="judge")
    arguments = parser.parse_args()
    result = on_server(arguments)
    print_table(result)
    print(f"record: {write_record(arguments.name, result)}")


def on_server(arguments: argparse.Namespace) -> dict[str, Any]:
    """`compare` on a scripted server of its own."""
    command = [sys.executable, "-m", "tests.fake_openai", "--watch-stdin", "--latency-s", str(arguments.latency_s)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        try:
            return compare(f"http://127.0.0.1:{port}/v1", arguments)
        finally:
            server.kill()


def compare(url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and rates of both, and what the limiter alone can do."""
    rows = make_rows(arguments.rows, arguments.words)
    config = OpenAIJudgeConfig(
        model="m", base_url=url, api_key_env=None, price={"input": 1.0, "output": 2.0}, canaries=0.0,  # pyright: ignore
        concurrency=arguments.concurrency,
    )  # fmt: skip
    bodies = request_bodies(rows, config)
    times = paired(
        lambda: ours(rows, config), lambda: asyncio.run(bare(bodies, url, arguments.concurrency)), arguments.rounds
    )
    return {
        "calls": len(bodies),
        "body_bytes": round(sum(len(json.dumps(body)) for body in bodies) / len(bodies)),
        "latency_s": arguments.latency_s,
        "concurrency": arguments.concurrency,
        "ours_calls_per_s": len(bodies) / times["first_s"]["median"],
        "bare_calls_per_s": len(bodies) / times["second_s"]["median"],
        "ratio": times["ratio"],
        "times": times,
        "limiter_pairs_per_s": limiter_rate(arguments.concurrency),
    }


def make_rows(count: int, words: int) -> list[dict[str, Any]]:
    """Rows of plausible size; every answer is different."""
    rows = []
    for number in range(count):
        text = " ".join(WORDS[(number * 7 + place) % len(WORDS)] for place in range(words))
        turns = [
            {"role": "user", "content": f"Question {number}: {text[:200]}"},
            {"role": "assistant", "content": text},
        ]
        messages = canonical_json(turns)
        rows.append(
            {
                "row": number, "id": conversation_id(messages, ""), "messages": messages, "tools": "",
                "response": f"quality={number % 9} {text}", "answer": f"quality={number // 9 % 9} {text[::-1]}",
            }
        )  # fmt: skip
    return rows


def request_bodies(rows: list[dict[str, Any]], config: OpenAIJudgeConfig) -> list[dict[str, Any]]:
    """What our judge sends, ready made for the bare loop."""
    prompt = load_prompt(config.prompt)
    asks = judge_asks(config, prompt)
    messages = [render(prompt, row_fields(row, order)) for row in rows for order in (FIRST, SECOND)]
    return [wire_body(Request(messages=one, **asks), Dialect()) for one in messages]


async def bare(bodies: list[dict[str, Any]], url: str, concurrency: int) -> list[str | None]:
    """The loop that everybody writes first."""
    gate = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def one(body: dict[str, Any]) -> str | None:
            async with gate:
                reply = await client.chat.completions.create(**body)
            return reply.choices[0].message.content

        return await asyncio.gather(*map(one, bodies))


def ours(rows: list[dict[str, Any]], config: OpenAIJudgeConfig) -> None:
    """The judge as a run uses it, in a folder of its own; checks that every row was judged and every call recorded."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        paid = PaidRun(store, LocalRuntime(LiveTable(quiet=True)), PaidConfig(max_usd=1000.0))
        judge = paid_judge(paid, config, seed=0)
        source = Step(store, "rounds/000/batch", {})
        write_table(source, pa.Table.from_pylist(rows), 256)
        target = Step(store, "rounds/000/verdicts", {}, [source.fingerprint])
        judge.run(source, target)
        judge.close()
        paid.close()
        index = LedgerIndex(paid.ledger)
        index.refresh()
        if target.require().failed or len(index) != 2 * len(rows):
            raise RuntimeError(f"{target.require().failed} rows failed, {len(index)} calls recorded")


def limiter_rate(concurrency: int) -> float:
    """Pairs of acquire and release per second through one client and a Limiter in this process."""

    async def run(pairs: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            limiter = Limiter(Store(folder), "0" * 16, 1e9, None)

            def call(method: str, *args: Any) -> Any:
                return getattr(limiter, method)(*args)

            client = LeaseClient(call, "bench-0", "w", "e", Limits(concurrency=concurrency))
            await client.begin(0)
            started = time.perf_counter()
            for _ in range(pairs):
                client.release(await client.acquire(700, 1e-3), "ok", tokens_in=600, tokens_out=6, usd=1e-4)
            seconds = time.perf_counter() - started
            await client.close()
            return pairs / seconds

    return asyncio.run(run(50_000))


def print_table(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['calls']:,} calls of {result['body_bytes']:,} bytes, {result['concurrency']} at once")
    for column in ("", "calls/s", "judgments/s (both orders)"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("ours", "bare"):
        rate = result[f"{name}_calls_per_s"]
        table.add_row(name, f"{rate:,.0f}", f"{rate / 2:,.0f}")
    console = Console()
    console.print(table)
    console.print(
        f"ours / bare: {result['ratio']['median']:.2f} ({result['ratio']['min']:.2f} to {result['ratio']['max']:.2f})"
    )
    console.print(f"limiter alone: {result['limiter_pairs_per_s']:,.0f} calls/s")


if __name__ == "__main__":
    main()
