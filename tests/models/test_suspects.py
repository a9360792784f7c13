"""The search for the row that kills the engine, against a pretended engine that dies of known rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.models.suspects import Suspects


def serve(jobs: int, deadly: set[int], room: int, accident: int) -> tuple[list[int], list[int], int]:
    """Runs jobs 0..n-1 on an engine with room for some at a time, which dies of `deadly` ones, and at the step
    `accident` of nothing.

    Returns:
        (jobs done, jobs blamed, deaths).
    """
    suspects: Suspects[int] = Suspects()
    waiting, done, blamed, deaths = list(range(jobs)), list[int](), list[int](), 0
    for step in range(100 * (jobs + 1)):
        if not waiting:
            break
        running = [job for job in waiting[:room] if suspects.may_run(job)]
        assert running, "nobody may run"
        if deadly & set(running) or step == accident:
            deaths += 1
            culprit = suspects.died(running)
            if culprit is not None:
                blamed.append(culprit)
                waiting.remove(culprit)
        else:
            done.append(running[0])  # one finishes in each step
            waiting.remove(running[0])
            suspects.left(running[0])
    assert not suspects.deaths and not suspects.trial and not suspects.rest
    return done, blamed, deaths


@given(
    jobs=st.integers(0, 60),
    deadly=st.sets(st.integers(0, 59), max_size=5),
    room=st.integers(1, 64),
    accident=st.integers(-1, 60),
)
def test_exactly_the_deadly_are_blamed_and_all_others_done(
    jobs: int, deadly: set[int], room: int, accident: int
) -> None:
    deadly = {job for job in deadly if job < jobs}
    done, blamed, deaths = serve(jobs, deadly, room, accident)
    assert sorted(done) == sorted(set(range(jobs)) - deadly) and sorted(blamed) == sorted(deadly)
    assert deaths <= 2 + len(deadly) * (4 + min(room, jobs).bit_length())


def test_one_accident_costs_one_repetition() -> None:
    suspects: Suspects[str] = Suspects()
    assert suspects.died(["a", "b", "c"]) is None
    assert all(suspects.may_run(job) for job in "abcd")


def test_a_row_that_is_alone_is_not_blamed_for_one_death() -> None:
    suspects: Suspects[str] = Suspects()
    assert suspects.died(["a", "b"]) is None
    assert suspects.died(["a"]) is None
    assert suspects.died(["a"]) == "a"
