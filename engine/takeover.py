"""What an update takes over from the run before it, as steps of its own: labelled rows, hard set, a sample of all rows.

With them the update's folder is whole: nothing of the earlier run is read once it is finished, so runs that were
updated may be moved or removed. Rows are known by their ids. A row that the new pool has too keeps its label and its
place in the hard set under its new row number; all others get numbers below -1, each its own, which no pool has.
"""

# Shape letters: M rows of a table, N rows of the new pool, S rows of the sample.

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from engine.artifacts import Step, take_rows, write_table
from engine.recipes.base import Context
from engine.schema import FILE, HARD, ID, LINE, PROMPT, ROW, SOFT, VECTOR, id_words, seeded_hash
from engine.trained import HARD_BEFORE, HOW, LABELS_BEFORE, REFERENCE, RowsById, TrainedSelector, entered

REFERENCE_ROWS = 20_000  # of the sample; its share above a score is off by 0.3 % of all rows (one standard deviation)
FRESH = "fresh"  # of the sample: came with this update
PART_ROWS = 4096
ABOUT = (ID, FILE, LINE, PROMPT)


def labels_before(context: Context, selector: TrainedSelector) -> Step:
    """The rows that the earlier run, or one before it, labelled: as a round's labels, with `file`, `line` and `how`."""
    taken = [step for step in selector.log if step.name == LABELS_BEFORE or step.name.startswith("rounds/")]
    return take_over(context, selector, LABELS_BEFORE, taken, 0)


def hard_before(context: Context, selector: TrainedSelector, labels: Step) -> Step:
    """The rows that were taken into the hard set without a label. Its row numbers go on from those of `labels`."""
    taken = [step for step in selector.log if step.name == HARD_BEFORE or step.name.startswith("inference/")]
    return take_over(context, selector, HARD_BEFORE, taken, labels.require().rows)


def take_over(context: Context, selector: TrainedSelector, name: str, log: Sequence[Step], numbered: int) -> Step:
    """Tables of a selector's log as one step of this run, a part for each part of them.

    Args:
        numbered: row numbers below -1 that are given away already.
    """
    target = context.step(name, {}, [context.pool.fingerprint, *selector.fingerprints])
    if target.record() is not None:
        return target
    started, rows, done, own = time.monotonic(), 0, target.committed(), new_rows(context)
    index = 0
    for step in log:
        for part in step.require().parts:
            if index not in done:
                target.commit(index, taken_table(selector, step, part.index, own, numbered + rows))
            rows, index = rows + part.rows, index + 1
    if not index and not done:  # such as the turns of one-shot inference
        target.commit(0, taken_table(selector, selector.log[0], 0, own, 0).slice(0, 0))
    target.finish(started=started, rows=rows)
    return target


def taken_table(selector: TrainedSelector, step: Step, part: int, own: RowsById, numbered: int) -> pa.Table:
    """One part of a table of the log with the row numbers of this run, and with what its pool knew of the rows."""
    table = step.read(part)
    if HOW not in table.column_names:  # its rows are in the pool of its run
        about = take_rows(selector.pool, table[ROW].to_numpy(), ABOUT)
        for name in ABOUT:
            if name not in table.column_names:
                table = table.append_column(about.schema.field(name), about[name])
        how = f"{entered(step.name)} of an earlier run"
        told = [how if hard else how.replace("hard", "easy") for hard in table[HARD].to_pylist()]
        table = table.append_column(HOW, pa.array(told, pa.string()))
    if SOFT not in table.column_names:
        table = table.append_column(SOFT, pa.nulls(len(table), pa.float32()))
    found_M = own.rows_of(id_words(table[ID]))
    numbers_M = np.where(found_M >= 0, found_M, -2 - numbered - np.arange(len(table)))
    table = table.set_column(table.column_names.index(ROW), ROW, pa.array(numbers_M, pa.int64()))
    return table.select([ROW, *ABOUT, VECTOR, HARD, SOFT, HOW])


def new_rows(context: Context) -> RowsById:
    """The rows of the new pool by id; ids only are held."""
    tables = [context.pool.read(part.index, [ROW, ID]) for part in context.pool.require().parts]
    words = np.concatenate([id_words(table[ID]) for table in tables])
    return RowsById(words, np.concatenate([table[ROW].to_numpy() for table in tables]))


def reference(context: Context, selector: TrainedSelector, vectors: Step, share: float) -> Step:
    """A sample of all rows that the selector has seen by now, on which its cut is measured.

    Those with the smallest hashes, at most REFERENCE_ROWS, of the rows that the earlier run measured its cut on and the
    new ones: of samples that were drawn so, the smallest together are those of the union, so that after any number of
    updates every row that ever came in has the same chance, however many pools it was in. Up to REFERENCE_ROWS it is
    every row.

    Args:
        vectors: of the new pool.
        share: of the rows, those that are to be above the cut; as the first run selected.

    Returns:
        Sorted by id: row (from 0), id, prompt, vector, fresh (was in nothing that the earlier run knew).
    """
    inputs = [selector.texts.fingerprint, selector.vectors.fingerprint, context.pool.fingerprint, vectors.fingerprint]
    target = context.step(REFERENCE, {"rows": REFERENCE_ROWS, "share": share}, inputs)
    if target.record() is not None:
        return target
    words_S, rows_S, fresh_S = smallest([selector.texts, context.pool])
    order_S = np.argsort(words_S, kind="stable")
    rows_S, fresh_S = rows_S[order_S], fresh_S[order_S]
    pieces = []
    for fresh, texts, embedded in ((False, selector.texts, selector.vectors), (True, context.pool, vectors)):
        rows = rows_S[fresh_S == fresh]
        table = take_rows(texts, rows, [ID, PROMPT]).select([ID, PROMPT])
        table = table.append_column(VECTOR, take_rows(embedded, rows, [VECTOR])[VECTOR])
        pieces.append(table.append_column(FRESH, pa.array([fresh] * len(rows), pa.bool_())))
    table = pa.concat_tables(pieces)
    table = table.take(pa.array(np.argsort(id_words(table[ID]), kind="stable")))
    table = table.add_column(0, ROW, pa.array(np.arange(len(table))))
    write_table(target, table, PART_ROWS, {"share": share})
    return target


def smallest(sources: Sequence[Step]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows of an earlier and a new source have the smallest hashes of their ids; a row in both is the earlier's.

    The hash has no seed: samples of different runs must be comparable.

    Returns:
        words (S,) uint64, rows (S,) int64 of their source, fresh (S,) bool: of the new source.
    """
    words, rows, fresh = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, bool)
    for new, table in id_tables(sources):
        words = np.concatenate([words, id_words(table[ID])])
        rows = np.concatenate([rows, table[ROW].to_numpy()])
        fresh = np.concatenate([fresh, np.full(len(table), new)])
        _, first = np.unique(words, return_index=True)  # of equal words the first
        kept = first[np.argsort(seeded_hash(words[first], 0, REFERENCE), kind="stable")[:REFERENCE_ROWS]]
        words, rows, fresh = words[kept], rows[kept], fresh[kept]
    return words, rows, fresh


def id_tables(sources: Sequence[Step]) -> Iterator[tuple[bool, pa.Table]]:
    for number, source in enumerate(sources):
        for part in source.require().parts:
            yield number > 0, source.read(part.index, [ROW, ID])
