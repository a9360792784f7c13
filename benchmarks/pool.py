"""Pools of synthetic conversations of any size with a planted structure, streamed to JSON Lines or Parquet.

    python -m benchmarks.pool POOL.jsonl --rows 1000000 [--topics 1000 --hard 0.3 --seed 0]

Every row has a topic, planted as words of its own in prompt and reference, and is hard or easy. Hard prompts have words
that no easy one has, so a classifier can learn them, and their references speak of what the prompt asks; references of
easy rows are empty talk, so the answer of another row is as good. Both offline stand-ins for a judge find that: the one
that compares texts, and the one that reads the column `hard`. Every row has a number in its prompt, so none is a
duplicate. Rows are made in blocks by (seed, block), so a pool is a prefix of any larger one of the same seed.
"""

# M rows of a block, W words of a text

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK_ROWS = 8192
LETTERS = np.array(["ka", "lo", "mi", "ru", "te", "so", "na", "vi", "do", "pe", "ga", "xu", "bri", "sta", "fle", "qua"])
COMMON, MARKERS, TOPIC_WORDS, LEXICON = 400, 100, 40, 20_000  # words of each kind; topics draw theirs from the lexicon
SHARE_TOPIC = 0.6  # of a prompt's and a good reference's words
SCHEMA = pa.schema({"prompt": pa.string(), "completion": pa.string(), "topic": pa.int32(), "hard": pa.bool_()})


class Words:
    """The vocabulary of a pool: words by number, and which of them each topic has."""

    def __init__(self, topics: int, seed: int) -> None:
        total = COMMON + 2 * MARKERS + LEXICON
        numbers = np.arange(total)
        syllables = [LETTERS[(numbers * 7919 // 16**place) % 16] for place in range(4)]
        self.word = np.array([f"{a}{b}{c}{d}" for a, b, c, d in zip(*syllables, strict=True)], dtype=object)
        self.markers = {True: COMMON + np.arange(MARKERS), False: COMMON + MARKERS + np.arange(MARKERS)}
        rng = np.random.default_rng([seed, 1])
        self.topic_KW = COMMON + 2 * MARKERS + rng.integers(LEXICON, size=(topics, TOPIC_WORDS))


def blocks(rows: int, topics: int, hard: float, seed: int) -> Iterator[pa.Table]:
    """Tables of SCHEMA with BLOCK_ROWS rows each but the last.

    Args:
        topics: planted clusters, of about equal size.
        hard: share of rows planted as hard, the same in every topic.
    """
    words = Words(topics, seed)
    for number, start in enumerate(range(0, rows, BLOCK_ROWS)):
        table = block(words, np.random.default_rng([seed, 2, number]), start, hard)
        yield table.slice(0, rows - start)


def block(words: Words, rng: np.random.Generator, start: int, hard: float) -> pa.Table:
    """BLOCK_ROWS rows from number `start` on."""
    size, topic_M = BLOCK_ROWS, rng.integers(len(words.topic_KW), size=BLOCK_ROWS)
    hard_M = rng.random(size) < hard
    prompt_MW = talk(words, rng, topic_M, 20)
    marks_M3 = rng.integers(MARKERS, size=(size, 3))
    prompt_MW[:, 2:5] = np.where(hard_M[:, None], words.markers[True][marks_M3], words.markers[False][marks_M3])
    good_MW, empty_MW = talk(words, rng, topic_M, 24), rng.integers(COMMON, size=(size, 24))
    good_MW[:, :12] = prompt_MW[:, 8:20]  # it takes up what was asked
    reference_MW = np.where(hard_M[:, None], good_MW, empty_MW)
    lengths_M = rng.integers(14, 21, size=size)
    prompts = [
        f"{' '.join(texts[:length])} {row}?"
        for row, (texts, length) in enumerate(
            zip(words.word[prompt_MW].tolist(), lengths_M.tolist(), strict=True), start
        )
    ]
    references = [" ".join(texts) + "." for texts in words.word[reference_MW].tolist()]
    return pa.table([prompts, references, topic_M.astype(np.int32), hard_M], schema=SCHEMA)


def talk(words: Words, rng: np.random.Generator, topic_M: np.ndarray, length: int) -> np.ndarray:
    """(M, length) words of which SHARE_TOPIC are of the row's topic and the rest common."""
    shape = len(topic_M), length
    of_topic_MW = words.topic_KW[topic_M[:, None], rng.integers(TOPIC_WORDS, size=shape)]
    return np.where(rng.random(shape) < SHARE_TOPIC, of_topic_MW, rng.integers(COMMON, size=shape))


def write_pool(path: Path, rows: int, topics: int = 1000, hard: float = 0.3, seed: int = 0) -> None:
    """Writes a pool to a `.jsonl` or `.parquet` file, block by block."""
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for table in blocks(rows, topics, hard, seed):
                writer.write_table(table)
        return
    with path.open("w", encoding="utf-8") as file:
        for table in blocks(rows, topics, hard, seed):
            file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--topics", type=int, default=1000)
    parser.add_argument("--hard", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_pool(arguments.pool, arguments.rows, arguments.topics, arguments.hard, arguments.seed)


if __name__ == "__main__":
    main()
