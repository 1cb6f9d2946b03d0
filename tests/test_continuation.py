"""Teaching a saved model more classes: equal to having learned them in the original run, and safe from mistakes."""

import contextlib
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from runs import AtStep, assert_same_tensors, read, save_backbone, tiny_stream, tiny_trainer
from safetensors.numpy import load_file, save_file

from smope_hf import ContinualTrainer, SMoPEForImageClassification, cli_add_classes
from smope_hf.checkpoint import load_manifest, load_state, saved_tasks
from smope_hf.continued_stream import ContinuedStream
from smope_hf.files import write_json
from smope_hf.results import RESULT_FILES, keep_results
from smope_hf.run_folder import RunFolder
from smope_hf.run_warnings import warnings_of_run
from smope_hf.training_phase import TrainingDivergedError
from smope_hf.yardsticks import run_yardsticks

SETTINGS = {"learning_rate": 0.01, "normalization": "reference", "alignment": "gaussian", "alignment_epochs": 2}
COMPUTING = {"disable_progress": True, "eval_batch_size": 8}  # not part of the recipe


def whole_run(tmp_path_factory):
    """One run over all three tasks."""
    backbone = save_backbone(tmp_path_factory.mktemp("backbone"))
    trainer = tiny_trainer(backbone, tmp_path_factory.mktemp("run"), **SETTINGS)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_run(tmp_path_factory)


def folder_of(trainer, number: int):
    from pathlib import Path

    return Path(trainer.args.output_dir) / f"task-{number:02d}"


def new_stream(trainer, *numbers: int, **options):
    """The classes of some tasks, as somebody who has only these images would load them."""
    lists = [list(trainer.stream[number - 1].class_names) for number in numbers]
    return tiny_stream(num_tasks=None, class_lists=lists, **options)


def old_tests(trainer, count: int):
    return [task.test for task in trainer.stream[:count]]


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


def interrupt(trainer):
    raise KeyboardInterrupt


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


def test_settings_can_differ_from_the_recipe_and_are_recorded(whole, tmp_path):
    trainer = ContinualTrainer.from_checkpoint(
        folder_of(whole, 2), new_stream(whole, 3), output_dir=tmp_path, epochs=1, alignment="none", **COMPUTING
    )
    recipe = load_state(folder_of(whole, 2))["recipe"]
    assert trainer.args.recipe() == {**recipe, "epochs": 1, "alignment": "none"}
    with pytest.raises(ValueError, match="'epoch'.*no training settings.*epochs"):
        ContinualTrainer.from_checkpoint(folder_of(whole, 2), new_stream(whole, 3), output_dir=tmp_path, epoch=1)


def test_the_batches_of_the_statistics_are_those_of_the_original_run(whole, tmp_path):
    """Sums round by their batches, so that others would change the last bits."""
    backbone = whole.model.config.base_model_name_or_path
    tiny_trainer(backbone, tmp_path / "run", **{**SETTINGS, "eval_batch_size": 3}).train()

    def again(**settings):
        return ContinualTrainer.from_checkpoint(
            tmp_path / "run" / "task-02", new_stream(whole, 3), output_dir=tmp_path / "out", **settings
        )

    trainer = again(disable_progress=True)
    assert trainer.args.eval_batch_size == 3
    trainer.train()
    assert_same_tensors(tmp_path / "out" / "task-03", tmp_path / "run" / "task-03")
    assert load_state(tmp_path / "out" / "task-03")["eval_batch_size"] == 3
    other = again(disable_progress=True, resume=True, eval_batch_size=5)  # one that is given wins, and may differ
    assert other.args.eval_batch_size == 5
    other.train()
    state = read(tmp_path / "run" / "task-02", "trainer_state.json")
    del state["eval_batch_size"]  # as in checkpoints of older versions
    write_json(tmp_path / "run" / "task-02" / "trainer_state.json", state)
    (tmp_path / "run" / "task-02" / "checksums.json").unlink()
    shutil.rmtree(tmp_path / "out")
    assert again().args.eval_batch_size == 256


def with_recipe(checkpoint, folder, **settings):
    """A copy of a checkpoint whose recipe has other settings."""
    shutil.copytree(checkpoint, folder)
    state = read(folder, "trainer_state.json")
    write_json(folder / "trainer_state.json", {**state, "recipe": {**state["recipe"], **settings}})
    (folder / "checksums.json").unlink()
    return folder


def test_alignments_that_the_first_run_compared_do_not_stand_in_the_way(whole, tmp_path):
    checkpoint = with_recipe(folder_of(whole, 2), tmp_path / "task", compare_alignments=["none"])
    places = {"output_dir": tmp_path / "out", **COMPUTING}
    trainer = ContinualTrainer.from_checkpoint(checkpoint, new_stream(whole, 3), **places)
    assert trainer.args.compare_alignments == [] and not trainer.others.names
    with pytest.raises(ValueError, match=r"compare_alignments = \['lda'\] is not allowed here.*Leave it out"):
        ContinualTrainer.from_checkpoint(checkpoint, new_stream(whole, 3), compare_alignments=["lda"], **places)


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A run whose head lda has set, the default, on the same backbone and tasks."""
    backbone = save_backbone(tmp_path_factory.mktemp("backbone"))
    stream = tiny_stream(num_tasks=None, class_lists=[["a", "b"], ["c", "d"]])
    trainer = tiny_trainer(backbone, tmp_path_factory.mktemp("closed"), stream, learning_rate=0.01)
    trainer.train()
    return trainer


LAST = {"num_tasks": None, "class_lists": [["e", "f"]]}


@pytest.mark.parametrize("before", ["lda", "ncm"])
@pytest.mark.parametrize("alignment", ["none", "gaussian", "gaussian-full"])
def test_rows_as_trained_do_not_follow_rows_in_closed_form(closed, tmp_path, before, alignment):
    checkpoint = with_recipe(folder_of(closed, 2), tmp_path / "task-02", alignment=before)
    for folder, output in ((checkpoint, tmp_path / "out"), (tmp_path, tmp_path)):  # elsewhere, and in its own folder
        with pytest.raises(ValueError, match=f"'{alignment}' is not allowed .*'{before}'.*'lda' or 'ncm'. Leave"):
            ContinualTrainer.from_checkpoint(folder, tiny_stream(**LAST), output_dir=output, alignment=alignment)
    assert [path.name for path in tmp_path.iterdir()] == ["task-02"]


@pytest.mark.parametrize("given", [{}, {"alignment": "lda"}, {"alignment": "ncm"}], ids=str)
def test_rows_in_closed_form_follow_rows_in_closed_form(closed, tmp_path, given):
    """The head is set for old and new classes alike, so the new ones are learned."""
    trainer = ContinualTrainer.from_checkpoint(
        closed.args.output_dir, tiny_stream(**LAST), output_dir=tmp_path, **given, **COMPUTING
    )
    content = trainer.train()
    assert content["accuracy_matrix"][-1][2] > 1 / 6
    norms = trainer.model.classifier.weight.norm(dim=1)
    assert norms[4:].mean() > 0.5 * norms[:4].mean()


def test_behind_the_first_task_every_alignment_is_free(closed, whole, tmp_path):
    """The rows of the first task are as trained whatever the recipe says; and closed forms replace every row."""
    more = tiny_stream(num_tasks=None, class_lists=[["c", "d"]])
    for alignment in ("none", "gaussian"):
        args = {"output_dir": tmp_path, "alignment": alignment}
        assert ContinualTrainer.from_checkpoint(folder_of(closed, 1), more, **args).args.alignment == alignment
    for alignment in ("lda", "ncm", "none", "gaussian-full"):
        args = {"output_dir": tmp_path, "alignment": alignment}
        assert ContinualTrainer.from_checkpoint(folder_of(whole, 2), new_stream(whole, 3), **args)


def test_an_addition_with_another_alignment_is_resumed_in_the_runs_own_folder(closed, tmp_path):
    """What it may follow is the checkpoint that it began behind, with one task, not the newest in the folder."""
    shutil.copytree(folder_of(closed, 1), tmp_path / "task-01")
    more = tiny_stream(num_tasks=None, class_lists=[["c", "d"], ["e", "f"]])
    places = {"output_dir": tmp_path, "alignment": "none", **COMPUTING}
    with pytest.raises(KeyboardInterrupt):
        ContinualTrainer.from_checkpoint(tmp_path, more, callbacks=[AtStep(2, 1, interrupt)], **places).train()
    ContinualTrainer.from_checkpoint(tmp_path, more, resume=True, **places).train()
    assert load_state(tmp_path / "task-03")["recipe"]["alignment"] == "none"


DEPENDENT = [
    ({"freeze_epochs": 1}, {"epochs": 1}, {"freeze_epochs": 0}),
    ({"gradient_accumulation_steps": 4}, {"batch_size": 2}, {"gradient_accumulation_steps": 1}),
    ({"min_learning_rate": 0.001}, {"learning_rate": 0.0001}, {"min_learning_rate": 0.0}),
]


@pytest.mark.parametrize(("recipe", "given", "remedy"), DEPENDENT, ids=lambda part: next(iter(part)))
def test_a_setting_of_the_recipe_that_a_given_one_does_not_allow_can_be_given_too(
    whole, tmp_path, recipe, given, remedy
):
    (name,) = remedy
    checkpoint = with_recipe(folder_of(whole, 2), tmp_path / "task", **recipe)
    places = {"output_dir": tmp_path / "out", **COMPUTING}
    with pytest.raises(ValueError, match=f"{name} = .*It is from the recipe in .*set {name} too"):
        ContinualTrainer.from_checkpoint(checkpoint, new_stream(whole, 3), **given, **places)
    trainer = ContinualTrainer.from_checkpoint(checkpoint, new_stream(whole, 3), **given, **remedy, **places)
    assert getattr(trainer.args, name) == remedy[name]
    assert name in cli_add_classes.SETTINGS


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
        run_yardsticks(trainer)


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
