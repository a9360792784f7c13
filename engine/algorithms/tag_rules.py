"""Which of many tags are the same: InsTag's normalisation (Lu et al., ICLR 2024, arXiv 2308.07074), section 2.2.

Open-set tags come in a hundred thousand spellings. Four steps make a few thousand of them: rare ones go; what differs
by case, special characters or inflection is one (rules); what means nearly the same is one (DBSCAN on vectors of the
tags); a tag that hardly occurs without another one becomes that one (association rules). Each step here is a function
of the tags and their counts, never of rows' order. The file knows nothing of encoders, files or rows.
"""

# Shape letters: G tags, D dimensions, Q queries, T tags of all queries one after another.

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engine.algorithms.exact import ONE, similarity_tiles
from engine.algorithms.ragged import distinct_tags

PUBLISHED_QUERIES = 306_044  # of the pool that the published thresholds were chosen for


def scaled(published: int, queries: int, least: int) -> int:
    """A published threshold for a pool of another size: in proportion below the published one, never above it."""
    return max(least, min(published, round(published * queries / PUBLISHED_QUERIES)))


def spelled(tag: str) -> str:
    """Lower case, special characters as spaces, single spaces; "" when nothing is left.

    A `+` or `#` that ends a word stays, or C, C++ and C# would be one (a deviation).
    """
    text = re.sub(r"(?<=\w)([+#]+)(?!\w)|[\W_]", lambda match: match[1] or " ", tag.casefold())
    return " ".join(text.split())


def same_by_rules(counts: Mapping[str, int], stem: Callable[[str], str]) -> dict[str, str]:
    """The name that each tag gets by the rules.

    Args:
        counts: queries with each tag, as it was given.
        stem: of one word.

    Returns:
        tag -> name. Tags whose spelled words have the same stems get the spelling that occurs most, equal ones the
        first in alphabetical order. Tags without a letter or digit are left out.
    """
    groups: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    keys = {}
    for tag, count in counts.items():
        name = spelled(tag)
        if name:
            keys[tag] = " ".join(stem(word) for word in name.split())
            groups[keys[tag]][name] += count
    best = {key: min(names, key=lambda name: (-names[name], name)) for key, names in groups.items()}
    return {tag: best[key] for tag, key in keys.items()}


def near_groups(x_GD: np.ndarray, min_similarity: float, min_samples: int) -> np.ndarray:
    """DBSCAN (Ester et al., KDD 1996) with cosine distance at most 1 - min_similarity.

    A core has `min_samples` vectors that near, itself among them; cores that near are in one group. A vector that is
    near a core but is none joins the most similar core's group, of equally similar ones the first (DBSCAN leaves it to
    the order). All others are alone. With `min_samples` 1 or 2 groups are connected components.

    Args:
        x_GD: (G, D) float16 unit vectors; similarities are exact.
        min_similarity: of neighbours, at most 1.
        min_samples: from 1.

    Returns:
        (G,) int64: the position of the first core of each one's group, or its own.
    """
    near: list[np.ndarray] = []
    similar: list[np.ndarray] = []
    least = round(min_similarity * ONE)
    for _, _, scores_TG in similarity_tiles(x_GD, x_GD):
        for scores_G in scores_TG.numpy():
            near.append(np.flatnonzero(scores_G >= least))
            similar.append(scores_G[near[-1]])
    core_G = np.array([len(found) >= min_samples for found in near], dtype=bool)
    group_G = np.arange(len(x_GD))
    seen_G = np.zeros(len(x_GD), dtype=bool)
    for first in np.flatnonzero(core_G):
        waiting = [] if seen_G[first] else [int(first)]
        seen_G[first] = True
        while waiting:
            at = waiting.pop()
            group_G[at] = first
            new = near[at][core_G[near[at]] & ~seen_G[near[at]]]
            seen_G[new] = True
            waiting += new.tolist()
    for at in np.flatnonzero(~core_G):
        cores = core_G[near[at]]
        if cores.any():
            group_G[at] = group_G[near[at][cores][np.argmax(similar[at][cores])]]
    return group_G


def named_groups(names: Sequence[str], counts_G: np.ndarray, group_G: np.ndarray) -> dict[str, str]:
    """name -> the name of its group: the one of largest count, equal ones the first in alphabetical order."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(group_G.tolist()):
        groups[group].append(place)
    found = {}
    for places in groups.values():
        best = min(places, key=lambda place: (-counts_G[place], names[place]))
        found |= {names[place]: names[best] for place in places}
    return found


def implied(
    tags_T: np.ndarray, starts_Q1: np.ndarray, names: Sequence[str], min_support: int, min_confidence: float
) -> dict[str, str]:
    """Association rules a -> b between single tags, as merges of a into b.

    A rule holds when at least `min_support` queries have both and at least `min_confidence` of those with a have b:
    what FP-growth finds, where pairs are enough. Rules go from the rarer tag to the more frequent one, of equally
    frequent ones to the first in alphabetical order (whenever only the other direction is asked for, this one holds
    too). Of several rules for one tag the most confident counts, then the most frequent b, then the alphabet; chains
    are followed to their end.

    Args:
        tags_T, starts_Q1: tags of the queries, as `engine.data.tag_lists.TagLists.arrays`.
        names: of the codes.
        min_support: queries, from 1.
        min_confidence: share.

    Returns:
        name -> name, for the tags that are merged into another.
    """
    tags_T, starts_Q1 = distinct_tags(tags_T, starts_Q1)
    query_T = np.repeat(np.arange(len(starts_Q1) - 1), np.diff(starts_Q1))
    order_T = np.argsort(tags_T, kind="stable")
    support_G = np.bincount(tags_T, minlength=len(names))
    ends_G = np.cumsum(support_G)
    rank_G = np.empty(len(names), dtype=np.int64)  # from the most frequent tag, equal ones by name
    rank_G[sorted(range(len(names)), key=lambda tag: (-support_G[tag], names[tag]))] = np.arange(len(names))
    into: dict[int, int] = {}
    for tag in np.flatnonzero(support_G >= min_support).tolist():
        queries = query_T[order_T[ends_G[tag] - support_G[tag] : ends_G[tag]]]
        both_G = np.bincount(_gathered(tags_T, starts_Q1, queries), minlength=len(names))
        holds_G = (both_G >= min_support) & (both_G / support_G[tag] >= min_confidence)
        able = np.flatnonzero(holds_G & (rank_G < rank_G[tag]))
        if len(able):
            into[tag] = int(able[np.lexsort((rank_G[able], -both_G[able]))[0]])
    for tag in sorted(into, key=lambda tag: rank_G[tag]):  # targets come before those merged into them
        into[tag] = into.get(into[tag], into[tag])
    return {names[tag]: names[target] for tag, target in into.items()}


def _gathered(tags_T: np.ndarray, starts_Q1: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The tags of some queries, one after another."""
    sizes = starts_Q1[queries + 1] - starts_Q1[queries]
    first = np.cumsum(sizes) - sizes
    return tags_T[np.arange(sizes.sum()) + np.repeat(starts_Q1[queries] - first, sizes)]
