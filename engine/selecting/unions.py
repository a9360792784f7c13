"""Several chains side by side: what any of them leaves.

A chain narrows, so it can only take away; methods that add one set of rows to another, as MoDS (arXiv 2311.15653) adds
what a model lacks to a diverse seed, need this. Every chain starts from the rows that the union was given.
"""

# Shape letters: C chains, M rows that no chain leaves, I rows chosen.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, SerializeAsAny, model_validator

from engine.paid.passes import PaidPass
from engine.selecting.base import IN, Narrowing, Sized, run_chain

if TYPE_CHECKING:
    from engine.selecting import AnySelector


class Union(Sized):
    """The rows of the first chain, then those of the second that are not among them, and so on.

    Where these are more than wanted, the last ones are out.
    """

    kind: Literal["union"] = "union"
    chains: list[list[SerializeAsAny[AnySelector]]] = Field(
        min_length=1, description="Chains of selectors; the last one of each leaves `rows`, or as many as are wanted"
    )

    @model_validator(mode="after")
    def _chains_fit(self) -> Union:
        for number, chain in enumerate(self.chains):
            *before, last = chain or [None]
            if not isinstance(last, Sized):
                raise ValueError(f"chain {number} does not end with a selector that leaves a number of rows")
            for selector in before:
                if isinstance(selector, Sized) and selector.rows is None:
                    raise ValueError(f"chain {number}: {selector.kind} needs `rows`: a share of the pool or a number")
        return self

    @property
    def reads(self) -> Sequence[str]:
        return list(dict.fromkeys(name for chain in self.chains for one in chain for name in one.reads))

    @property
    def passes(self) -> Sequence[PaidPass]:
        return [one for chain in self.chains for selector in chain for one in selector.passes]

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        left = [run_chain(narrowing, chain, num)[0] for chain in self.chains]
        orders = [found.order_I for found in left if found.num_left and found.order_I is not None]
        rows = np.concatenate([np.empty(0, np.int64), *orders])
        _, first = np.unique(rows, return_index=True)
        order_I = rows[np.sort(first)]
        chosen = "; or ".join(dict.fromkeys(found.chosen for found in left if found.num_left))
        lost_M = np.setdiff1d(narrowing.rows(), order_I)
        which_M, texts = joined_reasons(left, lost_M)
        narrowing = narrowing.sorted_out(lost_M, which_M, texts)
        return narrowing.kept(order_I[:num], "after as many rows as are wanted", chosen)


def joined_reasons(left: Sequence[Narrowing], lost_M: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Why every chain left a row out: (M,) int32 places in a list of texts."""
    codes_CM = np.stack([found.codes_N[lost_M] for found in left])
    assert (codes_CM != IN).all()
    found_CU, which_M = np.unique(codes_CM, axis=1, return_inverse=True)
    reasons = [[chain.reasons[code - 1] for chain, code in zip(left, codes, strict=True)] for codes in found_CU.T]
    return which_M.reshape(-1).astype(np.int32), ["; ".join(dict.fromkeys(texts)) for texts in reasons]
