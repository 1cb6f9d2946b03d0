"""Runs that are killed at random moments end bit-equal to runs that nobody touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KILLS, IN_SAVING, PUSHING = 40, 50, 60


def kill(folder: Path, kills: int, *stage: str, environment: dict | None = None, timeout: int = 500) -> dict:
    driver = Path(__file__).parents[1] / "kill_driver.py"
    command = [sys.executable, str(driver), str(folder), str(kills), "0", *stage]
    environment = {**(environment or os.environ), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_kill_changes_a_result(tmp_path):
    found = kill(tmp_path, KILLS)
    assert found["kills"] >= KILLS and found["runs"] >= 3
    assert set(found["aimed"]) == {
        "dense", "sparse", "statistics", "alignment", "evaluation", "saving", "state", "finish"
    }  # fmt: skip


def test_a_kill_while_a_task_is_saved_leaves_every_saved_task_readable(tmp_path):
    found = kill(tmp_path, IN_SAVING, "saving")
    assert found["kills"] >= IN_SAVING and found["hit"]["saving"] >= IN_SAVING / 4


@pytest.mark.timeout(1500)
def test_no_kill_changes_a_result_its_records_or_its_repository(fresh_hub, tmp_path):
    """Of runs that push each task and record their routing, both in training and after each task."""
    alice = environment(fresh_hub, "hf_alice", tmp_path / "home")
    found = kill(tmp_path, PUSHING, "push", environment=alice, timeout=1400)
    assert found["kills"] >= PUSHING and found["runs"] >= 3
    assert set(found["aimed"]) == {
        "dense", "sparse", "statistics", "alignment", "evaluation", "saving", "state", "finish", "pushing", "recording"
    }  # fmt: skip
    assert found["hit"]["pushing"] and found["hit"]["recording"]
