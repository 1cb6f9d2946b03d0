"""One of two processes is killed while they train: the other ends, says so, and the run can go on."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import launch
from runs import assert_same_run, save_backbone

from smope_hf.sharing.checkpoint import load_statistics, saved_tasks
from smope_hf.sharing.source import find_checkpoint
from smope_hf.storage.state_folder import read_content

MINUTE = 60

SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from runs import AtStep, tiny_trainer

def die(trainer):
    "One process is killed within a step, with the other in the middle of it."
    if trainer.accelerator.process_index == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)

folder, mode = Path(sys.argv[3]), sys.argv[4]
print("process", os.getpid(), flush=True)
settings = dict(epochs=3, logging_steps=2, checkpoint_every=2, resume=mode == "resumed")
tiny_trainer(sys.argv[2], folder, callbacks=[AtStep(1, 3, die)] if mode == "killed" else [], **settings).train()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_process_ends_within_a_minute_and_the_run_goes_on(tmp_path, victim):
    backbone, script = save_backbone(tmp_path / "backbone"), tmp_path / "run.py"
    script.write_text(SCRIPT)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(2, script, backbone, str(whole), "whole", "-1")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    command = [*command, str(Path(__file__).parents[1]), backbone, str(cut), "killed", str(victim)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not (cut / "task-01").exists():
            assert process.poll() is None, process.stdout.read()[-3000:]
            time.sleep(0.05)
        start = time.monotonic()
        output, _ = process.communicate(timeout=2 * MINUTE)
    finally:
        process.kill()
    assert process.returncode != 0 and time.monotonic() - start < MINUTE  # from before the kill
    assert "Signal 9 (SIGKILL)" in output and f"local_rank: {victim}" in output
    pids = [int(pid) for pid in re.findall(r"^process (\d+)", output, flags=re.M)]
    assert len(pids) == 2 and not any(map(alive, pids))

    assert [folder.name for folder in saved_tasks(cut)] == ["task-01"] and not list(cut.glob(".task-*"))
    assert find_checkpoint(cut / "task-01").load_model().config.num_labels == 2
    assert len(load_statistics(cut / "task-01")[0].count) == 2
    assert (read_content(cut / "state")["task"], read_content(cut / "state")["step"]) == (1, 2)
    launch(2, script, backbone, str(cut), "resumed", "-1")
    assert_same_run(whole, cut)
