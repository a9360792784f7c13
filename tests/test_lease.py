"""One driver in a run folder: real processes that are killed, paused beyond their lease, or simply there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine.cli import run_cli
from engine.errors import EnvironmentProblem
from engine.lease import Lease, born, is_gone, last_epoch, this_process
from engine.paid.ledger import Kind, LedgerWriter
from engine.store import Store
from tests.conftest import EXAMPLE_POOL
from tests.paid.ledgers import RUN, fresh, record
from tests.runs import outputs

HOLD = """
import sys, time
from engine.lease import Lease
from engine.store import Store
lease = Lease.acquire(Store(sys.argv[1]), float(sys.argv[2]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "run")
    request.getfixturevalue("s3_server")
    return Store(f"s3://bucket/{tmp_path.name}")


def holder(folder: Store, lease_s: float) -> subprocess.Popen[str]:
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD, folder.root, str(lease_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_step_of_the_clock_does_not_end_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil adds the time of the boot to a process's age; a corrected clock moves it, here by a minute."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claim = {**this_process(), "pid": process.pid, "born": born(process.pid), "owner": "another"}
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 60)
    try:
        assert not is_gone(claim)
        assert is_gone({**claim, "born": claim["born"] - 1})  # the number was given anew
    finally:
        process.kill()
        process.wait()
    assert is_gone(claim)


def test_a_living_driver_is_left_alone_and_a_dead_one_replaced_at_once(folder: Store) -> None:
    process = holder(folder, 3)
    try:
        with pytest.raises(EnvironmentProblem, match=f"process {process.pid} on .* is running") as caught:
            Lease.acquire(folder, 3)
        assert caught.value.code == "E340"
    finally:
        process.kill()
    process.wait()
    started = time.monotonic()
    with Lease.acquire(folder, 600) as lease:  # its process is gone, which this machine knows
        assert lease.store.fence is not None and lease.store.fence.epoch == 2
    with Lease.acquire(folder, 600):  # the one before gave it back
        assert last_epoch(folder) == 3
    assert time.monotonic() - started < 60


def test_a_paused_driver_is_taken_over_and_writes_nothing_more(folder: Store) -> None:
    old, told = Lease.acquire(folder, 600), list[str]()  # so rarely does it beat that it is as good as paused
    sub = old.store.sub("steps")
    sub.write_bytes("mine", b"1")
    with Lease.acquire(folder, 600, take_over=True, say=told.append) as new:
        for write in (
            lambda: sub.write_bytes("mine", b"2"),
            lambda: sub.create("late", b""),
            lambda: sub.append_line("log", "late"),
            lambda: sub.remove("mine"),
        ):
            with pytest.raises(EnvironmentProblem, match=r"lost .* to another one") as caught:
                write()
            assert caught.value.code == "E341"
        assert folder.list("steps") == ["mine"] and folder.read_bytes("steps/mine") == b"1"
        new.store.write_bytes("steps/mine", b"3")
    old.release()
    assert told == [] and last_epoch(folder) == 2


def test_a_lost_driver_begins_no_paid_call_and_records_those_it_paid_for(folder: Store) -> None:
    with Lease.acquire(folder, 600) as old:
        writer = LedgerWriter(old.store.sub("ledger"))
        writer.write([record("a", Kind.INTENT), record("b", Kind.INTENT)])
        with Lease.acquire(folder, 600, take_over=True):
            with pytest.raises(EnvironmentProblem, match="E341"):
                writer.write([record("a"), record("c", Kind.INTENT)])
            writer.write([record("b")])
    totals = fresh(folder.sub("ledger")).totals(RUN)
    assert (totals.calls, totals.in_doubt) == (2, 0)


def as_another_machine() -> list[str]:
    """Prefix of a command: with a host name and process numbers of its own, where that is allowed."""
    return ["unshare", "--uts", "--pid", "--fork", "--mount-proc"] if os.geteuid() == 0 else []


@pytest.mark.slow
def test_a_driver_paused_beyond_its_lease_ends_with_an_error_and_spoils_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second has another seed, so whatever the first still wrote would be seen."""
    out = tmp_path / "out"

    def command(seed: int, folder: Path) -> list[str]:
        line = [str(EXAMPLE_POOL), f"out={folder}", f"seed={seed}", "budget=300", "data.part_rows=20"]
        return ["run", "random", *line, "runtime.lease_s=2", "--local"]

    base = [sys.executable, "-m", "engine"]
    first = subprocess.Popen([*base, *command(1, out)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not list(out.glob("steps/ingest-*/*.commit")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = subprocess.run(
        [*as_another_machine(), *base, *command(2, out)], capture_output=True, text=True, check=False
    )
    assert second.returncode == 0, second.stderr
    assert "watching it for up to 2 s" in second.stderr and "taking over" in second.stderr
    after = outputs(out)
    status = (out / "status.json").read_bytes()
    first.send_signal(signal.SIGCONT)
    _, told = first.communicate(timeout=120)
    assert first.returncode == 3 and "error E341" in told and "lost" in told and "Traceback" not in told
    assert outputs(out) == after and (out / "status.json").read_bytes() == status
    assert json.loads(status)["state"] == "done" and json.loads((out / "run.json").read_text())["epoch"] == 2
    assert run_cli([*command(2, tmp_path / "undisturbed")]) == 0
    capsys.readouterr()
    assert after == outputs(tmp_path / "undisturbed")
