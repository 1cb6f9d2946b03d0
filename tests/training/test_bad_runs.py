"""Runs on data with broken images: refused before they begin, or finished without them, with a list of these rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import TINY, fails, smope
from datasets import DatasetDict
from digit_data import NAMES, change, make, write_folders
from runs import assert_same_tensors, read, save_backbone, tiny_trainer

from smope_hf.data.tasks import TaskStream
from smope_hf.reports.run_folder import RunFolder
from smope_hf.reports.run_report import write_report
from smope_hf.reports.run_warnings import warnings_of_run

EMPTY = {"bytes": b"", "path": None}
OPTIONS = {"class_lists": [NAMES[:2], NAMES[2:4], NAMES[4:6]], "max_train_samples_per_class": 6}
PROCESSES = """
import sys
from pathlib import Path
here = Path(sys.argv[1])
sys.path[:0] = [str(here), str(here.parent)]
from test_bad_runs import bad_stream
from runs import tiny_trainer
tiny_trainer(sys.argv[2], Path(sys.argv[3]), bad_stream(), on_bad_image="skip", epochs=1).train()
"""


def last_rows() -> tuple[int, int]:
    """A training and a test image of the last task."""
    task = TaskStream(make(), **OPTIONS)[2]
    return int(task.train.source_rows[4]), int(task.test.source_rows[1])


def bad_stream() -> TaskStream:
    train, test = last_rows()
    data = change(change(make(), "train", train, image=EMPTY), "test", test, image=EMPTY)
    return TaskStream(data, **OPTIONS)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def skipped(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("skipped") / "run"
    tiny_trainer(backbone, folder, bad_stream(), on_bad_image="skip", epochs=1).train()
    return folder


def test_a_bad_image_of_the_last_task_is_told_before_the_first_step(backbone, tmp_path):
    train, test = last_rows()
    where = rf"row {train} of split 'train', column 'image': the file is empty; row {test} of split 'test'"
    with pytest.raises(ValueError, match=rf"^2 of \d+ images cannot be used. {where}.*--on-bad-image skip"):
        tiny_trainer(backbone, tmp_path / "run", bad_stream())
    assert not (tmp_path / "run").exists()


def test_what_is_skipped_is_counted_and_listed_everywhere(skipped):
    train, test = last_rows()
    listed = read(skipped, "skipped_images.json")
    assert listed["count"] == 2 == len(listed["images"])
    rows = [{key: image[key] for key in ("task_index", "used_for", "row", "column")} for image in listed["images"]]
    assert rows == [
        {"task_index": 2, "used_for": "train", "row": train, "column": "image"},
        {"task_index": 2, "used_for": "test", "row": test, "column": "image"},
    ]
    for manifest in (read(skipped, "manifest.json"), read(skipped / "task-03", "manifest.json")):
        assert manifest["information"]["skipped_images"] == listed["images"]
    content = read(skipped, "metrics.json")
    assert content["test_counts"] == [8, 8, 7] and sorted(content["training_images_by_class"]) == [5, 6, 6, 6, 6, 6]
    (told,) = [text for text in warnings_of_run(RunFolder(skipped)) if "left out" in text]
    assert "2 images were left out" in told and "(1 to train, 1 to test)" in told and f"row {train} of" in told
    assert "2 images were left out" in write_report(skipped).read_text()
    assert str(Path.cwd()) not in json.dumps(listed)


def test_a_run_that_skips_is_the_run_on_the_data_without_these_rows(backbone, skipped, tmp_path):
    rows = dict(zip(("train", "test"), last_rows()))
    stream = TaskStream(make(), **OPTIONS).with_splits(
        lambda task, name: task.splits[name].without(np.flatnonzero(task.splits[name].source_rows == rows[name]), [])
    )
    tiny_trainer(backbone, tmp_path / "run", stream, epochs=1).train()
    for name in ("task-01", "task-03"):
        assert_same_tensors(skipped / name, tmp_path / "run" / name)
    hashes = [read(folder, "manifest.json")["protocol_hash"] for folder in (skipped, tmp_path / "run")]
    assert hashes[0] == hashes[1]


def test_the_terminal_tells_and_a_resumed_run_skips_the_same(backbone, tmp_path, capsys):
    run = tmp_path / "run"
    first = tiny_trainer(backbone, run, bad_stream(), on_bad_image="skip", epochs=1)
    told = capsys.readouterr().out
    assert "Skipped 2 of " in told and "row " in told and "skipped_images.json" in told
    learn, done = first._learn, []

    def stop(task, manifest):
        if task.index == 2:
            raise KeyboardInterrupt
        learn(task, manifest)
        done.append(task.index)

    first._learn = stop
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert done == [0, 1] and read(run, "skipped_images.json")["count"] == 2
    again = {"on_bad_image": "skip", "epochs": 1, "resume": True}
    mended = TaskStream(make(), **OPTIONS)
    with pytest.raises(ValueError, match="protocol_hash"):  # the images are there now: it is another protocol
        tiny_trainer(backbone, run, mended, **again).train()
    tiny_trainer(backbone, run, bad_stream(), **again).train()
    assert read(run, "manifest.json")["information"]["skipped_images"] == read(run, "skipped_images.json")["images"]


@pytest.mark.slow
def test_two_processes_skip_the_same(backbone, skipped, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(PROCESSES)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    command += [str(Path(__file__).parent), backbone, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Skipped 2 of ") == 1
    for file in ("skipped_images.json", "manifest.json"):
        assert read(tmp_path / "run", file) == read(skipped, file)


def test_a_run_without_bad_images_leaves_no_list_of_an_earlier_one(backbone, tmp_path):
    (tmp_path / "skipped_images.json").write_text("{}")
    stream = TaskStream(DatasetDict(make()), class_lists=[NAMES[:2]], max_train_samples_per_class=2)
    tiny_trainer(backbone, tmp_path, stream, epochs=1).train()
    assert not (tmp_path / "skipped_images.json").exists()


@pytest.mark.slow
def test_the_commands_refuse_or_skip_and_say_so(backbone, tmp_path):
    """train, evaluate and add-classes on folders of images, one of them empty in each."""
    old, new = write_folders(tmp_path / "old"), write_folders(tmp_path / "new")
    for name in NAMES:
        known = name in NAMES[:5]
        for split in ("train", "test"):
            for file in ((new if known else old) / split / name).iterdir():
                file.unlink()
            ((new if known else old) / split / name).rmdir()
    for folder, name in ((old, NAMES[1]), (new, NAMES[7])):
        for split in ("train", "test"):
            (folder / split / name / "001.png").write_bytes(b"")
    run, more = tmp_path / "run", tmp_path / "more"
    train = ["train", "--dataset", old, *TINY[2:], "--backbone", backbone, "--output-dir", run]
    train[train.index("--max-train-samples-per-class") + 1] = "20"
    train[train.index("--max-test-samples-per-class") + 1] = "20"
    assert "the file is empty" in fails(*train) and not run.exists()
    assert "Skipped 2 of 80 images" in smope(*train, "--on-bad-image", "skip").stdout
    message = fails("evaluate", run, "--data", old)
    assert "1 of 20 images cannot be used. row " in message and "--skip-bad" in message
    done = smope("evaluate", run, "--data", old, "--skip-bad", "--json")
    report = json.loads(done.stdout)
    assert report["images"] == 19 and report["skipped_images"][0]["reason"] == "the file is empty"
    assert "skipped row " in done.stderr
    add = ["add-classes", run, "--data", new, "--test-data", old, "--output", more]
    assert "3 of 100 images cannot be used" in fails(*add)
    assert "Skipped 3 of 100 images" in smope(*add, "--on-bad-image", "skip").stdout
    found = [(image["task_index"], image["used_for"]) for image in read(more, "skipped_images.json")["images"]]
    first = found[0][0]
    assert found == [(first, "train"), (first, "test"), (5, "train"), (5, "test")]
