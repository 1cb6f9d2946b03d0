"""Signals to whole programs: both ways to start a training, and two processes that have to agree."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import launch
from runs import assert_same_run, read, save_backbone
from tiny_examples import ROOT, TINY

from smope_hf.storage.state_folder import INDEX_FILE, read_content

PROGRAMS = {"smope": ["-m", "smope_hf", "train"], "example": [str(ROOT / "examples" / "train.py")]}
LONG = ["--epochs", "40", "--report", "false", "--checkpoint_every", "1"]


def started(program: str, folder: Path, *more: str) -> subprocess.Popen:
    arguments = [*TINY, *LONG, "--output_dir", str(folder)]
    if program == "smope":
        arguments = [part.replace("_", "-") if part.startswith("--") else part for part in arguments]
        arguments[arguments.index("--report") : arguments.index("--report") + 2] = ["--no-report"]
    command = [sys.executable, *PROGRAMS[program], *arguments, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("program, number", [("smope", signal.SIGINT), ("example", signal.SIGTERM)])
def test_a_program_that_is_told_to_stop(tmp_path, program, number):
    process = started(program, tmp_path / "run")
    while not (tmp_path / "run" / "state" / INDEX_FILE).exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"Stopped by {number.name}. The training stands in {tmp_path}/run/state" in errors
    assert "Traceback" not in errors and "error:" not in errors
    assert read_content(tmp_path / "run" / "state")["step"] >= 1
    again = started(program, tmp_path / "run")
    _, errors = again.communicate(timeout=60)
    assert again.returncode != 0 and "already holds a task in training" in errors
    again = started(program, tmp_path / "run", "--resume")
    output, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors[-3000:]
    assert "Resuming in task 1, behind step " in output
    assert len(read(tmp_path / "run", "metrics.json")["accuracy_matrix"]) == 5


PAIR = """
import atexit, json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)

@atexit.register  # before the trainer registers its own, so it is called after that
def note_the_end():
    end = Path(sys.argv[3]) / f"end-{os.environ['RANK']}.json"
    end.write_text(json.dumps({"group_open": torch.distributed.is_initialized()}))

from runs import AtStep, drop_signal, tiny_trainer
from smope_hf.training.callbacks import ContinualCallback
from smope_hf.training.interruption import TrainingInterrupted

def tell_one(trainer):
    "The second process alone is told to stop."
    if trainer.accelerator.process_index == 1:
        signal.raise_signal(signal.SIGTERM)

class Drops(ContinualCallback):
    def on_training_end(self, trainer, task):
        if task.index == 1 and trainer.accelerator.process_index == 1:
            drop_signal(signal.SIGTERM)

folder, mode = Path(sys.argv[3]), sys.argv[4]
settings = dict(epochs=3, logging_steps=4, checkpoint_every=3, resume=mode == "resumed")
callbacks = {"stopped": [AtStep(1, 1, tell_one)], "dropped": [Drops()]}.get(mode, [])
trainer = tiny_trainer(sys.argv[2], folder, callbacks=callbacks, **settings)
try:
    trainer.train()
except TrainingInterrupted as stop:
    (folder / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps({"code": stop.code}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode, step", [("stopped", 4), ("dropped", 9)])  # where losses are read, or the next stage
def test_processes_stop_at_the_same_step_and_go_on_together(tmp_path, mode, step):
    backbone, script = save_backbone(tmp_path / "backbone"), tmp_path / "run.py"
    script.write_text(PAIR)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(2, script, backbone, str(whole), "whole")
    launch(2, script, backbone, str(cut), mode)
    content = read_content(cut / "state")
    assert (content["task"], content["step"], content["num_processes"]) == (1, step, 2)
    for rank in (0, 1):
        assert read(cut, f"rank-{rank}.json") == {"code": 143}
        (cut / f"rank-{rank}.json").unlink()
    launch(2, script, backbone, str(cut), "resumed")
    for folder in (whole, cut):  # a process that leaves with its group open can abort on the way out
        assert [read(folder, f"end-{rank}.json") for rank in (0, 1)] == 2 * [{"group_open": False}]
    assert_same_run(whole, cut)
