"""Which settings a continuation has: those of the recipe, those that are given, and those that do not go together."""

import shutil

import pytest
from continued_runs import COMPUTING, SETTINGS, folder_of, interrupt, new_stream, whole_run
from runs import AtStep, assert_same_tensors, read, save_backbone, tiny_stream, tiny_trainer

from smope_hf import ContinualTrainer
from smope_hf.cli import add_classes as cli_add_classes
from smope_hf.sharing.checkpoint import load_state
from smope_hf.storage.files import write_json


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_run(tmp_path_factory)


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
