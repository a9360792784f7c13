"""Paid judging against a real server: verdicts, the ledger's promises, caps, dialects, batches, attacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BudgetReached, EnvironmentProblem
from engine.judging.prompts import load_prompt
from engine.paid.batch_files import import_answers
from engine.paid.ledger import LedgerIndex
from engine.store import Store
from tests.attacks import ATTACKS
from tests.fake_server import FakeServer
from tests.paid.paid_rows import answer_rows, expected, generator_config, judge_config, judge_rows, make_rows


@pytest.fixture(scope="module")
def shared_server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def server(shared_server: FakeServer) -> FakeServer:
    shared_server.faults(latency_s=0.0, style="json")
    shared_server.reset()
    return shared_server


def totals(ledger: Path) -> Any:
    index = LedgerIndex(Store(ledger))
    index.refresh()
    return index.totals()


def test_verdicts_are_those_of_the_judge_in_both_orders(server: FakeServer, tmp_path: Path) -> None:
    found = judge_rows(tmp_path / "out", make_rows(150), judge_config(server.url))
    assert found["error"].null_count == 150
    assert found["verdict"].to_pylist() == [expected(number) for number in range(150)]
    hard = {"reference": True, "answer": False, "tie": None}
    assert found["hard"].to_pylist() == [hard[expected(number)] for number in range(150)]
    flipped = {"A": "B", "B": "A", "tie": "tie"}
    assert [flipped[label] for label in found["first"].to_pylist()] == found["second"].to_pylist()
    p = found["p_reference"].to_pylist()
    assert all(0 <= value <= 1 for value in p)
    assert all((value > 0.5) == (expected(number) == "reference") for number, value in enumerate(p))
    stats, ledger = server.stats(), totals(tmp_path / "out/ledger")
    assert stats["completed"] == ledger.calls == 300
    assert (ledger.in_doubt, ledger.spoiled, ledger.repeated) == (0, 0, 0)
    assert (ledger.tokens_in, ledger.tokens_out) == (stats["tokens_in"], stats["tokens_out"])
    assert ledger.cost_usd == pytest.approx((stats["tokens_in"] + 2 * stats["tokens_out"]) / 1e6)
    assert sum(found["usd"].to_pylist()) == pytest.approx(ledger.cost_usd)
    assert stats["obeyed"] == stats["broken_blocks"] == 0


def test_only_what_is_new_is_paid(server: FakeServer, tmp_path: Path) -> None:
    rows, config, shared = make_rows(60), judge_config(server.url), {"ledger": str(tmp_path / "ledger")}

    def calls(out: str, rows: list[dict[str, Any]], **settings: Any) -> int:
        server.reset()
        judge_rows(tmp_path / out, rows, judge_config(server.url, **settings) if settings else config, **shared)
        return server.stats()["received"]

    assert calls("first", rows) == 120
    assert calls("again", rows) == 0
    assert calls("reordered", rows[::-1]) == 0
    assert calls("one-more", rows[:30] + make_rows(1, 60) + rows[30:]) == 2
    assert calls("other-execution", rows, concurrency=2, max_attempts=3, processes=2) == 0
    own = tmp_path / "mine.j2"
    text = Path(load_prompt("pairwise/v1").path).read_text(encoding="utf-8")
    own.write_text(text.replace("version: 1", "version: 7"), encoding="utf-8")
    assert calls("other-prompt", rows, prompt=str(own)) == 120
    assert calls("other-model", rows, model="n") == 120


@pytest.mark.parametrize("orders", ["both", "alternate", "decisive"])
def test_orders(server: FakeServer, tmp_path: Path, orders: str) -> None:
    found = judge_rows(tmp_path / "out", make_rows(98), judge_config(server.url, orders=orders, decisive=0.9))
    assert found["verdict"].to_pylist() == [expected(number) for number in range(98)]
    first, second = found["first"].to_pylist(), found["second"].to_pylist()
    asked = sum(label is not None for label in first + second)
    assert server.stats()["completed"] == asked
    if orders == "both":
        assert asked == 196
    elif orders == "alternate":
        assert asked == 98
        assert 30 < sum(label is not None for label in first) < 68
    else:
        assert 98 < asked < 196


def test_a_judge_that_favours_a_place_is_inconsistent_not_hard(tmp_path: Path) -> None:
    with FakeServer(position_bias=1.0) as server:
        found = judge_rows(tmp_path / "out", make_rows(30), judge_config(server.url))
    assert set(found["verdict"].to_pylist()) == {"inconsistent"}
    assert found["hard"].null_count == 30


@pytest.mark.parametrize("processes", [1, 3])
def test_the_cap_holds_and_a_higher_one_continues(server: FakeServer, tmp_path: Path, processes: int) -> None:
    rows, out = make_rows(200), tmp_path / "out"
    whole = judge_rows(tmp_path / "whole", rows, judge_config(server.url))
    cost = totals(tmp_path / "whole/ledger").cost_usd
    server.reset()
    config = judge_config(server.url, processes=processes)
    with pytest.raises(BudgetReached, match=r"max-usd") as stopped:
        judge_rows(out, rows, config, max_usd=cost / 2)
    assert stopped.value.exit_code == 5
    half = totals(out / "ledger")
    assert half.calls == server.stats()["completed"]
    assert cost / 4 < half.cost_usd <= cost / 2
    server.reset()
    found = judge_rows(out, rows, config, max_usd=2 * cost)
    assert found.equals(whole)
    assert half.calls + server.stats()["completed"] == 400


def test_a_round_has_its_own_cap(server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(BudgetReached) as stopped:
        judge_rows(tmp_path / "out", make_rows(200), judge_config(server.url), max_usd_per_round=0.01)
    assert stopped.value.code == "E511"
    assert totals(tmp_path / "out/ledger").cost_usd <= 0.01


@pytest.mark.parametrize("style", ["json", "fenced", "prose", "brackets"])
@pytest.mark.parametrize("limits", [{"no_json_schema": True}, {"no_json_schema": True, "no_json_object": True}])
def test_weaker_endpoints_are_asked_in_their_own_way(tmp_path: Path, style: str, limits: dict[str, bool]) -> None:
    more = {"no_logprobs": True, "logprobs_status": 403, "only_max_completion_tokens": True}
    with FakeServer(style=style, **limits, **more) as server:
        found = judge_rows(tmp_path / "out", make_rows(40), judge_config(server.url))
        assert found["verdict"].to_pylist() == [expected(number) for number in range(40)]
        assert found["p_reference"].null_count == 40
        assert server.stats()["completed"] == 80


def test_an_unreadable_reply_is_asked_about_once_and_then_an_error(tmp_path: Path) -> None:
    with FakeServer(style="garbage", no_json_schema=True, no_json_object=True) as server:
        found = judge_rows(tmp_path / "out", make_rows(10), judge_config(server.url))
        assert server.stats()["completed"] == 40
    assert found["verdict"].null_count == found["hard"].null_count == 10
    assert all(error.startswith("unreadable") for error in found["error"].to_pylist())


def test_score_pairs_are_verdicts_too(tmp_path: Path) -> None:
    rows = [number for number in range(80) if number % 7 and number // 7 % 7]  # the server's scale begins at 1
    with FakeServer(style="scores") as server:
        config = judge_config(server.url, prompt="pairwise-scores")
        found = judge_rows(tmp_path / "out", [make_rows(1, number)[0] for number in rows], config)
    assert found["verdict"].to_pylist() == [expected(number) for number in rows]
    assert found["score_reference"].null_count == 0


@pytest.mark.parametrize(
    ("faults", "code"), [({"bad_request": 1.0}, "http_400"), ({"server_error_500": 1.0}, "http_500")]
)
def test_a_row_that_fails_is_an_error_row_with_code_and_attempts(
    server: FakeServer, tmp_path: Path, faults: dict[str, float], code: str
) -> None:
    server.faults(**faults)
    config = judge_config(server.url, max_attempts=2)
    found = judge_rows(tmp_path / "out", make_rows(3), config)
    attempts = 1 if code == "http_400" else 2
    assert all(
        error.startswith(f"{code}: ") and f"({attempts} attempt" in error for error in found["error"].to_pylist()
    )
    assert found["hard"].null_count == 3
    assert totals(tmp_path / "out/ledger").cost_usd == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"api_key": "right"}, "E360"), ({"models": ["other"]}, "E360"), ({"insufficient_quota": 1.0}, "E512")],
)
def test_what_concerns_every_call_stops_the_run(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with FakeServer(**options) as server:
        with pytest.raises((EnvironmentProblem, BudgetReached)) as stopped:
            judge_rows(tmp_path / "out", make_rows(300), judge_config(server.url, concurrency=8))
        assert stopped.value.code == message
        assert server.stats()["received"] <= 24


def test_an_endpoint_that_is_down_ends_the_run(tmp_path: Path) -> None:
    config = judge_config("http://127.0.0.1:9/v1", give_up_after_s=1.0, max_attempts=1000)
    with pytest.raises(EnvironmentProblem, match="has not answered"):
        judge_rows(tmp_path / "out", make_rows(40), config)


def test_a_missing_key_is_named_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(EnvironmentProblem, match="NO_SUCH_KEY is not set"):
        judge_rows(tmp_path / "out", make_rows(2), judge_config("http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY"))


def test_canaries_come_along_and_are_judged_right(server: FakeServer, tmp_path: Path) -> None:
    found = judge_rows(tmp_path / "out", make_rows(200), judge_config(server.url, canaries=0.2))
    came = [value for value in found["canary"].to_pylist() if value is not None]
    assert 15 < len(came) < 70
    assert set(came) == {True, False}  # this judge counts words where there is no mark
    assert server.stats()["completed"] == totals(tmp_path / "out/ledger").calls == 400 + len(came)


def test_attacks_move_no_verdict(server: FakeServer, tmp_path: Path) -> None:
    """The scripted judge obeys everything outside of its data blocks, and scores by the first mark inside."""
    rows = []
    for number, (_, text) in enumerate(ATTACKS):
        row = make_rows(1, number)[0]
        injected = text.encode("utf-8", "replace").decode()
        rows.append({**row, "response": f"quality=1 {injected}", "answer": "quality=5 fine"})
        rows.append({**make_rows(1, 1000 + number)[0], "response": "quality=5 fine", "answer": f"quality=1 {injected}"})
    found = judge_rows(tmp_path / "out", rows, judge_config(server.url, suspects="judge"))
    assert found["verdict"].to_pylist() == ["answer", "reference"] * len(ATTACKS)
    stats = server.stats()
    assert stats["obeyed"] == stats["broken_blocks"] == 0
    assert sum(value is not None for value in found["suspect"].to_pylist()) > len(rows) / 2
    server.reset()
    skipped = judge_rows(tmp_path / "skipped", rows, judge_config(server.url))
    assert [v is None for v in skipped["verdict"].to_pylist()] == [
        s is not None for s in skipped["suspect"].to_pylist()
    ]
    assert skipped["error"].null_count == len(rows)


def test_a_batch_file_is_written_taken_back_and_costs_half(server: FakeServer, tmp_path: Path) -> None:
    rows, out = make_rows(40), tmp_path / "out"
    config = judge_config(server.url, mode="batch", canaries=0.1)
    with pytest.raises(BudgetReached, match="wait for a batch") as stopped:
        judge_rows(out, rows, config)
    assert stopped.value.exit_code == 5
    assert server.stats()["received"] == 0
    requests = [
        json.loads(line)
        for file in sorted((out / "batches").rglob("requests-*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert len({request["custom_id"] for request in requests}) == len(requests) >= 80
    answers = [
        {
            "custom_id": request["custom_id"],
            "response": {"status_code": 200, "request_id": "r", "body": server.chat(**request["body"])},
            "error": None,
        }
        for request in reversed(requests)
    ]
    first, second = tmp_path / "answers-1.jsonl", tmp_path / "answers-2.jsonl"
    first.write_text("".join(json.dumps(line) + "\n" for line in answers[:30]))
    expired = {"custom_id": answers[30]["custom_id"], "response": None, "error": {"code": "batch_expired"}}
    second.write_text("".join(json.dumps(line) + "\n" for line in [*answers[20:30], expired, *answers[31:]]))
    server.reset()
    store = Store(out)
    assert import_answers(store, store.sub("ledger"), [str(first)])["booked"] == 30
    counts = import_answers(store, store.sub("ledger"), [str(second)])
    assert (counts["booked"], counts["already"], counts["again"]) == (len(requests) - 31, 10, 1)
    with pytest.raises(BudgetReached, match="1 calls wait for a batch"):
        judge_rows(out, rows, config)
    third = tmp_path / "answers-3.jsonl"
    third.write_text(json.dumps(answers[30]) + "\n")
    import_answers(store, store.sub("ledger"), [str(third)])
    found = judge_rows(out, rows, config)
    assert server.stats()["received"] == 0
    online = judge_rows(tmp_path / "online", rows, judge_config(server.url, canaries=0.1))
    assert found["verdict"].equals(online["verdict"])
    assert found["canary"].equals(online["canary"])
    assert sum(found["usd"].to_pylist()) == pytest.approx(sum(online["usd"].to_pylist()) / 2)


def test_generated_answers_are_recorded_like_verdicts(server: FakeServer, tmp_path: Path) -> None:
    rows = make_rows(30)
    found = answer_rows(tmp_path / "out", rows, generator_config(server.url, max_tokens=16))
    assert found["error"].null_count == 30
    assert all(text.startswith("quality=") for text in found["answer"].to_pylist())
    assert set(found["finish"].to_pylist()) <= {"stop", "length"}
    assert server.stats()["completed"] == 30
    shared = {"ledger": str(tmp_path / "out/ledger")}
    again = answer_rows(tmp_path / "again", rows, generator_config(server.url, max_tokens=16), **shared)
    assert again.equals(found)
    assert server.stats()["completed"] == 30


def test_a_call_that_was_never_sent_costs_nothing(tmp_path: Path) -> None:
    config = judge_config("http://127.0.0.1:9/v1", max_attempts=1)
    found = judge_rows(tmp_path / "out", make_rows(4), config)
    assert all(error.startswith("connection") for error in found["error"].to_pylist())
    assert totals(tmp_path / "out/ledger").cost_usd == 0.0


def test_being_told_to_wait_is_no_failure_of_the_row(server: FakeServer, tmp_path: Path) -> None:
    server.faults(rate_limited=0.5, retry_after="ms", retry_after_s=0.01)
    found = judge_rows(tmp_path / "out", make_rows(30), judge_config(server.url, max_attempts=1))
    assert found["verdict"].to_pylist() == [expected(number) for number in range(30)]
    server.faults(rate_limited=1.0, retry_after="ms", retry_after_s=0.01)
    with pytest.raises(EnvironmentProblem, match="has only said 429") as stopped:
        judge_rows(tmp_path / "never", make_rows(4), judge_config(server.url, give_up_after_s=1.0))
    assert stopped.value.code == "E363"


def test_the_same_request_of_two_rows_is_paid_once(server: FakeServer, tmp_path: Path) -> None:
    rows = make_rows(100)
    twins = [{**rows[0], "id": row["id"]} for row in rows]
    answer_rows(tmp_path / "out", twins, generator_config(server.url, parts=1))
    assert server.stats()["completed"] == totals(tmp_path / "out/ledger").calls == 1


def test_a_batch_is_not_written_beyond_the_cap(server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(BudgetReached, match="the batch may cost") as stopped:
        judge_rows(tmp_path / "out", make_rows(40), judge_config(server.url, mode="batch"), max_usd=0.001)
    assert stopped.value.code == "E510"
    assert not (tmp_path / "out/batches").exists()


def test_a_full_disk_leaves_the_call_in_doubt_and_charged(server: FakeServer, small_disk: Path) -> None:
    server.faults(latency_s=0.05)
    rows = make_rows(1500)
    with pytest.raises((EnvironmentProblem, OSError)):
        judge_rows(small_disk / "out", rows, judge_config(server.url, concurrency=8, max_tokens=8))
    found = totals(small_disk / "out/ledger")
    assert found.calls <= server.stats()["completed"] <= found.calls + found.in_doubt + found.spoiled + 8
    assert found.cost_usd > 0
