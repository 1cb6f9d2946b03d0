"""The examples run as the README says, in a process of their own."""

import json
import os
import subprocess
import sys

import pytest
from tiny_examples import ROOT, TINY


def run(*arguments, check=True):
    command = [sys.executable, str(ROOT / "examples" / "train.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_train_with_a_recipe_a_tracker_and_yardsticks(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("yardsticks: true\nepochs: 3\ncrop_scale: [0.7, 1.0]\nreport_to: tensorboard\n")
    done = run(recipe, *TINY, "--output_dir", tmp_path / "run")
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["recipe"]["epochs"] == 1  # the command line has the last word
    assert content["recipe"]["crop_scale"] == [0.7, 1.0]
    assert set(content["yardsticks"]) == {"ncm", "lda", "linear"}
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    for text in ("after", "task 5", "SMoPE", "NCM on frozen features", "LDA on frozen features", "linear head"):
        assert text in done.stdout, text


@pytest.mark.slow
def test_a_mistake_is_one_line(tmp_path):
    for wrong, message in {
        ("--num_tasks", "3"): "num_tasks=3",
        ("--top_k", "26"): "top_k = 26",
        ("--epochs", "0"): "epochs = 0",
        ("--dataset", tmp_path / "nowhere"): "nowhere",
    }.items():
        done = run(*TINY, "--output_dir", tmp_path / "run", *wrong, check=False)
        assert done.returncode != 0 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_story_of_three_people_and_two_repositories(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "share_and_go_on.py"), "--epochs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "alice/digits has 4 commits and the tags task-01, task-02, task-03" in done.stdout
    assert "bob/digits has 2 commits and the tags task-03" in done.stdout
    knows = [line for line in done.stdout.splitlines() if " knows " in line and not line.startswith(" ")]
    assert [line.count(",") for line in knows] == [3, 5, 5] and "nine" in knows[2].partition(";")[0]
