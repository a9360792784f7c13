"""Can this machine's driver join a Ray cluster? Part of `iterselect doctor`."""

from __future__ import annotations

import os
import socket

import ray

from actors.cluster import connect
from engine.doctor import Check
from engine.errors import IterselectError

CONNECT_TIMEOUT_S = 5.0


def check_ray(address: str | None) -> Check:
    """Joins the cluster and leaves it again; Ray itself refuses other versions of Ray and Python.

    Args:
        address: as in runtime.address; None: RAY_ADDRESS, and nothing to check without it.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        return Check("ray cluster", "ok", "no address: a run starts its own on this machine")
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdigit():
        try:  # Ray itself would try for half a minute
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            fix = "check the address (the GCS port, usually 6379), the network, and that `ray start --head` has run"
            return Check("ray cluster", "fail", f"nothing answers at {address}: {type(error).__name__}", fix)
    try:
        has = connect(address)
    except IterselectError as error:
        return Check("ray cluster", "fail", " ".join(f"{error.what}: {error.why}".split()), error.fix)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
    found = f"{address}: {len(nodes)} nodes, {has.cpus:g} CPUs, {has.gpus:g} GPUs, Ray {ray.__version__} as here"
    return Check("ray cluster", "ok", found)
