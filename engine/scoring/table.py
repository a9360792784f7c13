"""The table of scores: one column per named score, parallel to the pool's parts, in the step `scores`.

It holds numbers, tags and ids, never texts. It knows no score and no method.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from engine.artifacts import Part, Source, Step
from engine.recipes.base import Context
from engine.runtime import run_pass
from engine.schema import ERROR, ROW
from engine.scoring.base import Derived, Measured, Score


def score_table(
    context: Context, scores: Mapping[str, Measured | Derived], known: Mapping[str, Score] | None = None
) -> Step:
    """Measures what is to be measured and puts all columns side by side.

    Args:
        scores: by name, in an order in which every derived score follows those it reads.
        known: those of them that are measured already.

    Returns:
        The step `scores`: `row`, what the scores carry, the named scores, and `error`.
    """
    passes = {name: one for name, one in scores.items() if isinstance(one, Measured)}
    known = known or {}
    measured = {name: known[name] if name in known else one.measure(context) for name, one in passes.items()}
    carries = {name: one.carries for name, one in passes.items()}
    derived = {name: one for name, one in scores.items() if isinstance(one, Derived)}
    settings = {
        name: measured[name].settings if name in measured else derived[name].model_dump(mode="json") for name in scores
    }
    fingerprints = [measured[name].source.fingerprint for name in measured]
    target = context.step("scores", {"columns": settings}, [context.pool.fingerprint, *fingerprints])

    def compute(todo: list[int]) -> Iterator[Part]:
        for part in todo:
            started = time.perf_counter()
            table = part_table(context.pool.read(part, [ROW]), measured, carries, part)
            for name, one in derived.items():
                table = table.add_column(table.num_columns - 1, name, one.derive(table))
            table = table.select(
                [ROW, *[n for n in table.column_names if n not in (ROW, ERROR, *scores)], *scores, ERROR]
            )
            failed = len(table) - table[ERROR].null_count
            yield target.commit(part, table, seconds=time.perf_counter() - started, failed=failed)

    run_pass(context.runtime.observer, context.pool, target, compute)
    return target


def part_table(
    rows: pa.Table, measured: Mapping[str, Score], carries: Mapping[str, Sequence[str]], part: int
) -> pa.Table:
    """`rows`, then the measured columns of a part, then `error`: the reasons of every source, joined."""
    sources: dict[str, tuple[Source, list[str]]] = {}
    for name, score in measured.items():
        _, wanted = sources.setdefault(score.source.fingerprint, (score.source, []))
        wanted += [column for column in dict.fromkeys((*score.reads, *carries[name])) if column not in wanted]
    read = {key: source.read(part, [ROW, *wanted, ERROR]) for key, (source, wanted) in sources.items()}
    columns: dict[str, pa.Array | pa.ChunkedArray] = {ROW: rows[ROW]}
    for name, score in measured.items():
        columns |= {carried: read[score.source.fingerprint][carried] for carried in carries[name]}
    for name, score in measured.items():
        columns[name] = score.values(read[score.source.fingerprint])
    columns[ERROR] = joined_errors([table[ERROR].to_pylist() for table in read.values()], len(rows))
    return pa.table(columns)


def joined_errors(errors: list[list[str | None]], rows: int) -> pa.Array:
    """One text per row, null where no source has one."""
    if not errors:
        return pa.nulls(rows, pa.large_string())
    found = ["; ".join(dict.fromkeys(filter(None, of_row))) or None for of_row in zip(*errors, strict=True)]
    return pa.array(found, pa.large_string())
