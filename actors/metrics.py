"""Counters on Ray's Prometheus endpoint. engine/metrics.py says which there are."""

from __future__ import annotations

from ray.util.metrics import Counter

from engine.metrics import COUNTERS


class RayMeter:
    """Counters of this process. Ray scrapes them from every process of the cluster and adds its own labels."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}

    def count(self, name: str, amount: float, **labels: str) -> None:
        if name not in self._counters:
            description, keys = COUNTERS[name]
            self._counters[name] = Counter(name, description, keys)
        self._counters[name].inc(amount, labels)
