"""The scores that a composition can name. One line per kind; importing them loads no model library."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.scoring.arithmetic import Agreement, Linear, Product, Weight
from engine.scoring.clusters import Cluster
from engine.scoring.row_variance import RowVariance
