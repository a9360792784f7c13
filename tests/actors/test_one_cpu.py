"""A cluster of one CPU is enough: nothing waits for a second one, and the bytes are the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Recorder
from tests.runs import config_for, outputs, run_local

SCRIPT = """
import sys
from pathlib import Path

import ray

from tests.conftest import Recorder
from tests.runs import config_for, run_ray

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
run_ray(config_for(Path(sys.argv[1]), sys.argv[2]), Recorder(), workers=None, shards=None)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_one_cpu(small_pool: Path, tmp_path: Path) -> None:
    run_local(config_for(small_pool, tmp_path / "local"), Recorder())
    command = [sys.executable, "-c", SCRIPT, str(small_pool), str(tmp_path / "ray")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")
