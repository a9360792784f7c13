"""How far a pairwise judge can be trusted: agreement with known verdicts, and what it favours besides quality.

Pure functions over labels; a label names the answer by its place: "A" the first, "B" the second, "tie" neither. It
knows nothing of judges, prompts or files. A number that is not defined (no pairs, one label only) is None.

Sources: kappa: Cohen 1960. Its interval: Fleiss, Cohen and Everitt 1969, the large-sample variance that does not assume
kappa = 0; it needs no seed, so a report is reproducible, and from 300 pairs on it agrees with the bootstrap to some
thousandths (tested). Near full agreement it is too narrow, and at full agreement its width is 0: there the Wilson
interval of the accuracy is the one to read. Shares: Wilson 1927. The judge's biases: Zheng et al. 2023, arXiv
2306.05685, section 3.3; `longest` and the share that prefers the longer answer: AlpacaEval's evaluator table.

Legend: L labels in the order of LABELS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

LABELS = ("A", "B", "tie")
DECISIVE = LABELS[:2]
OTHER = {"A": "B", "B": "A", "tie": "tie"}  # the same answer's label when the order is swapped
Z95 = 1.959963984540054  # the normal quantile of 0.975


class Proportion(TypedDict):
    """`count` of `of`, as a share with its 95 % Wilson interval; the three are None for `of` = 0."""

    count: int
    of: int
    share: float | None
    low: float | None
    high: float | None


class Kappa(TypedDict):
    """Cohen's kappa over `of` pairs with its 95 % interval; all None when nothing but one label was ever given."""

    of: int
    value: float | None
    low: float | None
    high: float | None


def proportion(count: int, of: int) -> Proportion:
    """A share with the Wilson score interval: never outside [0, 1], and not of width 0 at 0 or 1."""
    if not of:
        return Proportion(count=0, of=0, share=None, low=None, high=None)
    share, z2 = count / of, Z95**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = Z95 / (1 + z2 / of) * (share * (1 - share) / of + z2 / (4 * of**2)) ** 0.5
    low = 0.0 if count == 0 else middle - half  # exact at the ends, where the difference leaves rounding behind
    high = 1.0 if count == of else middle + half
    return Proportion(count=int(count), of=int(of), share=share, low=low, high=high)


def confusion(gold: Sequence[str], judged: Sequence[str]) -> np.ndarray:
    """Counts of pairs by known verdict (row) and the judge's (column).

    Returns:
        (L, L) int64; its first two rows and columns are the pairs that are decisive on both sides.

    Raises:
        ValueError: the lengths differ, or a label is not in LABELS.
    """
    if len(gold) != len(judged):
        raise ValueError(f"{len(gold)} known verdicts and {len(judged)} of the judge")
    if unknown := {*gold, *judged}.difference(LABELS):
        raise ValueError(f"not a label: {sorted(unknown)}")
    counts_LL = np.zeros((len(LABELS), len(LABELS)), np.int64)
    for (known, said), count in Counter(zip(gold, judged, strict=True)).items():
        counts_LL[LABELS.index(known), LABELS.index(said)] = count
    return counts_LL


def accuracy(counts_LL: np.ndarray) -> Proportion:
    """Share of the pairs on the diagonal of a confusion matrix of any size."""
    return proportion(int(np.trace(counts_LL)), int(counts_LL.sum()))


def cohen_kappa(counts_LL: np.ndarray) -> Kappa:
    """Unweighted kappa, (agreement - chance) / (1 - chance), of a confusion matrix of any size.

    The variance of Fleiss, Cohen and Everitt 1969 in the form of the delta method: with g the gradient of kappa by the
    cell probabilities p, it is (sum p g^2 - (sum p g)^2) / n.
    """
    num_pairs = int(counts_LL.sum())
    p_LL = counts_LL / max(1, num_pairs)
    row_L, column_L = p_LL.sum(axis=1), p_LL.sum(axis=0)
    agreement, chance = float(np.trace(p_LL)), float((row_L * column_L).sum())
    if not num_pairs or np.count_nonzero(row_L + column_L) < 2:
        return Kappa(of=num_pairs, value=None, low=None, high=None)
    kappa = (agreement - chance) / (1 - chance)
    by_chance_LL = column_L[:, None] + row_L[None, :]  # of cell (i, j): the change of `chance`
    gradient_LL = np.eye(len(p_LL)) / (1 - chance) - by_chance_LL * (1 - agreement) / (1 - chance) ** 2
    spread = float((p_LL * gradient_LL**2).sum() - (p_LL * gradient_LL).sum() ** 2)
    half = Z95 * (max(0.0, spread) / num_pairs) ** 0.5
    return Kappa(of=num_pairs, value=kappa, low=max(-1.0, kappa - half), high=min(1.0, kappa + half))


def combined(first: str | None, second: str | None) -> str | None:
    """The verdict on a pair from the labels as shown: order "first" shows answer a as A, "second" shows answer b as A.

    The rule of a run and of a check: a must win in every order, b must win one and lose none,
    only ties are a tie, and everything else is "inconsistent".

    Returns:
        "A" (answer a), "B" (answer b), "tie", "inconsistent", or None without any label.
    """
    said = [first] if first is not None else []
    said += [OTHER[second]] if second is not None else []
    if len(set(said)) <= 1:
        return said[0] if said else None
    return "B" if set(said) == {"B", "tie"} else "inconsistent"


def flip_rate(first: Sequence[str | None], second: Sequence[str | None]) -> Proportion:
    """Share of pairs where the judge prefers one answer, and the other one when the order is swapped.

    Args:
        first, second: label as shown in each order, None without one. Only pairs with both count, so where the second
            order is only asked in doubt this is the rate among the doubtful. A change between an answer and a tie is
            no flip.
    """
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    # The same place preferred twice is two different answers.
    return proportion(sum(a == b and a in DECISIVE for a, b in both), len(both))


def position_preference(first: Sequence[str | None], second: Sequence[str | None]) -> Proportion:
    """P(the answer shown first is preferred) among decisive labels of single orders; 0.5 without a position bias.

    Every pair judged in both orders counts twice, so its quality cancels out. The two labels of a fair judge are then
    opposites, which makes the Wilson interval too wide rather than too narrow.
    """
    counts = Counter([*first, *second])
    return proportion(counts["A"], counts["A"] + counts["B"])


def length_preference(labels: Sequence[str | None], chars_a: Sequence[int], chars_b: Sequence[int]) -> Proportion:
    """P(the longer answer is preferred) among decisive labels of pairs of different length.

    Args:
        labels: of LABELS, anything else does not count.
        chars_a, chars_b: lengths of the answers in characters.
    """
    rows = zip(labels, chars_a, chars_b, strict=True)
    longer = [label == longest(a, b) for label, a, b in rows if label in DECISIVE and a != b]
    return proportion(sum(longer), len(longer))


def longest(chars_a: int, chars_b: int) -> str:
    """The baseline that prefers the longer answer; a tie for equal lengths."""
    return "A" if chars_a > chars_b else "B" if chars_b > chars_a else "tie"


class Consistency(TypedDict):
    """`pairs` judged at least twice in the same order, `judgments` of them; two shares in [0, 1], None without pairs.

    `majority`: judgments equal to the most frequent one of their pair. `pairwise`: two judgments of a pair are equal,
    mean over the pairs.
    """

    pairs: int
    judgments: int
    majority: float | None
    pairwise: float | None


def self_consistency(repeats: Sequence[Sequence[str]]) -> Consistency:
    """How often the same question gets the same answer.

    Args:
        repeats: per pair all labels of the same order; pairs with fewer than two do not count.
    """
    votes = [list(Counter(labels).values()) for labels in repeats if len(labels) > 1]
    judgments = sum(map(sum, votes))
    if not votes:
        return Consistency(pairs=0, judgments=0, majority=None, pairwise=None)
    equal = [sum(n * (n - 1) for n in counts) / (sum(counts) * (sum(counts) - 1)) for counts in votes]
    return Consistency(
        pairs=len(votes),
        judgments=judgments,
        majority=sum(max(counts) for counts in votes) / judgments,
        pairwise=sum(equal) / len(equal),
    )


class RandomJudge(TypedDict):
    """Expected values of a judge that tosses a fair coin between A and B, anew in each order."""

    accuracy: float | None
    kappa: float
    decisive_accuracy: float
    decisive_kappa: float
    flips: float
    shown_first: float
    longer: float
    pairwise: float


def random_judge(gold: Sequence[str]) -> RandomJudge:
    """The baseline `random`, exact instead of drawn.

    Accuracy is half the share of decisive known verdicts. Kappa is 0: given how often either side says A and B, the
    expected agreement of independent verdicts is chance agreement itself.
    """
    decisive = sum(label in DECISIVE for label in gold)
    return RandomJudge(
        accuracy=decisive / (2 * len(gold)) if gold else None,
        kappa=0.0,
        decisive_accuracy=0.5,
        decisive_kappa=0.0,
        flips=0.5,
        shown_first=0.5,
        longer=0.5,
        pairwise=0.5,
    )
