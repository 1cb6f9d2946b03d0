"""A state saved within a task is refused where it is broken or of another run; a failed saving leaves the old one."""

import os
import shutil

import pytest
from mid_task_runs import RUN, make, resumed, stopped, whole_runs
from runs import (  # noqa: F401 (of the fixture)
    assert_same_run,
    save_backbone,
    tiny_args,
    tiny_stream,
    tiny_trainer,
)

from smope_hf import ContinualTrainer
from smope_hf.storage.state_folder import INDEX_FILE, read_content, read_tensors, write_state


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    return whole_runs(backbone, tmp_path_factory)


@pytest.fixture(scope="module")
def cut(backbone, tmp_path_factory):
    """A run that was lost in its second task."""
    folder = tmp_path_factory.mktemp("cut")
    stopped(backbone, folder, 1, 5)
    return folder


@pytest.fixture
def copy(cut, tmp_path):
    return shutil.copytree(cut, tmp_path / "run")


def test_a_run_in_training_is_not_overwritten(backbone, copy):
    with pytest.raises(FileExistsError, match="already holds learned tasks, up to task-01"):
        make(backbone, copy)
    shutil.rmtree(copy / "task-01")
    with pytest.raises(FileExistsError, match="already holds a task in training, in .*state. Set resume"):
        make(backbone, copy)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rate": 0.1}, "learning_rate was 0.005 and is 0.1"),
        ({"model_fields": {"top_k": 3}}, "top_k was 2 and is 3"),
        ({"stream": tiny_stream(seed=1)}, "tasks are others"),
    ],
    ids=["recipe", "model", "tasks"],
)
def test_a_state_of_another_run_is_refused(backbone, tmp_path, change, message):
    stopped(backbone, tmp_path, 0, 5)
    with pytest.raises(ValueError, match=message):
        tiny_trainer(backbone, tmp_path, resume=True, **RUN, **change).train()


def test_a_state_that_follows_another_task_is_refused(backbone, whole, copy):
    expected, _, _ = whole()
    shutil.rmtree(copy / "task-01")
    with pytest.raises(ValueError, match="a state of task 2, which does not follow the last whole task there is"):
        resumed(backbone, copy)
    other = copy.parent / "other"
    tiny_trainer(backbone, other, stream=tiny_stream(), seed=1).train()
    shutil.copytree(other / "task-01", copy / "task-01")
    with pytest.raises(ValueError, match="seed was 1 and is 0"):
        resumed(backbone, copy)


def test_a_state_stays_where_the_folder_of_its_task_is_missing(backbone, whole, copy):
    """Nor is that of the task before it there, by which another run would be told."""
    expected, _, _ = whole()
    shutil.rmtree(copy / "task-01")
    trainer = ContinualTrainer.from_checkpoint(
        expected / "task-02", tiny_stream(num_tasks=None, class_lists=[list(tiny_stream()[2].class_names)]),
        output_dir=copy, resume=True, disable_progress=True, **RUN,
    )  # fmt: skip
    with pytest.raises(ValueError, match="a state of task 2, whose folder is not there; the model knows 2"):
        trainer.train()
    assert read_content(copy / "state")["step"] == 4


def test_a_state_of_a_task_that_is_whole_is_removed(backbone, whole, copy):
    expected, _, _ = whole()
    shutil.copytree(expected / "task-02", copy / "task-02")
    resumed(backbone, copy)
    assert_same_run(expected, copy)


def damage(folder, kind):
    (tensors,) = folder.glob("*.safetensors")
    index = folder / INDEX_FILE
    if kind == "no tensors":
        tensors.unlink()
    elif kind == "not an object":
        index.write_text("[]")
    elif kind == "another step":
        index.write_text(index.read_text().replace('"step": 4', '"step": 5'))
    elif kind == "newer":
        index.write_text(index.read_text().replace('"format_version": 1', '"format_version": 2'))
    else:
        file = tensors if "tensors" in kind else index
        content = bytearray(file.read_bytes())
        if "truncated" in kind:
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 4
        file.write_bytes(content)


@pytest.mark.parametrize(
    "kind",
    ["truncated tensors", "flipped tensors", "no tensors", "truncated JSON", "flipped JSON", "not an object",
     "another step", "newer"],
)  # fmt: skip
def test_a_broken_state_is_refused_with_advice(backbone, whole, copy, kind):
    expected, _, _ = whole()
    damage(copy / "state", kind)
    advice = "Install the version that wrote it" if kind == "newer" else f"Remove {copy}/state to go on behind the"
    with pytest.raises(ValueError, match=advice):
        resumed(backbone, copy)
    shutil.rmtree(copy / "state")
    resumed(backbone, copy)  # what was advised helps
    assert_same_run(expected, copy)


@pytest.mark.parametrize(
    "change, without, message",
    [
        ({"num_processes": 2}, None, "is one of 2 processes, not of 1. Start as many"),
        ({"steps": 7}, None, "does not fit the run: a phase of 7 steps"),
        ({}, "model.classifier.bias", "does not fit the run: model.classifier.bias"),
        ({}, "exp_avg.classifier.weight", "does not fit the run: exp_avg.classifier.weight"),
        ({"optimizer_steps": {"elsewhere": 4}}, None, "does not fit the run: "),
    ],
)
def test_a_state_that_does_not_fit_is_refused(backbone, copy, change, without, message):
    folder = copy / "state"
    content, tensors = read_content(folder), read_tensors(folder, read_content(folder))
    write_state(folder, {**content, **change}, {key: value for key, value in tensors.items() if key != without})
    with pytest.raises(ValueError, match=message + ".*Remove .*state to go on"):
        resumed(backbone, copy)


def test_a_saving_that_fails_leaves_the_state_before(backbone, whole, tmp_path, monkeypatch):
    expected, _, _ = whole()
    import smope_hf.storage.state_folder as module

    right, calls = module.save_file, []

    def full(tensors, path):
        calls.append(0)
        if len(calls) == 4:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        right(tensors, path)

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left .* the one before is whole. Make room"):
        make(backbone, tmp_path).train()
    assert len(os.listdir(tmp_path / "state")) == 2
    resumed(backbone, tmp_path)
    assert_same_run(expected, tmp_path)


@pytest.mark.parametrize("setting", [{"checkpoint_every": -1}, {"checkpoint_every": 2.5}, {"checkpoint_every": True}])
def test_wrong_settings(tmp_path, setting):
    with pytest.raises(ValueError, match="checkpoint_every = .* is not allowed"):
        tiny_args(tmp_path, **setting)
    with pytest.raises(ValueError, match="save_checkpoints is off"):
        tiny_args(tmp_path, checkpoint_every=1, save_checkpoints=False)
