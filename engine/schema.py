"""Column names, Arrow schemas and row identities: the words that every part of the engine shares.

It knows nothing of files, models or recipes. Ids are content hashes, so joins and random draws do not depend on
the order of the input or on how it is split over workers.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa

ROW, ID, FILE, LINE, SOURCE = "row", "id", "file", "line", "source"
SYSTEM, PROMPT, RESPONSE, TURNS = "system", "prompt", "response", "turns"
MESSAGES, TOOLS, RECORD = "messages", "tools", "record"
VECTOR, ERROR = "vector", "error"
ANSWER, HARD, SOFT, VERDICT, PROBABILITY = "answer", "hard", "soft", "verdict", "probability"

POOL_SCHEMA = pa.schema(
    [
        pa.field(ROW, pa.int64(), nullable=False),  # 0..N-1 in input order: the key of all internal joins
        pa.field(ID, pa.string(), nullable=False),  # 32 hex digits, hash of the conversation: the public key
        pa.field(FILE, pa.large_string(), nullable=False),
        pa.field(LINE, pa.int64(), nullable=False),  # 1-based line (JSON) or row number (Parquet, Arrow)
        pa.field(SOURCE, pa.large_string(), nullable=False),  # the row's own source name, else the file's
        pa.field(SYSTEM, pa.large_string(), nullable=False),  # "" when there is none
        pa.field(PROMPT, pa.large_string(), nullable=False),  # text of everything before the last assistant message
        pa.field(RESPONSE, pa.large_string(), nullable=False),  # text of the last assistant message
        pa.field(TURNS, pa.int32(), nullable=False),  # number of user messages
        pa.field(MESSAGES, pa.large_string(), nullable=False),  # canonical JSON: Arrow structs corrupt tool arguments
        pa.field(TOOLS, pa.large_string(), nullable=False),  # canonical JSON list, "" when there is none
        pa.field(RECORD, pa.large_string(), nullable=False),  # the source row as JSON, untouched
    ]
)

ANSWER_COLUMNS = [pa.field(ANSWER, pa.large_string()), pa.field(ERROR, pa.large_string())]

VERDICT_COLUMNS = [
    pa.field(HARD, pa.bool_()),  # null: no verdict (a tie that is dropped, or an error)
    pa.field(VERDICT, pa.string()),  # "reference" | "answer" | "tie": which one the judge preferred; null on error
    pa.field("score_reference", pa.float32()),  # the judge's score of the reference, null when it gives none
    pa.field("score_answer", pa.float32()),
    pa.field(ERROR, pa.large_string()),
]

PROBABILITY_COLUMNS = [pa.field(PROBABILITY, pa.float32()), pa.field(ERROR, pa.large_string())]


_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def canonical_json(value: Any) -> str:
    """One JSON text per value: keys sorted, no spaces, UTF-8 characters kept."""
    return _CANONICAL.encode(value)


def conversation_id(messages_json: str, tools_json: str) -> str:
    """128-bit BLAKE2b of the canonical conversation and its tools, as 32 hex digits."""
    digest = hashlib.blake2b(messages_json.encode(), digest_size=16)
    if tools_json:
        digest.update(b"\x00" + tools_json.encode())
    return digest.hexdigest()


def id_words(ids: pa.Array | pa.ChunkedArray | list[str]) -> np.ndarray:
    """First 64 bits of each id.

    Args:
        ids: N ids of 32 hex digits.

    Returns:
        (N,) uint64. Ids are hashes, so equal words mean equal ids but for a chance of N^2 / 2^65.
    """
    values = ids if isinstance(ids, list) else ids.to_pylist()
    packed = bytes.fromhex("".join(value[:16] for value in values))
    return np.frombuffer(packed, dtype=">u8").astype(np.uint64)


def seeded_hash(words_N: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """A uniform 64-bit number per row that depends only on the row's id, the seed and the purpose.

    SplitMix64 finaliser (Steele, Lea and Flood 2014). Sorting by it draws a sample that is the same for any order of
    the rows and any number of shards.

    Args:
        words_N: (N,) uint64 from `id_words`.
        seed: the run's seed.
        purpose: names the draw, so that two draws of one run are independent.

    Returns:
        (N,) uint64.
    """
    salt = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    x = words_N ^ np.uint64(int.from_bytes(salt, "big"))
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
