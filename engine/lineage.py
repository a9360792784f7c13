"""Which steps a finished run is made of: everything that its selection and its scores depend on, by name.

A run folder may hold steps of other settings beside them. Each step's record names its inputs by fingerprint, so the
way back from the selection finds those of this run and no others. It knows nothing of methods.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.artifacts import Step
from engine.run_folder import run_steps
from engine.store import Store


def steps_of(run: Store) -> list[Step]:
    """The steps that the selection and the scores of a finished run come from, themselves included.

    Args:
        run: the outputs' folder, as `read_manifest` accepts it.

    Returns:
        Ascending by folder, such as `rounds/000/labels-1a2b3c4d`. What lies behind two sources that were read as one
        is not found.
    """
    ends = list(run_steps(run).values())
    store = ends[0].store
    known = {step.fingerprint: step for step in (Step.at(store, folder) for folder in complete_steps(store))}
    found: dict[str, Step] = {}
    while ends:
        step = ends.pop()
        if step.folder not in found:
            found[step.folder] = step
            ends += [known[key] for key in step.inputs if key in known]
    return [found[folder] for folder in sorted(found)]


def complete_steps(store: Store) -> Iterator[str]:
    """Folders of the complete steps of a run folder."""
    places = ["steps", "drawn", "inference", *(f"rounds/{number}" for number in store.list("rounds"))]
    for place in places:
        for name in store.list(place):
            if store.exists(f"{place}/{name}/step.json"):
                yield f"{place}/{name}"
