"""The plan of a run's paid calls: of its passes over the whole pool, or of its rounds (engine/paid/estimate.py).

A pass asks about every row. The calls about a sample of the pool are rendered and looked up in the ledger; a pool of
at most 200 rows is looked up whole, so its number of calls is exact but for replies that are asked about again.
"""

from __future__ import annotations

from typing import Any

from engine.config import RunConfig, budget_rows
from engine.config_base import models_in
from engine.labelling import LoopConfig
from engine.paid.estimate import ASKED_AGAIN, CASES, Backend, Lookup, Rows, Sample, draw_sample, figures, look_up, total
from engine.paid.estimate import estimate as rounds_plan
from engine.paid.passes import PaidPass
from engine.paid.service import ledger_store, paid_backends
from engine.paid.standing import frozen_pool
from engine.recipes import load_recipe
from engine.scoring.base import Measured
from engine.store import Store


def paid_passes(config: RunConfig) -> list[PaidPass] | None:
    """The paid passes of a recipe, those of scores in its settings among them; None for one with rounds."""
    composition = getattr(load_recipe(config.recipe.name).module, "composition", None)
    if composition is not None:
        return composition(config.recipe).passes
    if isinstance(config.recipe, LoopConfig):
        return None
    return [one for score in models_in(config.recipe) if isinstance(score, Measured) for one in score.passes]


def estimate(config: RunConfig) -> dict[str, Any]:
    """The plan of a run's paid calls.

    Returns:
        Of rounds: as `engine.paid.estimate.estimate`. Of passes: its `pool`, `backends`, `usd` (None too when an
        endpoint of the config is in none of the passes) and `max_usd`.

    Raises:
        DataError, ConfigError, EnvironmentProblem: as a run would.
    """
    passes = paid_passes(config)
    if passes is None:
        return rounds_plan(config)
    sample = draw_sample(config, frozen_pool(config), frozenset())
    ledger = ledger_store(Store(config.out), config.paid.ledger)
    plans = [_figures(one, sample, ledger, config.budget) for one in passes]
    counted = [one.config for one in passes]
    unknown = any(backend not in counted for backend in paid_backends(config))
    usd = None if unknown else total(plans)
    return {"pool": sample.rows, "backends": plans, "usd": usd, "max_usd": config.paid.max_usd}


def _figures(one: PaidPass, sample: Sample, ledger: Store, budget: float) -> dict[str, Any]:
    table, rows = sample.table, sample.rows
    if one.asked is not None:
        table, rows = one.asked(table, rows, budget_rows(budget, rows))
    stage = one.collector(ledger)
    try:
        found = look_up(stage, table)
    finally:
        stage.close()
    low, likely = one.reply_tokens
    high = float(one.asks["max_tokens"])
    again = {case: 1.0 + ASKED_AGAIN[case] for case in CASES}
    backend = Backend(
        one.role, one.config, found, Lookup(0, 0, []), again, {"low": low, "likely": min(likely, high), "high": high}
    )
    most = rows if one.most_rows is None else budget_rows(one.most_rows, rows)
    return figures(backend, Rows(dict.fromkeys(CASES, most), max(1, rows)))
