"""`examples/speed_share.py`: a run as train.py does it, with the model's time taken apart from the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import assert_same_tensors

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = [
    "--dataset", "embedded", "--backbone", "embedded", "--num_tasks", "2", "--max_train_samples_per_class", "6",
    "--max_test_samples_per_class", "3", "--epochs", "2", "--batch_size", "5", "--num_threads", "1",
    "--disable_progress", "true", "--report", "false",
]  # fmt: skip


def run(script, folder, *options):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / script), *TINY, "--output_dir", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)


@pytest.mark.slow
def test_it_counts_every_image_and_changes_nothing(tmp_path):
    for script, folder in (("speed_share.py", "timed"), ("train.py", "plain")):
        done = run(script, tmp_path / folder)
        assert done.returncode == 0, done.stderr
    for task in ("task-01", "task-02"):
        assert_same_tensors(tmp_path / "timed" / task, tmp_path / "plain" / task)
    found = json.loads((tmp_path / "timed" / "share.json").read_text())
    # 30 images a task to train on: two epochs and a pass at the end, the first task's dense epoch, the second's pass
    # through the old prompts for drift compensation; and the test images of all tasks so far
    assert found["images_through_the_model"] == 2 * (2 * 30 + 30) + 30 + 30 + 15 + 30
    stages = found["seconds_by_stage"]
    assert {"training", "statistics", "evaluation", "saving", "outside every stage"} <= stages.keys()
    assert sum(stages.values()) == pytest.approx(found["seconds"])
    passes = stages["training"] + stages["statistics"] + stages["evaluation"]
    assert 0 < found["inside_the_model"] < passes
    assert found["share_outside"] == pytest.approx(1 - found["inside_the_model"] / found["seconds"])


@pytest.mark.parametrize("option", ["--resume", "--yardsticks"])
def test_a_run_that_it_would_measure_wrongly_is_refused(tmp_path, option):
    done = run("speed_share.py", tmp_path / "run", option, "true")
    assert done.returncode == 1 and "Give --resume false --yardsticks false" in done.stderr
    assert not (tmp_path / "run").exists()
