"""What the paid calls of a run with rounds will cost, before any is made: calls, tokens and USD, low, likely and high.

Prompts of a sample of the pool are rendered as the run would, and looked up in the ledger; those of a round in work
are all looked up, so its calls are exact. What cannot be known beforehand is bounded: how many rounds it takes, which
rows they take, how long the answers get, how many tokens a text has. It calls nobody.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.artifacts import Step
from engine.config import RunConfig
from engine.config_endpoint import EndpointConfig, OpenAIGeneratorConfig, OpenAIJudgeConfig
from engine.data.ingest import Ingest
from engine.data.inputs import resolve_inputs
from engine.judging.prompts import load_prompt
from engine.models.recorded import RecordedAnswers
from engine.paid.batch_files import BatchClient, Missing
from engine.paid.prices import price_of, usd_of
from engine.paid.requests import Request
from engine.paid.service import endpoint_of, ledger_store
from engine.paid.stages import (
    Calls,
    OpenAIGenerator,
    OpenAIJudge,
    PaidStage,
    generator_asks,
    judge_asks,
    judge_settings,
)
from engine.paid.standing import standing
from engine.pool import PILOT, ingest_options
from engine.recipes.iterselect import diverse_rows
from engine.schema import (  # fmt: skip
    ANSWER,
    ID,
    MESSAGES,
    POOL_SCHEMA,
    RECORD,
    RESPONSE,
    TOOLS,
    canonical_json,
    id_words,
    seeded_hash,
)
from engine.store import Store

SAMPLE_ROWS = 200
CASES = ("low", "likely", "high")
# Tokens per byte of a prompt: English prose in current vocabularies has about 0.22 to 0.28, code and other scripts
# more.
TOKENS_PER_BYTE = {"low": 0.2, "likely": 0.28, "high": 0.4}
VERDICT_TOKENS = {"low": 5, "likely": 9}
ASKED_AGAIN = {"low": 0.0, "likely": 0.01, "high": 0.05}  # share of unreadable replies, each asked once more
SECOND_ORDER = {"low": 1.0, "likely": 1.5, "high": 2.0}  # orders decisive: calls for one whose reply is not there


@dataclass(frozen=True)
class Sample:
    """Rows of the pool that stand for those that are still to be judged.

    Attributes:
        rows: of the pool.
        table: POOL_SCHEMA and `answer`, at most 200 rows, none that a round has had.
    """

    rows: int
    table: pa.Table


@dataclass(frozen=True)
class Lookup:
    """What the calls about some rows are.

    Attributes:
        rows: that were asked about.
        answered: calls that the ledger has.
        missing: calls that it has not.
    """

    rows: int
    answered: int
    missing: list[Missing]

    @property
    def share(self) -> float:
        """Of the calls, those that the ledger has."""
        return self.answered / max(1, self.answered + len(self.missing))

    @property
    def per_row(self) -> float:
        return (self.answered + len(self.missing)) / max(1, self.rows)


@dataclass(frozen=True)
class Rows:
    """How many rows are still to be judged.

    Attributes:
        new: by case, rows of rounds that have not begun.
        left: rows of the pool that no round has had.
    """

    new: Mapping[str, int]
    left: int


@dataclass(frozen=True)
class Backend:
    """One backend's calls.

    Attributes:
        name: "generator", "judge" or the role of a pass.
        sample, batch: calls about a sample of the pool, and about all rows of the round in work.
        again: by case, calls for each that is missing.
        tokens_out: by case, of one reply.
    """

    name: str
    config: EndpointConfig
    sample: Lookup
    batch: Lookup
    again: Mapping[str, float]
    tokens_out: Mapping[str, float]


def estimate(config: RunConfig) -> dict[str, Any]:
    """The plan of a run's paid calls.

    Returns:
        `pool`, `rows_per_round`, `rounds` (by case), `rounds_done`, `rows_in_work` (of a round that has begun), `over`
        (no round will follow); `backends`: per backend `name`, `model`, `price` (USD per million tokens in and out, or
        None), `ledger_share` (of the sample's calls that are answered already), and by case `calls`, `tokens_in`,
        `tokens_out`, `usd` (None for calls whose price is not known), `minutes` at its limits (None without limits);
        `usd` by case for all of them, None when one is not known; `max_usd`.

    Raises:
        DataError, ConfigError, EnvironmentProblem: as a run would.
    """
    recipe: Any = config.recipe
    at = standing(config)
    sample = draw_sample(config, at.pool, at.asked)
    diverse = diverse_rows(recipe, sample.rows)
    size = min(recipe.batch_size, max(1, diverse // 10))
    begun = at.rounds + (at.batch is not None)
    rounds = {"low": max(1, begun), "likely": recipe.max_rounds, "high": recipe.max_rounds}
    if at.over:
        rounds = dict.fromkeys(CASES, at.rounds)
    new = {case: min(size * (rounds[case] - begun), max(0, diverse - len(at.asked))) for case in CASES}
    rows = Rows(new, max(1, sample.rows - len(at.asked)))
    batch = sample.table.slice(0, 0) if at.batch is None else at.batch
    plans = [figures(backend, rows) for backend in backends_of(config, sample.table, batch)]
    return {
        "pool": sample.rows,
        "rows_per_round": size,
        "rounds": rounds,
        "rounds_done": at.rounds,
        "rows_in_work": batch.num_rows,
        "over": at.over,
        "backends": plans,
        "usd": total(plans),
        "max_usd": config.paid.max_usd,
    }


def total(plans: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """USD by case of all backends, None when one's price is not known."""
    priced = all(plan["usd"] for plan in plans)
    return {case: sum(plan["usd"][case] for plan in plans) for case in CASES} if priced else None


def draw_sample(config: RunConfig, pool: Step | None, asked: frozenset[str]) -> Sample:
    """Counts the pool and keeps the rows with the smallest hashes; nothing is written.

    Of a pilot that is not frozen yet the first rows are kept that it will draw.

    Args:
        pool: the frozen one if there is one; else the input is read.
        asked: ids of rows that are left out.
    """
    kept: list[tuple[int, int, dict[str, Any]]] = []
    count = 0
    limit = config.data.limit if pool is None else None
    most = min(SAMPLE_ROWS, limit or SAMPLE_ROWS)
    tables: Iterable[pa.Table]
    if pool is None:
        tables = Ingest(resolve_inputs(config.data.path), ingest_options(config.data), lambda reject: None)
    else:
        tables = (pool.read(part.index) for part in pool.require().parts)
    for table in tables:
        purpose = "plan" if limit is None else PILOT
        hashes = seeded_hash(id_words(table[ID]), config.seed, purpose)
        for position in np.argsort(hashes, kind="stable")[: most + len(asked)].tolist():
            place = (-int(hashes[position]), count + position)
            if len(kept) == most and place < kept[0][:2]:
                break
            if table[ID][position].as_py() not in asked:
                item = (*place, table.slice(position, 1).to_pylist()[0])
                heapq.heappush(kept, item) if len(kept) < most else heapq.heapreplace(kept, item)
        count += table.num_rows
    rows = pa.Table.from_pylist([row for _, _, row in kept], schema=POOL_SCHEMA)
    return Sample(min(count, limit or count), rows.append_column(ANSWER, pa.nulls(len(rows), pa.large_string())))


def backends_of(config: RunConfig, sample: pa.Table, batch: pa.Table) -> list[Backend]:
    """The generator, if it is paid, and the judge, with the generator's answers as far as they are known."""
    recipe: Any = config.recipe
    ledger = ledger_store(Store(config.out), config.paid.ledger)
    found = []
    if isinstance(recipe.generator, OpenAIGeneratorConfig):
        backend, sample, batch = plan_generator(recipe.generator, sample, batch, ledger)
        found.append(backend)
    elif recipe.generator.kind == "recorded":
        answers = RecordedAnswers(recipe.generator.column, recipe.generator.file)
        sample, batch = (_answered(table, answers(table.select([ID, RECORD]))[ANSWER]) for table in (sample, batch))
    if isinstance(recipe.judge, OpenAIJudgeConfig):
        found.append(plan_judge(recipe.judge, sample, batch, ledger, config.seed))
    return found


def plan_generator(
    config: OpenAIGeneratorConfig, sample: pa.Table, batch: pa.Table, ledger: Store
) -> tuple[Backend, pa.Table, pa.Table]:
    """Its calls, and both tables with the answers that the ledger has."""
    stage = OpenAIGenerator(_calls(config, ledger, generator_asks(config)), "plan", 0, config.system)
    try:
        to_do = batch.filter(pc.is_null(batch[ANSWER]))  # pyright: ignore
        lookups = [look_up(stage, table) for table in (sample, to_do)]
        answered = [_answered(table, stage(table.select([MESSAGES, TOOLS]))[ANSWER]) for table in (sample, batch)]
    finally:
        stage.close()
    written = [len(text.encode()) for text in sample[RESPONSE].to_pylist()]
    mean_tokens = TOKENS_PER_BYTE["likely"] * sum(written) / max(1, len(written))
    tokens_out = {
        "low": min(config.max_tokens, mean_tokens / 2),
        "likely": min(config.max_tokens, mean_tokens),
        "high": float(config.max_tokens),
    }
    backend = Backend("generator", config, lookups[0], lookups[1], dict.fromkeys(CASES, 1.0), tokens_out)
    return backend, answered[0], answered[1]


def plan_judge(config: OpenAIJudgeConfig, sample: pa.Table, batch: pa.Table, ledger: Store, seed: int) -> Backend:
    """Its calls. Where the answer is not known yet the reference stands in for it."""
    prompt = load_prompt(config.prompt, "pairwise")
    settings = judge_settings(config, prompt, seed)
    stage = OpenAIJudge(_calls(config, ledger, judge_asks(config, prompt)), "plan", 0, **settings)
    try:
        lookups = [look_up(stage, _stand_in(table)) for table in (sample, batch)]
    finally:
        stage.close()
    again = {case: 1.0 + ASKED_AGAIN[case] for case in CASES}
    if config.orders == "decisive":
        again = {case: again[case] * SECOND_ORDER[case] for case in CASES}
    return Backend("judge", config, lookups[0], lookups[1], again, {**VERDICT_TOKENS, "high": float(config.max_tokens)})


def look_up(stage: PaidStage, table: pa.Table) -> Lookup:
    """Which calls the ledger answers."""
    assert isinstance(stage.client, BatchClient)
    before = stage.client.answered
    missing = stage.missing(table, 0)
    return Lookup(len(table), stage.client.answered - before, missing)


def _answered(table: pa.Table, answers: pa.ChunkedArray) -> pa.Table:
    """With the answers that are known, where the table has none."""
    return table.set_column(table.column_names.index(ANSWER), ANSWER, pc.coalesce(table[ANSWER], answers))  # pyright: ignore


def _stand_in(table: pa.Table) -> pa.Table:
    """A space makes the stand-in another text, else both orders would be one request."""
    pairs = zip(table[ANSWER].to_pylist(), table[RESPONSE].to_pylist(), strict=True)
    filled = [f"{response} " if answer is None else answer for answer, response in pairs]
    return table.set_column(table.column_names.index(ANSWER), ANSWER, pa.array(filled, pa.large_string()))


def _calls(config: EndpointConfig, ledger: Store, asks: Mapping[str, Any]) -> Calls:
    return Calls(endpoint=endpoint_of(config), ledger=ledger, run="", limiter=None, asks=asks)


def figures(backend: Backend, rows: Rows) -> dict[str, Any]:
    """A backend's figures by case.

    Of the rows to come as many are answered already as of the sample (likely), as few as possible (high), or as many
    as there are such rows in the pool (low).
    """
    config, sample, batch = backend.config, backend.sample, backend.batch
    known = sample.share * rows.left
    new = {
        "low": max(0.0, rows.new["low"] - known),
        "likely": rows.new["likely"] * (1.0 - sample.share),
        "high": min(float(rows.new["high"]), rows.left - known),
    }
    wanted = {case: len(batch.missing) + new[case] * sample.per_row for case in CASES}
    calls = {case: round(wanted[case] * backend.again[case]) for case in CASES}
    bytes_of = [_mean_bytes(lookup.missing) for lookup in (batch, sample)]
    tokens_in = {
        case: round(
            backend.again[case]
            * TOKENS_PER_BYTE[case]
            * (len(batch.missing) * bytes_of[0] + (wanted[case] - len(batch.missing)) * bytes_of[1])
        )
        for case in CASES
    }
    tokens_out = {case: round(calls[case] * backend.tokens_out[case]) for case in CASES}
    price, usd, minutes = price_of(config), None, None
    discount = config.batch_discount if config.mode == "batch" else 0.0
    if price is not None or calls["high"] == 0:
        per_call = {c: (tokens_in[c] / max(1, calls[c]), backend.tokens_out[c]) for c in CASES}
        usd = {c: (1 - discount) * calls[c] * usd_of(price, *per_call[c]) for c in CASES}
    if config.mode == "online" and (config.requests_per_minute or config.tokens_per_minute):
        per_minute = config.requests_per_minute or float("inf"), config.tokens_per_minute or float("inf")
        minutes = {c: max(calls[c] / per_minute[0], (tokens_in[c] + tokens_out[c]) / per_minute[1]) for c in CASES}
    return {
        "name": backend.name, "model": config.model, "price": price and price[:2],
        "ledger_share": round(sample.share, 4), "calls": calls, "tokens_in": tokens_in, "tokens_out": tokens_out,
        "usd": usd, "minutes": minutes,
    }  # fmt: skip


def _mean_bytes(missing: list[Missing]) -> float:
    return sum(text_bytes(call.request) for call in missing) / max(1, len(missing))


def text_bytes(request: Request) -> int:
    """Bytes of what the model reads."""
    said = [str(message.get("content") or "") for message in request.messages]
    rest = canonical_json([request.schema, request.tools]) if request.schema or request.tools else ""
    return sum(len(text.encode("utf-8", "replace")) for text in [*said, rest])
