"""A node that is cut off the network while its processes live on: the run goes on without it, with the same bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Recorder
from tests.networks import Networks, refusal
from tests.runs import FINE, config_for, outputs, run_local, settings, wait_for_parts

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def networks() -> Iterator[Networks]:
    why = refusal()
    if why:
        pytest.skip(why)
    made = Networks(3)
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_a_node_is_cut_off_in_the_middle_of_a_step(small_pool: Path, tmp_path: Path, networks: Networks) -> None:
    run_local(config_for(small_pool, tmp_path / "undisturbed", *FINE), Recorder())
    assert len({address.rpartition(".")[2] for address in networks.addresses()}) == 3  # an address of its own each
    out = tmp_path / "out"
    line = settings(small_pool, out, *FINE, f"runtime.address={networks.address}")
    with open(tmp_path / "driver.log", "wb") as log:
        driver = networks.popen(
            [sys.executable, "-m", "engine", "run", "iterselect", *line, "--quiet"], stdout=log, stderr=log
        )
        wait_for_parts(out, "steps/embed", 3, driver)
        networks.cut(2)
        assert driver.wait(timeout=600) == 0, (tmp_path / "driver.log").read_text()
    assert outputs(out) == outputs(tmp_path / "undisturbed")
    assert len(networks.addresses()) == 2
