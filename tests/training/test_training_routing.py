"""Routing while a run trains: the recorder's counts are those of its steps, on one process or two, resumed or not."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import check_labels, check_png
from processes import launch
from runs import NUM_TASKS, TRAIN_PER_CLASS, assert_same_tensors, read, save_backbone, tiny_stream, tiny_trainer
from stopping import Stop
from typer.testing import CliRunner

from smope_hf.cli.program import app
from smope_hf.models.prefix_experts import membership
from smope_hf.reports.plot_style import DARK
from smope_hf.reports.routing_plots import plot_training_balance
from smope_hf.routing.patterns import balance
from smope_hf.routing.training_record import balance_in_training, load_training_record
from smope_hf.training.callbacks import ContinualCallback
from smope_hf.training.run_arguments import DataArguments, callbacks_of
from smope_hf.training.training_recorder import TrainingRoutingRecorder

SETTINGS = {"learning_rate": 0.05, "logging_steps": 3}
PER_TASK = 2 * TRAIN_PER_CLASS  # 18 images: 3 steps of an epoch, 2 sparse epochs and in the first task 1 dense one
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from runs import tiny_trainer
from smope_hf.training.training_recorder import TrainingRoutingRecorder
settings = dict(batch_size=17, logging_steps=2, save_checkpoints=False, gradient_accumulation_steps=3)
recorder = TrainingRoutingRecorder()
trainer = tiny_trainer(sys.argv[2], Path(sys.argv[3]), callbacks=[recorder], **settings)
assert trainer.accelerator.num_processes == int(sys.argv[4]), trainer.accelerator.num_processes
trainer.train()
"""


class Watch(ContinualCallback):
    """Sees every layer's selections by itself, at each reading."""

    def __init__(self):
        self.chosen, self.readings = [], []

    def on_task_begin(self, trainer, task):
        for experts in trainer.model.prefix_experts:
            experts.register_forward_hook(self.see)

    def see(self, experts, _, route):
        if experts.training and route[1] is not None:
            self.chosen.append((experts, membership(route[1], 6).sum(dim=0)))

    def on_log(self, trainer, task, losses):
        own = [[counts for e, counts in self.chosen if e is experts] for experts in trainer.model.prefix_experts]
        if own[0]:
            self.readings.append((trainer.logged_steps, torch.stack([sum(counts) for counts in own]).numpy()))
        self.chosen = []

    def on_training_end(self, trainer, task):
        for experts in trainer.model.prefix_experts:
            experts._forward_hooks.clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone and a recorded run of three tasks."""
    folder = tmp_path_factory.mktemp("training")
    backbone, watch = save_backbone(folder / "vit"), Watch()
    tiny_trainer(backbone, folder / "run", callbacks=[TrainingRoutingRecorder(), watch], **SETTINGS).train()
    return folder, watch


def test_readings_are_what_the_steps_selected(place):
    folder, watch = place
    record = load_training_record(folder / "run")
    readings = [reading for task in record["tasks"] for reading in task["readings"]]
    assert [reading["step"] for reading in readings] == [step for step, _ in watch.readings] == [6, 9, 12, 15, 18, 21]
    for reading, (_, counts) in zip(readings, watch.readings, strict=True):
        for name, values in balance(counts)._asdict().items():
            np.testing.assert_allclose(reading[name], values, atol=1e-4)
    assert [task["first_step"] for task in record["tasks"]] == [0, 9, 15]
    images = [sum(reading["images"] for reading in task["readings"]) for task in record["tasks"]]
    assert images == [2 * PER_TASK] * NUM_TASKS  # dense steps select nothing
    found = balance_in_training(record)
    assert found.entropy.shape == (6, 2) and found.tasks.tolist() == [1, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(found.dead_share[0], np.mean(readings[0]["dead_share"], axis=1))


def test_recording_changes_nothing_of_the_run(place, tmp_path):
    tiny_trainer(str(place[0] / "vit"), tmp_path, **SETTINGS).train()
    assert_same_tensors(tmp_path / "task-03", place[0] / "run" / "task-03")


def test_scores_are_asked_for_by_the_recorder_alone(place, tmp_path):
    asked = []

    class Ask(ContinualCallback):
        def on_forward(self, trainer, task, output, counts):
            asked.append(output.selected_experts is not None)

    for callbacks in ([Ask()], [Ask(), TrainingRoutingRecorder()]):
        stream = tiny_stream(num_tasks=1)
        folder = tmp_path / str(len(callbacks))
        settings = {"epochs": 1, "dense_epochs": 0, "save_checkpoints": False}
        tiny_trainer(str(place[0] / "vit"), folder, stream=stream, callbacks=callbacks, **settings).train()
    assert asked == [False] * (len(asked) // 2) + [True] * (len(asked) // 2)


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_resumed_run_records_the_same(place, tmp_path, killed):
    folder, _ = place
    order = [Stop(1), TrainingRoutingRecorder()]
    with pytest.raises(KeyboardInterrupt):
        callbacks = order if killed == "before" else order[::-1]
        tiny_trainer(str(folder / "vit"), tmp_path, callbacks=callbacks, **SETTINGS).train()
    again = {**SETTINGS, "callbacks": [TrainingRoutingRecorder()], "resume": True}
    tiny_trainer(str(folder / "vit"), tmp_path, **again).train()
    assert read(tmp_path, "routing_training.json") == read(folder / "run", "routing_training.json")


class StopUnsaved(ContinualCallback):
    """Kills a run after the second task's training, before it is saved."""

    def on_training_end(self, trainer, task):
        if task.index == 1:
            raise KeyboardInterrupt


def test_a_task_that_is_learned_anew_is_recorded_anew(place, tmp_path):
    folder, _ = place
    with pytest.raises(KeyboardInterrupt):
        callbacks = [TrainingRoutingRecorder(), StopUnsaved()]
        tiny_trainer(str(folder / "vit"), tmp_path, callbacks=callbacks, **SETTINGS).train()
    assert len(load_training_record(tmp_path)["tasks"]) == 2
    again = {**SETTINGS, "callbacks": [TrainingRoutingRecorder()], "resume": True}
    tiny_trainer(str(folder / "vit"), tmp_path, **again).train()
    assert read(tmp_path, "routing_training.json") == read(folder / "run", "routing_training.json")


def test_a_record_of_another_run_in_the_folder_is_replaced(place, tmp_path):
    folder, _ = place
    settings = {**SETTINGS, "seed": 5, "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(str(folder / "vit"), tmp_path, callbacks=[Stop(1)], **settings).train()
    (tmp_path / "routing_training.json").write_bytes((folder / "run" / "routing_training.json").read_bytes())
    recorder = TrainingRoutingRecorder()
    tiny_trainer(str(folder / "vit"), tmp_path, callbacks=[recorder], resume=True, **settings).train()
    assert [task["task"] for task in load_training_record(tmp_path)["tasks"]] == [3]


def test_parts_of_a_step_count_together(place, tmp_path):
    images = []
    for parts in (1, 3):
        recorder, folder = [TrainingRoutingRecorder()], tmp_path / str(parts)
        settings = {**SETTINGS, "gradient_accumulation_steps": parts, "stream": tiny_stream(num_tasks=1)}
        tiny_trainer(str(place[0] / "vit"), folder, callbacks=recorder, **settings).train()
        images.append([reading["images"] for reading in load_training_record(folder)["tasks"][0]["readings"]])
    assert images[0] == images[1]


def test_gradient_checkpointing_counts_once(place, tmp_path):
    recorder, stream = TrainingRoutingRecorder(), tiny_stream(num_tasks=1)
    settings = {**SETTINGS, "gradient_checkpointing": True, "callbacks": [recorder], "stream": stream}
    tiny_trainer(str(place[0] / "vit"), tmp_path, **settings).train()
    readings = load_training_record(tmp_path)["tasks"][0]["readings"]
    assert sum(reading["images"] for reading in readings) == 2 * 6 * TRAIN_PER_CLASS


@pytest.mark.slow
def test_two_processes_count_together(place, tmp_path):
    """The last batch of an epoch has a single image, of which the second process has no share."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    for processes in (1, 2):
        launch(processes, script, str(place[0] / "vit"), str(tmp_path / str(processes)))
    one, two = (load_training_record(tmp_path / name) for name in "12")
    for first, second in zip(one["tasks"], two["tasks"], strict=True):
        assert [reading["images"] for reading in second["readings"]] == [PER_TASK] * 2
        for mine, other in zip(first["readings"], second["readings"], strict=True):
            assert (mine["step"], mine["images"]) == (other["step"], other["images"])
            for name in ("entropy", "gini", "dead_share"):
                np.testing.assert_allclose(mine[name], other[name], atol=1e-4)


def test_who_is_refused_and_who_asks_for_it(tmp_path):
    class Plain:
        records_usage = False

    with pytest.raises(ValueError, match="records the experts of SMoPE, and Plain has none"):
        TrainingRoutingRecorder().on_task_begin(type("Trainer", (), {"model": Plain()})(), None)
    model = type("Model", (), {"records_usage": True})()
    callbacks = callbacks_of(DataArguments("embedded", record_routing=True), model)
    assert any(isinstance(callback, TrainingRoutingRecorder) for callback in callbacks)
    assert callbacks_of(DataArguments("embedded"), model) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(tasks=[]), "tasks is"),
        (lambda record: record.update(format_version=2), "format_version is 2"),
        (lambda record: record["tasks"][1].update(task=1), r"tasks\[1\].task is 1. Allowed: an integer from 2"),
        (lambda record: record["tasks"][1].update(first_step=3), r"tasks\[1\].first_step is 3"),
        (lambda record: record["tasks"][0]["readings"][1].update(step=6), r"readings\[1\].step is 6"),
        (lambda record: record["tasks"][0]["readings"][0].update(images=0), r"readings\[0\].images is 0"),
        (lambda record: record["tasks"][0]["readings"][0].update(gini=[[2.0]] * 2), r"readings\[0\].gini is"),
        (lambda record: record["tasks"][0]["readings"][0].pop("entropy"), r"readings\[0\].entropy is None"),
        (lambda record: record["tasks"][2].pop("keys_sha256"), "keys_sha256 is None"),
        (lambda record: record.pop("layers"), "layers is None"),
    ],
)
def test_a_broken_record_is_refused(place, tmp_path, change, message):
    record = read(place[0] / "run", "routing_training.json")
    change(record)
    (tmp_path / "routing_training.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        load_training_record(tmp_path)


# ---------------------------------------------------------------------- the picture


def test_plot_draws_what_was_recorded(place, tmp_path):
    done = CliRunner().invoke(app, ["plot", str(place[0] / "run"), "--output", str(tmp_path), "--format", "svg"])
    assert done.exit_code == 0, done.output
    assert "routing_training.svg" in {Path(name).name for name in done.stdout.split()}
    assert "a task begins" in (tmp_path / "routing_training.svg").read_text()


@pytest.mark.parametrize(("num_tasks", "num_layers"), [(1, 1), (3, 6), (10, 12), (20, 24)])
def test_training_plot(num_tasks, num_layers, tmp_path):
    starts = np.arange(num_tasks) * 100
    steps = (starts[:, None] + np.arange(40, 101, 20)).ravel()  # the first 20 steps of a task were dense
    entropy, dead = np.random.default_rng(0).uniform(0, 1, (2, len(steps), num_layers))
    path = tmp_path / "a.png"
    figure = plot_training_balance(
        steps, entropy, dead, path, task_starts=starts, layers=range(num_layers), dpi=100, theme=DARK
    )
    check_png(path, width=600)
    check_labels(figure)
    for axes, values in zip(figure.axes, (entropy, dead)):
        borders = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert [line.get_xdata()[0] for line in borders] == starts[1:].tolist()
        if num_layers <= 7:
            lines = [line for line in axes.lines if line not in borders]
            drawn = np.stack([line.get_ydata() for line in lines])
            gaps = np.isnan(drawn[0])
            assert gaps.sum() == num_tasks - 1  # no line joins two tasks
            np.testing.assert_allclose(drawn[:, ~gaps], 100 * values.T)
        else:
            cells = axes.collections[0].get_array()
            empty = cells.mask.all(axis=0)
            assert empty.sum() == num_tasks - 1
            np.testing.assert_allclose(cells[:, ~empty].filled(), 100 * values.T)


def test_numbers_that_do_not_fit_the_picture_are_refused(tmp_path):
    one = np.ones((2, 1))
    for steps, starts in (([1], ()), ([2, 2], ()), ([1, 2], [5, 3])):
        with pytest.raises(ValueError, match="one rising step for each reading"):
            plot_training_balance(steps, one, one, tmp_path / "a.png", task_starts=starts)
    with pytest.raises(ValueError, match=r"\(2, 1\) and dead_share \(1, 1\): give both as \(readings, layers\)"):
        plot_training_balance([1, 2], one, one[:1], tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


class StopsAt(ContinualCallback):
    def __init__(self, step):
        self.step = step

    def on_forward(self, trainer, task, output, counts):
        self.step -= 1
        if self.step == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [2, 8, 9, 17])
@pytest.mark.slow
def test_a_run_that_goes_on_within_a_task_records_what_an_uninterrupted_one_does(backbone, tmp_path, step):
    settings = {"checkpoint_every": 1, "logging_steps": 2}
    tiny_trainer(backbone, tmp_path / "whole", callbacks=[TrainingRoutingRecorder()], **settings).train()
    with pytest.raises(KeyboardInterrupt):
        callbacks = [TrainingRoutingRecorder(), StopsAt(step)]
        tiny_trainer(backbone, tmp_path / "cut", callbacks=callbacks, **settings).train()
    assert (tmp_path / "cut" / "state").is_dir()
    tiny_trainer(backbone, tmp_path / "cut", callbacks=[TrainingRoutingRecorder()], resume=True, **settings).train()
    assert load_training_record(tmp_path / "cut") == load_training_record(tmp_path / "whole")


def test_a_record_cannot_begin_within_a_task(backbone, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(backbone, tmp_path, callbacks=[StopsAt(3)], checkpoint_every=1).train()
    trainer = tiny_trainer(backbone, tmp_path, callbacks=[TrainingRoutingRecorder()], checkpoint_every=1, resume=True)
    with pytest.raises(ValueError, match="were not recorded. Leave record_routing out"):
        trainer.train()
