"""The cheap encoder: words and pairs of words, hashed into a vector of any dimension. No model, no tokenizer, no pool.

A text is the set of its first `max_tokens` tokens and of the pairs of neighbours among them. A token weighs as many as
it has bytes, up to LONGEST, since long words are the rarer and more telling ones (Zipf 1935) and no pool is there to
count in; a pair weighs PAIR_WEIGHT. Every feature has NONZEROS places and signs that follow from its own hash, so the
inner product of two sums estimates the weight of what two texts share: feature hashing (Weinberger et al. 2009, arXiv
0902.2206, section 2) with a sparse projection (Kane and Nelson 2014, arXiv 1012.1577). Sums are of whole numbers, so a
row has the same bits in any order, part or thread.

It notices shared wording, not shared meaning: for pools too large for a neural encoder, for duplicates and templates,
and for measuring everything that comes after the encoder. Tokens are runs of letters and digits in lower case; of
scripts that UTF-8 writes with three bytes or more, where words are often not separated, each character is a token.

Shape letters: N texts, B bytes of them, T tokens, P pairs of neighbours, F features, D dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import ConfigError
from engine.work import count_tokens

NAME = re.compile(r"hash:(\d+)")
NONZEROS = 8  # places of a feature; more cost time, fewer let two features cover each other
LONGEST, PAIR_WEIGHT = 8, 2
TILE_TEXTS = 1024  # bounds memory, no influence on the result
DIMS = range(16, 4097)

_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))
_PAIR = np.uint64(0xD1B54A32D192ED03)
_WORD = np.zeros(256, dtype=bool)
_WORD[[byte for byte in range(128) if chr(byte).isalnum()]] = True
_WORD[128:0xE0] = True  # two-byte letters, and what continues any character


def is_hash(model: str) -> bool:
    """Whether an encoder's name is one of this file."""
    return model.startswith("hash:")


def hash_dim(model: str) -> int:
    """D of "hash:D".

    Raises:
        ConfigError: E237, it is not a number of dimensions.
    """
    match = NAME.fullmatch(model)
    if match is None or int(match[1]) not in DIMS:
        raise ConfigError(
            f"{model!r} names no dimension",
            why=f"hash:D has D from {DIMS.start} to {DIMS.stop - 1}",
            fix="for example encoder.model=hash:384",
            code="E237",
        )
    return int(match[1])


class HashEncoder:
    """Texts to unit vectors, as `engine.models.encoder.Encoder`.

    Args:
        model: "hash:D".
        max_tokens: of a longer text only the first ones count.
        prefix: put before every text.

    Attributes:
        dim: D.
        identity: what determines the bytes; also valid arguments.
    """

    def __init__(self, model: str, max_tokens: int = 256, prefix: str = "") -> None:
        self.dim, self.max_tokens, self.prefix = hash_dim(model), max_tokens, prefix
        self.identity: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "prefix": prefix}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float16 with L2 norm 1; a text without a single word is the first unit vector."""
        x_ND = np.empty((len(texts), self.dim), dtype=np.float16)
        for start in range(0, len(texts), TILE_TEXTS):
            tile = [self.prefix + text for text in texts[start : start + TILE_TEXTS]]
            x_ND[start : start + len(tile)] = self._tile(tile)
        return x_ND

    def _tile(self, texts: list[str]) -> np.ndarray:
        row_F, feature_F, weight_F = features(texts, self.max_tokens)
        sum_ND = np.zeros(len(texts) * self.dim)
        for place in range(NONZEROS):
            drawn_F = mix(feature_F + np.uint64(place * int(_BASE) % 2**64))
            column_F = ((drawn_F >> np.uint64(32)) * np.uint64(self.dim)) >> np.uint64(32)
            signed_F = np.where(drawn_F & np.uint64(1), weight_F, -weight_F)
            sum_ND += np.bincount(row_F * self.dim + column_F.astype(np.int64), signed_F, minlength=len(sum_ND))
        x_ND = sum_ND.reshape(len(texts), self.dim)
        x_ND[~x_ND.any(axis=1), 0] = 1.0
        return (x_ND / np.sqrt(np.square(x_ND).sum(axis=1, keepdims=True))).astype(np.float16)


def features(texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct features of each text: (F,) int64 text, (F,) uint64 hash and (F,) int64 weight of every one."""
    row_T, token_T, bytes_T = tokens(texts)
    kept_T = np.arange(len(row_T)) - np.searchsorted(row_T, row_T) < max_tokens
    row_T, token_T, bytes_T = row_T[kept_T], token_T[kept_T], bytes_T[kept_T]
    count_tokens(len(row_T))
    first_P = np.flatnonzero(row_T[:-1] == row_T[1:])
    pair_P = mix(token_T[first_P] * _PAIR + token_T[first_P + 1])
    row_F, feature_F = np.concatenate([row_T, row_T[first_P]]), np.concatenate([token_T, pair_P])
    weight_F = np.concatenate([np.minimum(bytes_T, LONGEST), np.full(len(pair_P), PAIR_WEIGHT)])
    # Text and feature as one number; equal ones are repetitions. A token of one byte is hashed as the number of a text
    # is, so the two must not be interchangeable.
    key_F = mix(feature_F * _PAIR + mix(row_F.astype(np.uint64)))
    order_F = np.argsort(key_F)
    once = order_F[np.flatnonzero(np.diff(key_F[order_F], prepend=~key_F[order_F[:1]]))]
    return row_F[once], feature_F[once], weight_F[once]


def tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T,) int64 text, (T,) uint64 hash and (T,) int64 length in bytes of every token, in order of reading."""
    column = pc.utf8_lower(pa.array(texts, pa.large_string()))  # pyright: ignore[reportAttributeAccessIssue]
    _, offsets, data = column.buffers()
    ends_N = np.frombuffer(offsets, np.int64, len(texts) + 1)
    bytes_B = np.frombuffer(data, np.uint8, ends_N[-1]) if data is not None else np.empty(0, np.uint8)
    if not len(bytes_B):
        return np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.int64)
    lead_B = bytes_B >= 0xE0
    long_B = lead_B.copy()
    long_B[1:] |= lead_B[:-1]
    long_B[2:] |= lead_B[:-2]
    long_B[3:] |= bytes_B[:-3] >= 0xF0
    short_B = _WORD[bytes_B] & ~long_B
    breaks_B = np.zeros(len(bytes_B) + 1, dtype=bool)  # a text ends here and another one begins
    breaks_B[ends_N] = True
    before_B = np.concatenate([[False], short_B[:-1]]) & ~breaks_B[:-1]
    after_B = np.concatenate([short_B[1:], [False]]) & ~breaks_B[1:]
    single_T = np.flatnonzero(lead_B)
    start_T = np.concatenate([np.flatnonzero(short_B & ~before_B), single_T])
    end_T = np.concatenate([np.flatnonzero(short_B & ~after_B) + 1, single_T + 3 + (bytes_B[single_T] >= 0xF0)])
    order = np.argsort(start_T)
    start_T, end_T = start_T[order], end_T[order]
    row_T = np.searchsorted(ends_N, start_T, side="right") - 1
    return row_T, mix(run_hashes(bytes_B, start_T, end_T)), end_T - start_T


def run_hashes(bytes_B: np.ndarray, start_T: np.ndarray, end_T: np.ndarray) -> np.ndarray:
    """(T,) uint64: the polynomial of each run of bytes modulo 2^64 (Karp and Rabin 1987), from one running sum."""
    with np.errstate(over="ignore"):
        power_B = np.cumprod(np.full(len(bytes_B), _BASE), dtype=np.uint64)
        back_B = np.cumprod(np.full(len(bytes_B), _INVERSE), dtype=np.uint64)
        sum_B = np.concatenate([np.zeros(1, np.uint64), np.cumsum(bytes_B * power_B, dtype=np.uint64)])
        return (sum_B[end_T] - sum_B[start_T]) * back_B[start_T]


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): each bit of the result depends on all of x."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
