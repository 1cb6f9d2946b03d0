"""Teaching a saved model more classes: equal to having learned them in the original run, and safe from mistakes."""

import contextlib
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from continued_runs import COMPUTING, folder_of, interrupt, new_stream, old_tests, whole_run
from runs import AtStep, assert_same_tensors, read, tiny_stream
from safetensors.numpy import load_file, save_file

from smope_hf import ContinualTrainer, SMoPEForImageClassification
from smope_hf.data.continued_stream import ContinuedStream
from smope_hf.reports.run_folder import RunFolder
from smope_hf.reports.run_warnings import warnings_of_run
from smope_hf.sharing.checkpoint import load_manifest, load_state, saved_tasks
from smope_hf.storage.files import write_json
from smope_hf.training.phase import TrainingDivergedError
from smope_hf.training.result_files import RESULT_FILES, keep_results
from smope_hf.training.yardsticks import run_yardsticks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_run(tmp_path_factory)


def test_it_equals_having_learned_the_task_in_the_original_run(whole, tmp_path):
    trainer = ContinualTrainer.from_checkpoint(
        folder_of(whole, 2), new_stream(whole, 3), output_dir=tmp_path, old_tests=old_tests(whole, 2), **COMPUTING
    )
    content = trainer.train()
    assert_same_tensors(tmp_path / "task-03", folder_of(whole, 3))
    assert read(tmp_path / "task-03", "routing.json") == read(folder_of(whole, 3), "routing.json")
    assert content["accuracy_matrix"] == whole.state.matrix.to_json()
    assert content["metrics"] == read(folder_of(whole, 3).parent, "metrics.json")["metrics"]
    assert content["protocol_hash"] == whole.stream.manifest()["protocol_hash"]
    assert load_manifest(tmp_path / "task-03")["tasks"] == load_manifest(folder_of(whole, 3))["tasks"]
    config = read(tmp_path / "task-03", "config.json")
    assert config["tasks"] == [[0, 1], [2, 3], [4, 5]] and not (tmp_path / "task-02").exists()


def test_several_tasks_can_be_added_and_an_interruption_changes_nothing(whole, tmp_path):
    """Two tasks at once behind the first; the second attempt resumes behind the first one's new task."""

    class Interrupt(ContinualTrainer):
        def notify(self, event, *what):
            if event == "on_task_begin" and what[0].index == 2:
                raise KeyboardInterrupt

    def attempt(trainer_class, resume):
        return trainer_class.from_checkpoint(
            folder_of(whole, 1), new_stream(whole, 2, 3), output_dir=tmp_path, resume=resume, **COMPUTING
        )

    with pytest.raises(KeyboardInterrupt):
        attempt(Interrupt, False).train()
    with pytest.raises(FileExistsError, match="learned tasks, up to task-02.*--resume"):
        attempt(ContinualTrainer, False)
    attempt(ContinualTrainer, True).train()
    for number in (2, 3):
        assert_same_tensors(tmp_path / f"task-{number:02d}", folder_of(whole, number))


def test_an_addition_in_the_runs_own_folder_is_resumed_by_the_same_command(whole, tmp_path):
    """The folder's last task is a new one by then, and its classes are those to learn."""
    shutil.copytree(folder_of(whole, 1), tmp_path / "task-01")
    write_json(tmp_path / "metrics.json", {"accuracy_matrix": [[1.0]], "protocol_hash": "of one task"})
    assert RunFolder(tmp_path).finished

    def attempt(*numbers, callbacks=(), **settings):
        return ContinualTrainer.from_checkpoint(
            tmp_path, new_stream(whole, *numbers), output_dir=tmp_path, callbacks=callbacks, **settings, **COMPUTING
        )

    with pytest.raises(KeyboardInterrupt):
        attempt(2, 3, callbacks=[AtStep(1, 2, interrupt)], checkpoint_every=1).train()
    assert not RunFolder(tmp_path).finished and len(saved_tasks(tmp_path)) == 1
    with pytest.raises(KeyboardInterrupt):
        attempt(2, 3, callbacks=[AtStep(2, 1, interrupt)], resume=True).train()
    run = RunFolder(tmp_path)  # of two tasks by now, and metrics.json tells of one
    assert not run.finished and len(run.matrix) == 2 and len(run.manifest["tasks"]) == 2
    assert "The run is not finished" in warnings_of_run(run)[0]
    with pytest.raises(ValueError, match="knows these classes already"):
        attempt(2, 3)
    assert attempt(3, resume=True).num_known == 2  # other classes are a new addition
    trainer = attempt(2, 3, resume=True)
    assert trainer.num_known == 1
    trainer.train()
    for number in (2, 3):
        assert_same_tensors(tmp_path / f"task-{number:02d}", folder_of(whole, number))
    assert load_state(tmp_path / "task-03")["continued_from"]["num_tasks"] == 1
    assert read(tmp_path / "results-task-01", "metrics.json")["protocol_hash"] == "of one task"
    assert RunFolder(tmp_path).finished


def test_a_run_folder_means_its_last_task_and_can_take_the_new_one(whole, tmp_path):
    for number in (1, 2):
        shutil.copytree(folder_of(whole, number), tmp_path / f"task-{number:02d}")
    (tmp_path / "metrics.json").write_text('{"metrics": "of two tasks"}')
    (tmp_path / "report.html").write_text("of two tasks")
    trainer = ContinualTrainer.from_checkpoint(tmp_path, new_stream(whole, 3), output_dir=tmp_path, **COMPUTING)
    trainer.train()
    assert_same_tensors(tmp_path / "task-03", folder_of(whole, 3))
    assert read(tmp_path / "results-task-02", "metrics.json") == {"metrics": "of two tasks"}
    assert (tmp_path / "results-task-02" / "report.html").read_text() == "of two tasks"
    assert "It went on from a checkpoint on disk" in (tmp_path / "report.html").read_text()
    assert read(tmp_path, "metrics.json")["protocol_hash"] == whole.stream.manifest()["protocol_hash"]


@pytest.mark.parametrize("there", [(1, 2), (1,)], ids=["as many tasks", "fewer tasks"])
@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_are_not_mixed_in_one_folder(whole, tmp_path, there, resume):
    """The new task would stand beside another run's task-01 and task-02 as if it followed them."""
    for number in there:
        shutil.copytree(folder_of(whole, number), tmp_path / "other" / f"task-{number:02d}")
    statistics = tmp_path / "other" / f"task-{there[-1]:02d}" / "class_statistics.safetensors"
    save_file({name: value + 1 for name, value in load_file(statistics).items()}, statistics)
    with pytest.raises(FileExistsError, match=f"other holds task-0{there[-1]} of another run.*output_dir"):
        ContinualTrainer.from_checkpoint(
            folder_of(whole, 2), new_stream(whole, 3), output_dir=tmp_path / "other", resume=resume
        )


def test_a_folder_with_the_task_gone_on_from_alone_takes_the_new_one(whole, tmp_path):
    shutil.copytree(folder_of(whole, 2), tmp_path / "task-02")  # the older tasks were deleted for room
    trainer = ContinualTrainer.from_checkpoint(tmp_path / "task-02", new_stream(whole, 3), output_dir=tmp_path)
    assert trainer.num_known == 2 and trainer.saved_tasks() == []


@pytest.mark.parametrize("done", [0, 1, 2, 4])
def test_old_results_are_put_aside_whole_after_a_kill(tmp_path, monkeypatch, done):
    for name in RESULT_FILES:
        (tmp_path / name).write_text("old")
    right, moves = os.replace, []

    def killed(*arguments):
        if len(moves) == done:
            raise KeyboardInterrupt
        moves.append(right(*arguments))

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        keep_results(tmp_path, 2)
    keep_results(tmp_path, 2)
    for name in RESULT_FILES:
        assert (tmp_path / "results-task-02" / name).read_text() == "old" and not (tmp_path / name).exists()
        (tmp_path / name).write_text("new")
    (tmp_path / "results-task-02" / "report.html").unlink()
    keep_results(tmp_path, 2)  # what is new stays
    assert not (tmp_path / "results-task-02" / "report.html").exists()
    assert (tmp_path / "metrics.json").read_text() == "new"


def test_a_run_with_a_gap_is_not_gone_on_from(whole, tmp_path):
    for number in (1, 3):
        shutil.copytree(folder_of(whole, number), tmp_path / f"task-{number:02d}")
    with pytest.raises(ValueError, match="not task-02 before it"):
        ContinualTrainer.from_checkpoint(tmp_path, new_stream(whole, 2), output_dir=tmp_path)
    with pytest.raises(ValueError, match="not task-02 before it"):  # also when task-01 is named
        ContinualTrainer.from_checkpoint(tmp_path / "task-01", new_stream(whole, 2), output_dir=tmp_path)


def test_one_new_class_alone_can_be_learned(whole, tmp_path):
    from smope_hf import TaskStream

    split = whole.stream[2].train
    for index in range(len(split)):
        if split.labels[index] == 4:
            (tmp_path / "photos" / "newcomer").mkdir(parents=True, exist_ok=True)
            split.images([index])[0].save(tmp_path / "photos" / "newcomer" / f"{index}.png")
    stream = TaskStream.load(tmp_path / "photos", num_tasks=1, shuffle_classes=False, allow_no_test=True)
    assert stream.class_names == ["newcomer"]
    ContinualTrainer.from_checkpoint(folder_of(whole, 2), stream, output_dir=tmp_path / "out", **COMPUTING).train()
    config = read(tmp_path / "out" / "task-03", "config.json")
    assert config["tasks"] == [[0, 1], [2, 3], [4]] and config["id2label"]["4"] == "newcomer"


def test_without_old_test_images_nothing_is_claimed_about_old_classes(whole, tmp_path):
    trainer = ContinualTrainer.from_checkpoint(
        folder_of(whole, 2), new_stream(whole, 3), output_dir=tmp_path, **COMPUTING
    )
    content = trainer.train()
    row = content["accuracy_matrix"][-1]
    assert row[:2] == [None, None] and row[2] == whole.state.matrix.as_array()[2, 2]
    assert content["metrics"]["final_average_accuracy"] is None and content["metrics"]["forgetting"] is None
    assert content["recall_by_class"][:4] == [None] * 4 and None not in content["recall_by_class"][4:]
    assert content["training_images_by_class"] == [9] * 6  # the old classes' from their statistics
    assert "n/a" in (tmp_path / "task-03" / "README.md").read_text()
    assert_same_tensors(tmp_path / "task-03", folder_of(whole, 3))
    assert not (tmp_path / "plots" / "average_accuracy.png").exists()


def test_training_images_alone_are_enough(whole, tmp_path):
    from datasets import DatasetDict

    from smope_hf import TaskStream

    split = whole.stream[2].train
    names = list(whole.stream[2].class_names)
    rows = split.dataset.remove_columns("label").add_column("label", [names[i - 4] for i in split.labels])
    stream = TaskStream(
        DatasetDict({"train": rows}), num_tasks=1, label_column="label", shuffle_classes=False, allow_no_test=True
    )
    assert stream[0].test is None
    trainer = ContinualTrainer.from_checkpoint(folder_of(whole, 2), stream, output_dir=tmp_path, **COMPUTING)
    content = trainer.train()
    assert content["accuracy_matrix"][-1] == [None, None, None]
    assert trainer.evaluate() == {
        "accuracies": [None] * 3, "average_accuracy": None, "weighted_accuracy": None,
    }  # fmt: skip
    assert load_manifest(tmp_path / "task-03")["tasks"][2]["test"] is None


def test_the_checkpoint_says_what_it_went_on_from(whole, tmp_path):
    trainer = ContinualTrainer.from_checkpoint(
        folder_of(whole, 2), new_stream(whole, 3), output_dir=tmp_path, **COMPUTING
    )
    trainer.train()
    statistics = (folder_of(whole, 2) / "class_statistics.safetensors").read_bytes()
    state = load_state(tmp_path / "task-03")
    assert state["continued_from"] == {"name": None, "commit": None, "num_tasks": 2}
    assert state["follows"] == hashlib.sha256(statistics).hexdigest() == load_state(folder_of(whole, 3))["follows"]
    assert load_state(folder_of(whole, 1))["follows"] is None
    text = json.dumps([read(tmp_path / "task-03", name) for name in ("trainer_state.json", "manifest.json")])
    assert str(tmp_path) not in text and str(folder_of(whole, 2)) not in text


def with_backbone(checkpoint, folder, base):
    """A copy of a checkpoint that has the backbone in it, and names a base model in another place."""
    shutil.copytree(checkpoint, folder)
    model = SMoPEForImageClassification.from_pretrained(checkpoint)
    model.config.base_model_name_or_path = str(base)
    model.save_pretrained(folder, include_backbone=True)
    return folder


def test_what_is_learned_onto_a_standalone_model_is_standalone(whole, tmp_path):
    """The base model is gone all the time, also when the addition is resumed behind its first task."""
    gone = tmp_path / "gone"
    checkpoint = with_backbone(folder_of(whole, 1), tmp_path / "task-01", gone)

    def attempt(callbacks=(), **settings):
        places = {"output_dir": tmp_path / "out", **settings, **COMPUTING}
        return ContinualTrainer.from_checkpoint(checkpoint, new_stream(whole, 2, 3), callbacks=callbacks, **places)

    with pytest.raises(KeyboardInterrupt):
        attempt([AtStep(2, 1, interrupt)]).train()
    attempt(resume=True).train()
    for number in (2, 3):
        folder = tmp_path / "out" / f"task-{number:02d}"
        loaded, expected = map(SMoPEForImageClassification.from_pretrained, (folder, folder_of(whole, number)))
        images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            assert torch.equal(loaded(images).logits, expected(images).logits)
        assert loaded.config.base_model_name_or_path == str(gone)
        assert "folder holds the backbone, the experts" in (folder / "README.md").read_text()
    assert "folder holds the experts" in (folder_of(whole, 3) / "README.md").read_text()


def test_known_classes_are_refused_by_name_before_any_work(whole, tmp_path):
    with pytest.raises(ValueError, match=rf"'{whole.stream[0].class_names[0]}' \(task 1\)"):
        ContinualTrainer.from_checkpoint(folder_of(whole, 2), new_stream(whole, 1), output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["manifest.json", "class_statistics.safetensors"])
def test_files_of_different_checkpoints_are_told_apart(whole, tmp_path, file):
    shutil.copytree(folder_of(whole, 2), tmp_path / "mixed")
    shutil.copy(folder_of(whole, 1) / file, tmp_path / "mixed" / file)
    with pytest.raises(ValueError, match="mixed"):
        ContinualTrainer.from_checkpoint(tmp_path / "mixed", new_stream(whole, 3), output_dir=tmp_path / "out")


def test_a_recipe_of_a_newer_version_is_refused(whole, tmp_path):
    shutil.copytree(folder_of(whole, 2), tmp_path / "newer")
    state = read(tmp_path / "newer", "trainer_state.json")
    write_json(tmp_path / "newer" / "trainer_state.json", {**state, "recipe": {**state["recipe"], "magic": 1}})
    (tmp_path / "newer" / "checksums.json").unlink()
    with pytest.raises(ValueError, match=r"\['magic'\].*does not know"):
        ContinualTrainer.from_checkpoint(tmp_path / "newer", new_stream(whole, 3), output_dir=tmp_path / "out")


def test_what_is_no_checkpoint_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither task-NN folders nor a config.json"):
        ContinualTrainer.from_checkpoint(tmp_path, tiny_stream(), output_dir=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        ContinualTrainer.from_checkpoint(tmp_path / "nowhere", tiny_stream(), output_dir=tmp_path / "out")


def test_a_diverged_addition_names_the_checkpoint_it_came_from(whole, tmp_path):
    trainer = ContinualTrainer.from_checkpoint(
        folder_of(whole, 2), new_stream(whole, 3), output_dir=tmp_path, learning_rate=1e30, **COMPUTING
    )
    with pytest.raises(TrainingDivergedError, match="No task has been saved yet"):
        trainer.train()


def test_yardsticks_need_a_whole_run(whole, tmp_path):
    trainer = ContinualTrainer.from_checkpoint(
        folder_of(whole, 2), new_stream(whole, 3), output_dir=tmp_path, **COMPUTING
    )
    with pytest.raises(ValueError, match="images of all tasks"):
        run_yardsticks(trainer.model, trainer.stream, trainer.decoded, trainer.passes)


def test_the_saved_image_processor_gives_what_the_model_was_trained_on(whole):
    """With the published normalisation, pipeline must not apply the backbone's mean and std."""
    processor = read(folder_of(whole, 3), "preprocessor_config.json")
    assert processor["do_normalize"] is False and processor["rescale_factor"] == pytest.approx(1 / 255)


# ---------------------------------------------------------------------- the stream alone


def test_class_ids_and_tasks_count_on(whole):
    stream = ContinuedStream(load_manifest(folder_of(whole, 2)), new_stream(whole, 3))
    assert [task.index for task in stream] == [0, 1, 2] and stream.num_classes == 6
    assert stream[2].class_ids == range(4, 6) and stream[0].train is None
    np.testing.assert_array_equal(stream[2].train.labels, whole.stream[2].train.labels)


def test_other_test_images_make_another_protocol(whole):
    learned = load_manifest(folder_of(whole, 2))
    stream = new_stream(whole, 3)
    same = ContinuedStream(learned, stream, old_tests(whole, 2)).manifest()
    fewer = tiny_stream(max_test_samples_per_class=2)
    other = ContinuedStream(learned, stream, [task.test for task in fewer[:2]]).manifest()
    assert same["protocol_hash"] == whole.stream.manifest()["protocol_hash"] != other["protocol_hash"]
    assert same["information"]["continues"]["num_tasks"] == 2 and same["name"] == "dataset"
    with pytest.raises(ValueError, match="old_tests has 1 entries.*2 tasks"):
        ContinuedStream(learned, stream, [None])
