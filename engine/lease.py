"""Who drives a run folder: one driver at a time, whatever machines they are on.

A driver creates `.lease/epoch-<n>.json`, which only one can, and from then on gives signs of life in
`.lease/beat-<n>.json`. Another one watches that file: a change means that the folder is in use, none for as long as the
holder's lease means that it may be taken over, by creating epoch n+1. Only the watcher's own clock counts, so clocks
need not agree. From that moment the fence of epoch n has fallen (engine.store.Fence): a holder that was only paused,
and its workers, stop before their next write. It knows nothing of what a run does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from engine.errors import EnvironmentProblem
from engine.events import utc_now
from engine.store import Fence, Store, epoch_name

FOLDER = ".lease"
BEATS_PER_LEASE = 6
WATCH_INTERVAL_S = 1.0
_held: set[str] = set()  # by this process


class Lease:
    """The right to drive a run folder, until `release`. Also a context manager.

    Attributes:
        store: the run folder, with the fence of this epoch.
        lost: the error that says so once another driver has taken over, else None.
    """

    def __init__(self, root: str, epoch: int, owner: str, lease_s: float) -> None:
        self.store = Store(root, Fence(root, epoch))
        self.lost: EnvironmentProblem | None = None
        self._owner, self._interval_s, self._beats = owner, lease_s / BEATS_PER_LEASE, 0
        self._main = threading.current_thread() is threading.main_thread()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)
        self._beat()
        _held.add(owner)
        self._thread.start()

    @staticmethod
    def acquire(
        store: Store, lease_s: float, *, take_over: bool = False, say: Callable[[str], None] = lambda text: None
    ) -> Lease:
        """Makes this process the driver.

        Args:
            store: the run folder.
            lease_s: seconds without a sign of life after which another driver may take over.
            take_over: do not watch a holder that may be alive; it is stopped by the fence.
            say: told when there is something to wait for.

        Raises:
            EnvironmentProblem: E340, another driver is at work. E315, the storage lets two create one file.
        """
        while True:
            last = last_epoch(store)
            if last and not take_over:
                wait_for_end(store, last, say)
            owner = uuid.uuid4().hex
            claim = json.dumps({**this_process(), "owner": owner, "since": utc_now(), "lease_s": lease_s}).encode()
            name = epoch_name(last + 1)
            # a client may have repeated a request that had come through: then the file is there, and is ours
            if store.create(name, claim) or store.read_bytes(name) == claim:
                break
            take_over = False  # it was for the one that was there, not for whoever came first just now
        if not store.is_local and store.create(name, claim):
            raise EnvironmentProblem(
                f"{store.root} ignores conditional writes",
                why="a second `create only if absent` of one object succeeded, so two runs could corrupt this one",
                fix="use a store that honours `If-None-Match: *`, or a local or shared folder",
                code="E315",
            )
        return Lease(store.root, last + 1, owner, lease_s)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Ends the lease, so that the next driver need not wait."""
        self._over.set()
        self._thread.join()
        _held.discard(self._owner)
        with suppress(EnvironmentProblem, OSError):  # a full disk or a lost lease: there is nothing to give back
            self._beat(released=True)

    def _beat(self, released: bool = False) -> None:
        self._beats += 1
        fence = self.store.fence
        assert fence is not None
        self.store.write_bytes(beat_name(fence.epoch), json.dumps({"beat": self._beats, "released": released}).encode())

    def _live(self) -> None:
        while not self._over.wait(self._interval_s):
            try:
                self._beat()
            except EnvironmentProblem as error:
                if error.code != "E341":
                    continue  # no sign of life this time; what cannot be written now, the run itself will say
                self.lost = error
                if self._main:  # blocked in a call, perhaps for long
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return


def beat_name(epoch: int) -> str:
    return f"{FOLDER}/beat-{epoch:08d}.json"


def last_epoch(store: Store) -> int:
    """Number of the latest epoch, 0 when the folder never had a driver."""
    names = [name for name in store.list(FOLDER) if name.startswith("epoch-") and name.endswith(".json")]
    return max((int(name[6:-5]) for name in names), default=0)


def wait_for_end(store: Store, epoch: int, say: Callable[[str], None]) -> None:
    """Returns when the driver of an epoch is over: it said so, its process is gone, or its lease ran out unrenewed.

    Raises:
        EnvironmentProblem: E340, it gives signs of life.
    """
    holder = json.loads(store.read_bytes(epoch_name(epoch)))
    first = read_beat(store, epoch)
    if first.get("released") or is_gone(holder):
        return
    name = f"process {holder['pid']} on {holder['host']}"
    say(f"{name} held {store.root} last; watching it for up to {holder['lease_s']:g} s (--take-over does not wait)")
    end = time.monotonic() + holder["lease_s"]
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(WATCH_INTERVAL_S, left))
        beat = read_beat(store, epoch)
        if beat.get("released") or is_gone(holder):
            return
        if beat != first:
            raise EnvironmentProblem(
                f"{name} is running in {store.root}",
                why=f"it started at {holder['since']} and gives signs of life",
                fix="wait for it, stop it, or choose another out=",
                code="E340",
            )
    say(f"{name} gave no sign of life for {holder['lease_s']:g} s: taking over")


def read_beat(store: Store, epoch: int) -> dict[str, Any]:
    """The last sign of life, empty when there was none."""
    try:
        return json.loads(store.read_bytes(beat_name(epoch)))
    except FileNotFoundError:
        return {}


def this_process() -> dict[str, Any]:
    """What tells this process from every other, on any machine, now or later."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "born": born(os.getpid()),
        "machine": machine(),
    }


def born(pid: int) -> float:
    """When a process began, in a measure that no step of the clock moves: on Linux in ticks since the boot.

    Raises:
        psutil.NoSuchProcess: there is none of that number.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):  # it is gone, or this system writes down the time itself
        return psutil.Process(pid).create_time()


def machine() -> str:
    """Names a machine between two boots, and the space in which its process numbers mean something."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and os.path.lexists(space):
        return f"{boot.read_text().strip()} {os.readlink(space)}"
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def is_gone(holder: dict[str, Any]) -> bool:
    """Whether a holder's process is known to have ended. Of another machine that cannot be known."""
    me = this_process()
    if holder["machine"] != me["machine"]:
        return False
    if (holder["pid"], holder["born"]) == (me["pid"], me["born"]):
        return holder["owner"] not in _held
    try:
        process = psutil.Process(holder["pid"])
        return born(holder["pid"]) != holder["born"] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
