"""What a run's paid calls will cost, before any is made: calls, tokens and USD, low, likely and high.

Prompts of a sample of the pool are rendered as the run would, and looked up in the ledger. What cannot be known
beforehand is bounded: how many rounds it takes, how long the answers get, how many tokens a text has. It calls nobody.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.config import RunConfig
from engine.config_endpoint import EndpointConfig, OpenAIGeneratorConfig, OpenAIJudgeConfig
from engine.data.ingest import Ingest
from engine.data.inputs import resolve_inputs
from engine.job import ingest_options
from engine.judging.prompts import load_prompt
from engine.models.recorded import RecordedAnswers
from engine.paid.batch_files import Missing
from engine.paid.prices import price_of
from engine.paid.service import endpoint_of, ledger_store
from engine.paid.stages import Calls, OpenAIGenerator, OpenAIJudge, judge_asks, judge_settings, sampling
from engine.recipes.iterselect import diverse_rows
from engine.schema import ANSWER, ID, MESSAGES, POOL_SCHEMA, RESPONSE, TOOLS, id_words, seeded_hash
from engine.store import Store

SAMPLE_ROWS = 200
CASES = ("low", "likely", "high")
# Tokens per byte of a prompt: English prose in current vocabularies has about 0.22 to 0.28, code and other scripts
# more.
TOKENS_PER_BYTE = {"low": 0.2, "likely": 0.28, "high": 0.4}
VERDICT_TOKENS = {"low": 5, "likely": 9}
ASKED_AGAIN = {"low": 0.0, "likely": 0.01, "high": 0.05}  # share of unreadable replies, each asked once more


@dataclass(frozen=True)
class Sample:
    """Rows of the pool that stand for all of it.

    Attributes:
        rows: of the pool.
        table: POOL_SCHEMA and `answer`, at most 200 rows.
    """

    rows: int
    table: pa.Table


def estimate(config: RunConfig) -> dict[str, Any]:
    """The plan of a run's paid calls.

    Returns:
        `pool`, `rows_per_round`, `rounds` (by case), `rounds_done`; `backends`: per backend `name`, `model`, `price`
        (USD per million tokens in and out, or None), `ledger_share` (of the sample's calls that are answered already),
        and by case `calls`, `tokens_in`, `tokens_out`, `usd` (None without a price), `minutes` at its limits (None
        without limits); `usd` by case for all of them.

    Raises:
        DataError, ConfigError: as a run would.
    """
    store = Store(config.out)
    sample = draw_sample(config)
    recipe: Any = config.recipe
    size = min(recipe.batch_size, max(1, diverse_rows(recipe, sample.rows) // 10))
    done = rounds_done(store)
    rounds = {"low": max(1, done), "likely": recipe.max_rounds, "high": recipe.max_rounds}
    ledger = ledger_store(store, config.paid.ledger)
    backends = []
    table = sample.table
    if isinstance(recipe.generator, OpenAIGeneratorConfig):
        facts, table = plan_generator(recipe.generator, table, ledger)
        backends.append(facts)
    elif recipe.generator.kind == "recorded":
        answers = RecordedAnswers(recipe.generator.column, recipe.generator.file)(table.select([ID, "record"]))
        table = table.set_column(table.column_names.index(ANSWER), ANSWER, answers[ANSWER])
    if isinstance(recipe.judge, OpenAIJudgeConfig):
        backends.append(plan_judge(recipe.judge, table, ledger, config.seed))
    new_rows = {case: size * (rounds[case] - min(done, rounds[case])) for case in CASES}
    plans = [_scaled(facts, new_rows) for facts in backends]
    known = [plan for plan in plans if plan["price"] is not None]
    return {
        "pool": sample.rows,
        "rows_per_round": size,
        "rounds": rounds,
        "rounds_done": done,
        "backends": plans,
        "usd": {case: sum(plan["usd"][case] for plan in known) for case in CASES} if known else None,
        "max_usd": config.paid.max_usd,
    }


def draw_sample(config: RunConfig) -> Sample:
    """Counts the pool and keeps the rows with the smallest hashes; nothing is written."""
    kept: list[tuple[int, int, dict[str, Any]]] = []
    count = 0
    for table in Ingest(resolve_inputs(config.data.path), ingest_options(config.data), lambda reject: None):
        hashes = seeded_hash(id_words(table[ID]), config.seed, "plan")
        for position in np.argsort(hashes, kind="stable")[:SAMPLE_ROWS].tolist():
            item = (-int(hashes[position]), count + position, table.slice(position, 1).to_pylist()[0])
            if len(kept) < SAMPLE_ROWS:
                heapq.heappush(kept, item)
            elif item > kept[0]:
                heapq.heapreplace(kept, item)
        count += table.num_rows
    rows = pa.Table.from_pylist([row for _, _, row in kept], schema=POOL_SCHEMA)
    return Sample(count, rows.append_column(ANSWER, pa.nulls(len(rows), pa.large_string())))


def rounds_done(store: Store) -> int:
    """Rounds of the run folder whose verdicts are complete."""
    done = 0
    for number in store.list("rounds"):
        folders = [name for name in store.list(f"rounds/{number}") if name.startswith("verdicts-")]
        done += any(store.exists(f"rounds/{number}/{name}/step.json") for name in folders)
    return done


def plan_generator(config: OpenAIGeneratorConfig, table: pa.Table, ledger: Store) -> tuple[dict[str, Any], pa.Table]:
    """Figures per row, and the table with the answers that the ledger has."""
    asks = {**sampling(config), "max_tokens": config.max_tokens}
    stage = OpenAIGenerator(_calls(config, ledger, asks), "plan", 0, config.system)
    try:
        missing = stage.missing(table, 0)
        answers = stage(table.select([MESSAGES, TOOLS]))[ANSWER]
    finally:
        stage.close()
    written = [len(text.encode()) for text in table[RESPONSE].to_pylist()]
    mean_tokens = TOKENS_PER_BYTE["likely"] * sum(written) / max(1, len(written))
    tokens_out = {
        "low": min(config.max_tokens, mean_tokens / 2),
        "likely": min(config.max_tokens, mean_tokens),
        "high": float(config.max_tokens),
    }
    facts = _per_row("generator", config, missing, len(table), dict.fromkeys(CASES, 1.0), tokens_out)
    return facts, table.set_column(table.column_names.index(ANSWER), ANSWER, answers)


def plan_judge(config: OpenAIJudgeConfig, table: pa.Table, ledger: Store, seed: int) -> dict[str, Any]:
    """Figures per row. Where the answer is not known yet the reference stands in for it."""
    prompt = load_prompt(config.prompt, "pairwise")
    settings = {**judge_settings(config, prompt, seed), "suspects": "judge"}
    answers = pa.chunked_array([table[ANSWER].combine_chunks().fill_null("")])
    pairs = zip(answers.to_pylist(), table[RESPONSE].to_pylist(), strict=True)
    filled = [known or f"{reference} " for known, reference in pairs]
    rows = table.set_column(table.column_names.index(ANSWER), ANSWER, pa.array(filled, pa.large_string()))
    stage = OpenAIJudge(_calls(config, ledger, judge_asks(config, prompt)), "plan", 0, **settings)
    try:
        missing = stage.missing(rows, 0)
    finally:
        stage.close()
    orders = {"both": (2.0, 2.0, 2.0), "alternate": (1.0, 1.0, 1.0), "decisive": (1.0, 1.5, 2.0)}[config.orders]
    calls = {case: count + config.canaries for case, count in zip(CASES, orders, strict=True)}
    tokens_out = {**VERDICT_TOKENS, "high": float(config.max_tokens)}
    return _per_row("judge", config, missing, len(table), calls, tokens_out)


def _calls(config: EndpointConfig, ledger: Store, asks: Mapping[str, Any]) -> Calls:
    return Calls(endpoint=endpoint_of(config), ledger=ledger, run="", limiter=None, asks=asks)


def _per_row(
    name: str,
    config: EndpointConfig,
    missing: list[Missing],
    rows: int,
    calls_per_row: Mapping[str, float],
    tokens_out: Mapping[str, float],
) -> dict[str, Any]:
    """Expected calls and tokens of one row, after what the ledger answers."""
    bytes_in = sum(call.request.most_tokens_in() for call in missing) / max(1, len(missing))
    expected = max(1.0, rows * calls_per_row["low"])
    share = max(0.0, 1.0 - len(missing) / expected)
    return {
        "name": name,
        "config": config,
        "ledger_share": round(share, 4),
        "calls": {case: calls_per_row[case] * (1.0 - share) * (1.0 + ASKED_AGAIN[case]) for case in CASES},
        "tokens_in": {case: bytes_in * TOKENS_PER_BYTE[case] for case in CASES},
        "tokens_out": dict(tokens_out),
    }


def _scaled(facts: Mapping[str, Any], rows: Mapping[str, int]) -> dict[str, Any]:
    """Figures of one row times the rows that are still to be judged."""
    config: EndpointConfig = facts["config"]
    price = price_of(config)
    calls = {case: round(facts["calls"][case] * rows[case]) for case in CASES}
    tokens_in = {case: round(calls[case] * facts["tokens_in"][case]) for case in CASES}
    tokens_out = {case: round(calls[case] * facts["tokens_out"][case]) for case in CASES}
    discount = config.batch_discount if config.mode == "batch" else 0.0
    usd = minutes = None
    if price is not None:
        usd = {c: (1 - discount) * (tokens_in[c] * price[0] + tokens_out[c] * price[1]) / 1e6 for c in CASES}
    if config.requests_per_minute or config.tokens_per_minute:
        per_minute = config.requests_per_minute or float("inf"), config.tokens_per_minute or float("inf")
        minutes = {c: max(calls[c] / per_minute[0], (tokens_in[c] + tokens_out[c]) / per_minute[1]) for c in CASES}
    return {
        "name": facts["name"], "model": config.model, "price": price, "ledger_share": facts["ledger_share"],
        "calls": calls, "tokens_in": tokens_in, "tokens_out": tokens_out, "usd": usd, "minutes": minutes,
    }  # fmt: skip
