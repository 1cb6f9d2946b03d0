"""A run that goes wrong says so: it stops where a number is not finite, and warns where it learns nothing."""

import numpy as np
import pytest
import torch
from runs import AtStep, assert_same_tensors, read, save_backbone, tiny_trainer

from smope_hf.metrics.accuracy_matrix import AccuracyMatrix
from smope_hf.reports.run_folder import RunFolder
from smope_hf.reports.run_warnings import warnings_of_run
from smope_hf.storage.state_folder import read_content
from smope_hf.training.callbacks import ContinualCallback
from smope_hf.training.health import collapsed_layers, health_warnings, never_learned
from smope_hf.training.interruption import TrainingInterrupted
from smope_hf.training.phase import TrainingDivergedError


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


def spoil_values(trainer):
    trainer.model.prefix_experts[1].values.data.fill_(float("nan"))


def spoil_gradient(trainer):
    """The loss of this step is finite, the weights behind it are not."""
    trainer.model.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))


# ---------------------------------------------------------------------- not finite


@pytest.mark.parametrize("logging_steps", [1, 1000])
def test_a_loss_that_is_not_finite_names_its_step_whenever_it_is_read(backbone, tmp_path, logging_steps):
    """18 images in batches of 8 are 3 steps an epoch; the fifth step is the second of epoch 2."""
    trainer = tiny_trainer(backbone, tmp_path, callbacks=[AtStep(1, 4, spoil_values)], logging_steps=logging_steps)
    with pytest.raises(TrainingDivergedError) as error:
        trainer.train()
    text = str(error.value)
    assert "The loss (loss, cross_entropy" in text
    assert "of task 2 is not finite at step 2 of 3 in epoch 2 of 2 of its sparse phase" in text
    assert f"The last good checkpoint is {tmp_path / 'task-01'}" in text
    assert "Lower learning_rate (now 0.005) or set max_grad_norm (now None)" in text
    assert not (tmp_path / "task-02").exists() and (tmp_path / "task-01").exists()


def test_the_first_task_has_no_checkpoint_to_name(backbone, tmp_path):
    trainer = tiny_trainer(backbone, tmp_path, callbacks=[AtStep(0, 0, spoil_values)])
    with pytest.raises(TrainingDivergedError, match="step 1 of 3 in epoch 1 of .* of its dense phase. No task has"):
        trainer.train()
    assert not list(tmp_path.glob("task-*"))


def test_weights_that_the_last_step_broke_are_not_saved(backbone, tmp_path):
    trainer = tiny_trainer(backbone, tmp_path, callbacks=[AtStep(1, 5, spoil_gradient)])
    with pytest.raises(
        TrainingDivergedError, match="The weight classifier.weight of task 2 is not finite at step 3 of 3"
    ):
        trainer.train()
    assert not (tmp_path / "task-02").exists()


@pytest.mark.parametrize("spoil", [spoil_values, spoil_gradient])
def test_a_state_to_go_on_from_is_never_a_broken_one(backbone, tmp_path, spoil):
    """Losses are read long after the state is saved; what is saved is from before the break, and goes on."""
    settings = {"checkpoint_every": 2, "logging_steps": 1000}
    with pytest.raises(TrainingDivergedError):
        tiny_trainer(backbone, tmp_path / "run", callbacks=[AtStep(1, 2, spoil)], **settings).train()
    assert read_content(tmp_path / "run" / "state")["step"] == 2
    tiny_trainer(backbone, tmp_path / "run", resume=True, **settings).train()
    tiny_trainer(backbone, tmp_path / "whole", **settings).train()
    assert_same_tensors(tmp_path / "whole" / "task-03", tmp_path / "run" / "task-03")


def test_a_signal_does_not_save_what_is_broken(backbone, tmp_path):
    def stop(trainer):
        spoil_values(trainer)
        trainer.signals.received = 15

    trainer = tiny_trainer(backbone, tmp_path, callbacks=[AtStep(1, 1, stop)], logging_steps=1000)
    with pytest.raises((TrainingDivergedError, TrainingInterrupted)) as error:
        trainer.train()
    assert error.type is TrainingDivergedError and not (tmp_path / "state").exists()


# ---------------------------------------------------------------------- warnings


def usage(tasks=2, layers=3, heads=2, experts=6):
    """All images choose experts 0 and 1, or 2 and 3 in half of the cases."""
    counts = np.zeros((tasks, layers, heads, experts), dtype=int)
    counts[..., :4] = 5
    return counts


def test_collapsed_is_a_layer_where_no_two_images_were_told_apart():
    counts = usage()
    assert collapsed_layers(counts, 2) == []  # a third of the experts is never used: no sign of a collapse
    counts[:, 1] = 0
    counts[:, 1, :, [1, 4]] = 10
    assert collapsed_layers(counts, 2) == [1]
    counts[1, 1, 0] = np.roll(counts[1, 1, 0], 1)  # one task chooses others in one head
    assert collapsed_layers(counts, 2) == []
    assert collapsed_layers(np.full((2, 1, 2, 6), 10), 6) == []  # K = E leaves nothing to choose
    assert collapsed_layers(np.array([1, 1, 0, 0, 0, 0])[None, None, None], 2) == []  # one image


def test_never_learned_is_measured_against_the_classes_of_that_time():
    matrix = AccuracyMatrix()
    for row in ([0.5], [0.1, 0.26], [0.9, 0.9, 0.16]):
        matrix.add_row(row)
    assert never_learned(matrix, [2, 2, 2]) == [0, 2]  # 1/2, 1/4 and 1/6
    assert never_learned(matrix, [1, 1, 4]) == [1, 2]  # one class alone cannot be mistaken
    (text,) = health_warnings(matrix, [2, 2, 2], None, {}, {"learning_rate": 0.005})
    assert "task 1 (1 of 2 classes, 50.0%), task 3 (1 of 6 classes, 16.7%). Train longer (--epochs)" in text
    assert "--learning-rate (now 0.005)" in text


@pytest.mark.parametrize(
    ("alignment", "first", "advice"),
    [
        ("none", 0.9, ["--alignment lda, not none"]),
        ("gaussian", 0.9, ["--alignment-learning-rate (now 1e-05), or take --alignment lda"]),
        ("gaussian-full", 0.9, ["--alignment-learning-rate (now 1e-05), or take --alignment lda"]),
        ("lda", 0.9, ["Train longer (--epochs)"]),
        ("none", 0.5, ["--alignment lda, not none", "Train longer (--epochs)"]),  # the first task is not aligned
    ],
)
def test_what_to_do_about_a_task_that_was_not_learned_depends_on_the_alignment(alignment, first, advice):
    matrix = AccuracyMatrix()
    for row in ([first], [0.9, 0.0]):
        matrix.add_row(row)
    recipe = {"alignment": alignment, "learning_rate": 0.005, "alignment_learning_rate": 1e-5}
    (text,) = health_warnings(matrix, [2, 1], None, {}, recipe)
    assert all(part in text for part in advice)
    assert ("Train longer" in text) == ("Train longer (--epochs)" in advice)


class Collapse(ContinualCallback):
    """Keys that differ so much in length that no image can change their order."""

    def on_training_end(self, trainer, task):
        experts = trainer.model.prefix_experts[1]
        with torch.no_grad():
            experts.keys.copy_(experts.keys[:, :1] * torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0, 8.0])[:, None])
            bias = trainer.model.backbone.layers[1].attention.q_proj.bias
            bias.copy_(100 * experts.keys[:, 0].flatten())


class Unlearn(ContinualCallback):
    def on_training_end(self, trainer, task):
        if task.index == 1:
            trainer.args.alignment = "none"
            trainer.model.classifier.weight.data[2:] = 0
            trainer.model.classifier.bias.data[2:] = -1e4


def test_a_collapsed_layer_is_in_log_results_and_report(backbone, tmp_path, capsys):
    trainer = tiny_trainer(backbone, tmp_path, callbacks=[Collapse()], report=True)
    trainer.train()
    found = [text for text in read(tmp_path, "metrics.json")["warnings"] if "Collapsed" in text]
    assert len(found) == 1 and "in layer 1 every image of every task selected the same 2 of 6 experts" in found[0]
    assert "--num-experts" in found[0] and "--noise-epsilon" in found[0]
    assert capsys.readouterr().out.count("Warning: Collapsed routing") == 1  # once, not after every task
    assert found[0] in warnings_of_run(RunFolder(tmp_path))
    assert "Collapsed routing" in (tmp_path / "report.html").read_text()


def test_a_task_that_was_not_learned_is_in_log_results_and_report(backbone, tmp_path, capsys):
    tiny_trainer(backbone, tmp_path, callbacks=[Unlearn()], report=True, alignment="none").train()
    found = [text for text in read(tmp_path, "metrics.json")["warnings"] if text.startswith("Not learned")]
    assert len(found) == 1 and "task 2 (1 of 4 classes, 25.0%)" in found[0]
    assert capsys.readouterr().out.count("was task 2 (") == 1  # once, though two tasks are learned after it
    assert found[0] in warnings_of_run(RunFolder(tmp_path))
    assert "Not learned" in (tmp_path / "report.html").read_text()


def test_a_healthy_run_has_no_such_warning(backbone, tmp_path, capsys):
    """Keys as published leave most experts unused, which is no collapse."""
    tiny_trainer(backbone, tmp_path, model_fields={"num_experts": 25, "top_k": 3}).train()
    assert read(tmp_path / "task-03", "routing.json")["dead_share"] > 0.3
    assert not [text for text in read(tmp_path, "metrics.json")["warnings"] if "Collapsed" in text]
    assert "Collapsed" not in capsys.readouterr().out
