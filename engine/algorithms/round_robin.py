"""Round robin: queries take turns, each takes the row most similar to it that nobody has taken yet.

The selection of RDS+ (Ivison et al., "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807). No query
times row matrix is kept: every query has the head of its ranking, and when one comes to its end, longer heads without
the rows taken are asked for. So the result is that of whole rankings, whatever their length here.
"""

# Shape letters: Q queries, M rows taken, k rows of a head.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from engine.algorithms.similarity import Nearest

MOST_ENTRIES = 1 << 22  # Q * k, about 80 MB
LEAST_WIDTH = 16


class Taken(NamedTuple):
    """Rows in the order in which they were taken."""

    rows_M: np.ndarray  # int64
    queries_M: np.ndarray  # int64, which query took it
    similarity_M: np.ndarray  # float32


def round_robin(nearest: Callable[[np.ndarray, int], Nearest], num_queries: int, num: int) -> Taken:
    """Rows taken in turns, from query 0 on; equal similarities by id.

    Args:
        nearest: (taken rows, k) -> the k most similar rows of each query, without those.
        num_queries: Q >= 1.
        num: rows wanted; fewer are taken when there are no more.
    """
    most = max(1, MOST_ENTRIES // num_queries)
    width = min(most, max(LEAST_WIDTH, -(-2 * num // num_queries)))
    rows, queries, similarity = list[int](), list[int](), list[float]()
    taken, query = set[int](), 0
    while len(rows) < num:
        heads = nearest(np.array(rows, dtype=np.int64), width)
        if heads.rows_Qk[0, 0] < 0:
            break  # every row is taken
        ends = _turns(heads, num, query, rows, queries, similarity, taken)
        query, width = ends, min(most, 2 * width)
    return Taken(np.array(rows, np.int64), np.array(queries, np.int64), np.array(similarity, np.float32))


def _turns(
    heads: Nearest, num: int, query: int, rows: list[int], queries: list[int], similarity: list[float], taken: set[int]
) -> int:
    """Takes rows until enough are taken or a head comes to its end; returns the query whose turn it is then."""
    heads_Qk, values_Qk = heads.rows_Qk.tolist(), heads.similarity_Qk.tolist()
    at_Q, width = [0] * len(heads_Qk), heads.rows_Qk.shape[1]
    while len(rows) < num:
        head, at = heads_Qk[query], at_Q[query]
        while at < width and head[at] in taken:
            at += 1
        if at == width or head[at] < 0:
            return query
        taken.add(head[at])
        rows.append(head[at])
        queries.append(query)
        similarity.append(values_Qk[query][at])
        at_Q[query] = at + 1
        query = (query + 1) % len(heads_Qk)
    return query
