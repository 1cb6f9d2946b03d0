"""Two runs on one folder: one is told that the other has it, and the other ends as if it had been alone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import save_backbone

from smope_hf.training.run_lock import LOCK_FILE, hold_folder

pytestmark = pytest.mark.slow
PAIRS = 20
HERE = Path(__file__).parents[1]


@pytest.mark.timeout(1200)
def test_one_of_a_pair_is_told_and_the_other_ends_bit_equal(tmp_path):
    command = [sys.executable, HERE / "pair_driver.py", tmp_path, str(PAIRS), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["pairs"] == PAIRS == sum(found["held_by"].values())


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from runs import tiny_trainer
tiny_trainer(sys.argv[2], Path(sys.argv[3])).train()
"""


def test_all_processes_of_a_second_run_are_told(tmp_path):
    """Only the main one locks; none waits for one that has ended."""
    script, backbone, run = tmp_path / "run.py", save_backbone(tmp_path / "backbone"), tmp_path / "run"
    script.write_text(SCRIPT)
    hold = hold_folder(run)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    start = time.monotonic()
    done = subprocess.run(
        [*command, HERE, backbone, run], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode != 0 and time.monotonic() - start < 200
    told = f"FolderHeldError: {run} is held by another run: process {os.getpid()} on "
    assert told in done.stderr and "destroy" not in done.stderr
    assert os.listdir(run) == [LOCK_FILE]
    hold.release()
