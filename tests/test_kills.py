"""Runs that are killed at random moments end bit-equal to runs that nobody touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KILLS = 40


def test_no_kill_changes_a_result(tmp_path):
    driver = Path(__file__).parent / "kill_driver.py"
    command = [sys.executable, str(driver), str(tmp_path), str(KILLS), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= KILLS and found["runs"] >= 3
    assert set(found["aimed"]) == {
        "dense", "sparse", "statistics", "alignment", "evaluation", "saving", "state", "finish"
    }  # fmt: skip
