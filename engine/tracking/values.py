"""What a tracker is told of a run, as plain numbers and settings. It knows no tracker and sends nothing.

The settings of a run go out, secrets do not: keys are named in a config, never written there, but an address may hold a
password or a signature, and fields that are passed on verbatim may hold anything.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

from engine.schema import canonical_json

Values = dict[str, float]

LOGGED = ("seed", "budget", "recipe", "encoder")  # of a config; nothing of where data, folders and money are
UNTRACKED = ("out", "runtime", "paid", "tracking", "output")  # of a config: another value is no other run
VERBATIM = ("extra_body", "engine_args", "sampling", "chat_template_kwargs")  # passed on to others, unread
SECRET_NAME = re.compile(r"(^|_)(key|token|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE)
USER_PART = re.compile(r"(?<=://)[^/\s@]*@")
QUERY = re.compile(r"\?[^\s?]*=\S*")
SHORTEST_SECRET = 4  # characters; what is shorter would be found in every text
ROUND_STEP = re.compile(r"rounds/(\d+)/(.+)")


def settings_of(config: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The settings that a tracker shows beside a run, flat, without what may hold a secret."""
    return flat({name: config[name] for name in LOGGED})


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {}
    for name, one in value.items():
        if name in VERBATIM or SECRET_NAME.search(name):
            continue
        if isinstance(one, list) and any(isinstance(item, Mapping | list) for item in one):
            one = {str(place): item for place, item in enumerate(one)}
        if isinstance(one, Mapping):
            found |= flat(one, f"{prefix}{name}.")
        elif isinstance(one, bool | int | float):
            found[f"{prefix}{name}"] = one
        elif one is not None:
            found[f"{prefix}{name}"] = without_secrets(str(one))
    return found


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with user, password and query taken out of every address in it.

    Args:
        environment: variables; the values of those named like a secret, and the passwords and queries of addresses in
            them, are taken out wherever they stand: what a library says in an error is not always an address.
    """
    for secret in sorted(secrets_in(environment or {}), key=len, reverse=True):
        text = text.replace(secret, "***")
    return QUERY.sub("", USER_PART.sub("", text))


def secrets_in(environment: Mapping[str, str]) -> set[str]:
    found = set()
    for name, value in environment.items():
        if SECRET_NAME.search(name):
            found.add(value)
        elif "://" in value:
            user, _, rest = value.split("://", 1)[1].rpartition("@")
            queries = [pair.partition("=")[2] for pair in rest.partition("?")[2].split("&")]
            found |= {user.partition(":")[2], *queries}
    return {secret for secret in found if len(secret) >= SHORTEST_SECRET}


def run_id(folder: str, place: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """16 hex digits that name a run to its tracker: the same settings in the same folder are the same run.

    Args:
        folder: made once per run folder, see engine/tracking/feed.py.
        place: tracker, project and name.
        config: of the run; how it is executed, paid and tracked is left out.
    """
    kept = {name: value for name, value in config.items() if name not in UNTRACKED}
    return hashlib.sha256(canonical_json([folder, dict(place), kept]).encode()).hexdigest()[:16]


def numbers(values: Mapping[str, Any], prefix: str) -> Values:
    """The finite numbers of a mapping."""
    return {
        f"{prefix}/{name}": float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def round_values(metrics: Mapping[str, Any], spent: Mapping[str, Any]) -> Values:
    """Of a round: hard rate, counts, the classifier's validation, seconds, and what the run has paid so far."""
    return numbers({name: one for name, one in metrics.items() if name != "round"}, "round") | numbers(spent, "paid")


def step_place(name: str, rounds: int) -> tuple[str, int]:
    """Name of a step without the number of its round, and the round it counts to: the last one for steps of none."""
    found = ROUND_STEP.fullmatch(name)
    return (f"rounds/{found[2]}", int(found[1]) + 1) if found else (name, rounds)


def step_values(name: str, rows: int, seconds: float, failed: int) -> Values:
    rates = {"rows_per_s": rows / seconds} if seconds > 0 else {}
    return numbers({"rows": rows, "seconds": seconds, "failed": failed, **rates}, f"step/{name}")


def summary_values(summary: Mapping[str, Any]) -> Values:
    """Of a finished run: rows by fate, seconds, calls and their cost, and the selection beside its baselines."""
    found = numbers(summary, "selection") | numbers(summary.get("calls") or {}, "paid")
    found |= numbers({"rejected": sum(summary["rejected"].values())}, "selection")
    for line in summary.get("baselines") or []:
        name = "selection" if line["name"] == summary["recipe"] else f"baseline/{line['name'].strip('()')}"
        found |= numbers({key: value for key, value in line.items() if key != "rows"}, name)
    return found
