"""A disk that is really full in the middle of a run on Ray: a clear error, and the same bytes once there is room."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EnvironmentProblem
from tests.conftest import Recorder
from tests.runs import config_for, outputs, run_local, run_ray

pytestmark = [pytest.mark.slow, pytest.mark.ray]


class Filler(Recorder):
    """Fills a disk to the last byte when a step begins."""

    def __init__(self, disk: Path, step: str) -> None:
        super().__init__()
        self.file, self.step = disk / "filler", step

    def step_started(self, name: str, total_rows: int) -> None:
        if name != self.step:
            return
        with open(self.file, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return


@pytest.mark.parametrize("step", ["embed", "rounds/000/answers"])  # workers of a pass; members of a group
def test_a_disk_that_fills_up_in_a_step(
    small_pool: Path, small_disk: Path, tmp_path: Path, ray_cluster: Any, step: str
) -> None:
    out = small_disk / "run"
    filler = Filler(small_disk, step)
    with pytest.raises(EnvironmentProblem, match="No space left on device") as caught:
        run_ray(config_for(small_pool, out), filler, workers=2, shards=3)
    assert caught.value.code == "E310" and "same command again" in caught.value.fix
    assert list((out / "steps").glob("ingest-*/step.json")) and not list(out.glob(f"{step}-*/step.json"))
    filler.file.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    after = Recorder()
    run_ray(config_for(small_pool, out), after, workers=2, shards=3)
    assert ("ingest", True) in after.done and (step, False) in after.done
    run_local(config_for(small_pool, tmp_path / "undisturbed"), Recorder())
    assert outputs(out) == outputs(tmp_path / "undisturbed")
