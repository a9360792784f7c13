"""Thousands of judgments through every fault at once: verdicts, errors and the ledger stay right, and so does the cap.

The server draws each fault by a hash of the request and of the number of its attempt, so what happens to a call does
not depend on the order of calls.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import BudgetReached
from engine.paid.ledger import Kind, LedgerIndex, Totals
from engine.paid.ledger_frames import list_segments, scan
from engine.paid.ledger_tools import verify
from engine.store import Store
from tests.fake_server import FakeServer
from tests.paid.paid_rows import PRICE, expected, judge_config, judge_rows, make_rows

ROWS, CAP_ROWS = 2500, 500
UNSENT = {"rate_limited": 0.01, "server_error_500": 0.005, "unavailable_503": 0.005}  # an answer that costs nothing
BROKEN = {
    "hang": 0.002, "reset_before": 0.003, "reset_after": 0.003, "truncated": 0.003, "truncated_chunked": 0.003,
    "malformed_json": 0.003, "not_json": 0.003, "wrong_schema": 0.003,
}  # fmt: skip
ODD = {"wrong_content_type": 0.003, "slow_drip": 0.003, "duplicated": 0.003, "half_close": 0.003}  # yet good answers
USELESS = {"unparsable": 0.004, "refusal": 0.003}  # paid for
RATES = {**UNSENT, **BROKEN, **ODD, **USELESS}
SETTINGS = {"call_timeout_s": 3.0, "concurrency": 32}
COMPARED = ["verdict", "hard", "first", "second"]
pytestmark = pytest.mark.slow


@contextmanager
def faulty_server(scale: float = 1.0) -> Iterator[FakeServer]:
    """A server with all faults; of its 429s some say how long to wait and some do not."""
    rates = {name: rate * scale for name, rate in RATES.items()}
    with FakeServer(slow_drip_s=0.3, retry_after_s=0.2, seed=3, **rates) as server:
        over = threading.Event()

        def alternate() -> None:
            forms = ["none", "ms", "seconds"]
            while not over.wait(0.3):
                forms.append(forms.pop(0))
                server.faults(retry_after=forms[-1], **rates)

        thread = threading.Thread(target=alternate)
        thread.start()
        try:
            yield server
        finally:
            over.set()
            thread.join()


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    with FakeServer() as server:
        return judge_rows(tmp_path_factory.mktemp("faultless"), make_rows(ROWS), judge_config(server.url, **SETTINGS))


def totals(ledger: Path) -> tuple[Totals, int]:
    """Of the whole ledger, and its number of distinct answered calls."""
    index = LedgerIndex(Store(ledger))
    index.refresh()
    return index.totals(), len(index)


def charged(ledger: Path) -> int:
    """SPOILED records that were charged."""
    store, found = Store(ledger), 0
    for segment in list_segments(store):
        rows = scan(store.read_bytes(segment.name), segment.begin).rows
        found += int(((rows["kind"] == Kind.SPOILED) & (rows["cost_nano_usd"] > 0)).sum())
    return found


def billed_usd(stats: dict[str, Any]) -> float:
    return (PRICE["input"] * stats["tokens_in"] + PRICE["output"] * stats["tokens_out"]) / 1e6


def check_verdicts(found: pa.Table, faultless: pa.Table) -> int:
    """Every row has a verdict or an error, and the verdicts are the right ones; the number of errors."""
    errors = found["error"].to_pylist()
    assert [verdict is None for verdict in found["verdict"].to_pylist()] == [error is not None for error in errors]
    assert all(error is None or error.startswith(("refusal: ", "unreadable: ")) for error in errors)
    good = pa.array([error is None for error in errors])
    expecting = faultless.slice(0, found.num_rows)
    assert found.filter(good).select(COMPARED).equals(expecting.filter(good).select(COMPARED))
    return found.num_rows - found["error"].null_count


def test_every_fault_at_once(faultless: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faultless["verdict"].to_pylist() == [expected(number) for number in range(ROWS)]
    out, cap_usd = tmp_path / "out", 5.0
    with faulty_server() as server:
        found = judge_rows(out, make_rows(ROWS), judge_config(server.url, **SETTINGS), max_usd=cap_usd)
        stats = server.stats()
    assert stats["faults"].keys() == RATES.keys()
    # Refusals are final, an unparsable reply is asked about once more: only calls that met those can end in error.
    failed = check_verdicts(found, faultless)
    assert stats["faults"]["refusal"] / 2 <= failed <= stats["faults"]["refusal"] + stats["faults"]["unparsable"]
    ledger, distinct = totals(out / "ledger")
    # `completed` counts well-formed completions whose last byte was written to a client still there: the good answers
    # (`ok`), those that come in an odd way, and those that are useless but paid for. Each of them, and nothing else,
    # must be a DONE record: nobody crashed, so none is in flight.
    assert stats["completed_by"].keys() == {"ok", *ODD, *USELESS}
    assert (stats["completed"], stats["distinct_completed"]) == (ledger.calls, distinct)
    assert (ledger.repeated, ledger.in_doubt) == (0, 0)
    # `billed` counts answers that a model worked for, whatever became of them on the way.
    assert stats["billed"] <= ledger.calls + charged(out / "ledger")
    assert billed_usd(stats) <= ledger.cost_usd + 1e-9
    assert ledger.cost_usd <= cap_usd
    assert not verify(Store(out / "ledger")).problems
    with capsys.disabled():
        print(f"\n{stats['received']} requests, {sum(stats['faults'].values())} faults {stats['faults']}")
        print(f"{ledger}, {failed} error rows, charged for nothing {charged(out / 'ledger')}")


def test_the_cap_holds_under_faults(faultless: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = make_rows(CAP_ROWS)
    with faulty_server(scale=3.0) as server:
        config = judge_config(server.url, **SETTINGS)
        whole = judge_rows(tmp_path / "whole", rows, config)
    cost_usd = totals(tmp_path / "whole/ledger")[0].cost_usd
    out, cap_usd = tmp_path / "out", 0.4 * cost_usd
    with faulty_server(scale=3.0) as server:
        config = judge_config(server.url, **SETTINGS)
        with pytest.raises(BudgetReached) as stopped:
            judge_rows(out, rows, config, max_usd=cap_usd)
        assert stopped.value.exit_code == 5
        ledger, distinct = totals(out / "ledger")
        assert cap_usd / 2 < ledger.cost_usd <= cap_usd
        assert ledger.in_doubt == 0
        assert (server.stats()["completed"], server.stats()["distinct_completed"]) == (ledger.calls, distinct)
        assert billed_usd(server.stats()) <= ledger.cost_usd + 1e-9
        found = judge_rows(out, rows, config, max_usd=2 * cost_usd)
        stats = server.stats()
    after, distinct = totals(out / "ledger")
    assert after.cost_usd <= 2 * cost_usd
    assert (stats["completed"], stats["repeated_completed"]) == (after.calls, 0)
    assert found.select(["error", *COMPARED]).equals(whole.select(["error", *COMPARED]))
    failed = check_verdicts(found, faultless)
    with capsys.disabled():
        spent = f"stopped at ${ledger.cost_usd:.4f}, ended at ${after.cost_usd:.4f}"
        print(f"\ncap ${cap_usd:.4f}: {spent}, {failed} errors")
