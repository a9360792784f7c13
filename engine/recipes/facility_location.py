"""Facility location: the rows that stand for the whole pool best, so that every row has a similar one among them.

The diversity of Superfiltering.D (Li et al., ACL 2024, arXiv 2402.00530); greedy submodular maximisation (Nemhauser,
Wolsey and Fisher 1978). Of all rows the next pick adds most to

    f(S) = sum over rows i of  max over selected s of  cos(i, s)

`lazy` (Minoux 1978) makes exactly the picks of trying every row for every pick; `stochastic` (Mirzasoleiman et al.,
AAAI 2015, arXiv 1409.7938) tries a random sample per pick. Large pools are cut into K-Means clusters, each of which
gives rows in proportion to its size, chosen within the cluster: N^2 inner products become N times a cluster's rows.
`two_rounds` (GreeDi, Mirzasoleiman et al., NIPS 2013, arXiv 1411.0541) lets the clusters name more rows than are
wanted, and chooses among these those that stand best for the whole pool: N times the candidates on top.

Needs: vectors. No labels, no language model.
Cost: `lazy` N^2 D multiplications and about as many again; `stochastic` N^2 ln(1/epsilon) D. A million rows of 384
dimensions: 4e14 at once, 8e12 in clusters of 20,000.
Known bias: selects the centres of dense regions first; outliers and rare topics last.

Differs from the paper in: works alone or on any pool, where Superfiltering.D first takes the best by IFD (that is
`superfiltering` with `diverse`); negative similarities count, so f is not cut at 0; GreeDi cuts the pool at random,
here along the clusters.
"""

from __future__ import annotations

from typing import Literal

from engine.config import RecipeConfig
from engine.greedy_methods import FacilitySettings, facility_location
from engine.greedy_selection import PairConfig, pool_space, selection
from engine.recipes.base import Context, Selection


class Config(FacilitySettings, PairConfig, RecipeConfig):
    name: Literal["facility_location"] = "facility_location"


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    picked = facility_location(context, pool_space(context, config), config, context.budget, scored=True)
    own = config.clusters(context.pool_rows) is not None and not config.two_rounds
    reason = "stands for many rows" + (" of its cluster" if own else "")
    return selection(context, picked, reason, "rows like it are selected")
