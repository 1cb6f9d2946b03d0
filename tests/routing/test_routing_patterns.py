"""Patterns of the routing: known numbers, what must not matter, the recorder of a run, and its pictures."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_images, tiny_model
from pictures import check_labels, check_png
from runs import assert_same_tensors, read, save_backbone, tiny_trainer
from safetensors.torch import load_file
from stopping import Stop
from typer.testing import CliRunner

from smope_hf.cli.program import app
from smope_hf.reports.plot_style import DARK
from smope_hf.reports.routing_plots import plot_balance, plot_survival, plot_task_overlap
from smope_hf.routing.patterns import balance, routing_survival, selections, survival_of_tasks, task_overlap
from smope_hf.routing.record import balance_over_tasks, load_patterns, overlap_of_tasks, survival_over_tasks
from smope_hf.training.callbacks import ContinualCallback
from smope_hf.training.routing_recorder import RoutingRecorder

TASKS = (2, 10, 20, 100)


# ---------------------------------------------------------------------- known numbers


@pytest.mark.parametrize(
    ("counts", "entropy", "gini", "dead"),
    [
        ([3, 3, 3, 3], 1, 0, 0),
        ([8, 0, 0, 0], 0, 0.75, 0.75),
        ([5, 5, 0, 0], 0.5, 0.5, 0.5),
        ([1, 1, 2, 4], 0.875, 0.3125, 0),  # 1.75 bits of 2; the 16 pairs differ by 20 in all: 20 / 16 / (2 * mean 2)
        ([0, 0, 0, 0], 1, 0, 1),
        ([7], 1, 0, 0),
    ],
)
def test_balance_of_known_counts(counts, entropy, gini, dead):
    np.testing.assert_allclose(balance(counts), [entropy, gini, dead], atol=1e-12)
    np.testing.assert_allclose(balance(np.array(counts) / 64), [entropy, gini, dead], atol=1e-12)


def test_gini_is_the_mean_difference_of_all_pairs():
    counts = np.random.default_rng(0).integers(0, 9, (3, 2, 7))
    pairs = np.abs(counts[..., :, None] - counts[..., None, :]).mean(axis=(-1, -2))
    np.testing.assert_allclose(balance(counts).gini, pairs / (2 * counts.mean(axis=-1)))


def test_overlap_of_known_tasks():
    usage = np.zeros((3, 1, 2, 4))
    usage[0, 0] = [[2, 2, 0, 0], [4, 0, 0, 0]]
    usage[1, 0] = [[1, 0, 3, 0], [0, 4, 0, 0]]
    usage[2, 0] = [[5, 5, 5, 5], [9, 0, 0, 0]]  # more images than the others
    usage_overlap, experts = task_overlap(usage)
    assert usage_overlap.shape == experts.shape == (1, 3, 3)
    # tasks 1 and 2: min of (1/2, 1/2, 0, 0) and (1/4, 0, 3/4, 0) is 1/4; sets {0, 1} and {0, 2} share 1 of 3
    np.testing.assert_allclose(usage_overlap[0], [[1, 0.125, 0.75], [0.125, 1, 0.25], [0.75, 0.25, 1]])
    np.testing.assert_allclose(experts[0], [[1, 1 / 6, 0.75], [1 / 6, 1, 0.25], [0.75, 0.25, 1]])


def test_overlap_keeps_layers_apart():
    usage = np.array([[[[1, 0]], [[1, 0]]], [[[1, 0]], [[0, 1]]]])  # the second layer alone changes its expert
    np.testing.assert_array_equal(task_overlap(usage).usage[:, 0, 1], [1, 0])
    np.testing.assert_array_equal(task_overlap(usage).experts[:, 0, 1], [1, 0])


def test_survival_of_known_selections():
    old = np.array([[[0, 1], [2, 3]], [[4, 5], [0, 5]]])  # 2 images, 2 heads, 2 experts
    new = np.array([[[1, 0], [3, 4]], [[0, 1], [0, 5]]])
    np.testing.assert_array_equal(routing_survival(old, new), [[1, 0.5], [0, 1]])


def test_a_random_choice_keeps_k_of_e():
    rng = np.random.default_rng(0)
    old, new = (np.argsort(rng.random((4000, 25)), axis=-1)[:, :5] for _ in range(2))
    assert routing_survival(old, new).mean() == pytest.approx(0.2, abs=0.01)


def test_the_order_of_experts_changes_nothing():
    rng = np.random.default_rng(0)
    usage, order = rng.integers(0, 4, (3, 2, 2, 6)) + np.eye(6, dtype=int)[0], rng.permutation(6)
    np.testing.assert_allclose(balance(usage), balance(usage[..., order]))
    np.testing.assert_allclose(task_overlap(usage), task_overlap(usage[..., order]))
    old, new = (np.argsort(rng.random((5, 2, 6)), axis=-1)[..., :3] for _ in range(2))
    np.testing.assert_array_equal(routing_survival(order[old], order[new]), routing_survival(old, new))


def test_arrays_that_say_nothing_are_refused():
    for counts in (3, [], [1, -1], [1, np.nan]):
        with pytest.raises(ValueError, match="usage counts"):
            balance(counts)
    with pytest.raises(ValueError, match=r"shape \(2, 3\). Allowed: \(tasks, layers, heads, experts\)"):
        task_overlap(np.ones((2, 3)))
    usage = np.ones((2, 3, 2, 4))
    usage[1, 2, 0] = 0
    with pytest.raises(ValueError, match=r"usage_by_task\[1, 2, 0\] holds zeros only"):
        task_overlap(usage)
    with pytest.raises(ValueError, match=r"\(3, 2\) and new_selected \(1, 2\)"):
        routing_survival(np.ones((3, 2)), np.ones((1, 2)))


# ---------------------------------------------------------------------- of a model


def test_selections_are_those_of_an_evaluation_pass():
    model, pixels = tiny_model(), tiny_images(5)
    for experts in model.prefix_experts:
        experts.usage_counts += 1
        experts.frequently_used[:, :3] = True  # would be penalised in training
    expected = [part.numpy() for part in model(pixels, output_router_scores=True).selected_experts]
    model.train()
    found = selections(model, pixels.split(2))
    assert model.training and [part.shape for part in found] == [(5, 2, 2)] * 2
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.sort(mine), np.sort(theirs))
    with pytest.raises(ValueError, match="pixel_batches is empty"):
        selections(model, [])


def test_a_model_keeps_its_own_routing_and_loses_that_of_an_expert_that_moves():
    model, pixels = tiny_model(routing="unmasked"), tiny_images(6)
    then = {1: selections(model, [pixels])}
    np.testing.assert_array_equal(survival_of_tasks(model, then, {1: [pixels]})[1], np.ones((2, 2)))
    with torch.no_grad():
        model.prefix_experts[1].keys[0].neg_()  # the best experts of layer 1's first head are the worst now
    kept = survival_of_tasks(model, then, {1: [pixels]})[1]
    np.testing.assert_array_equal(kept, [[1, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"no images of tasks \[1\]"):
        survival_of_tasks(model, then, {2: [pixels]})


# ---------------------------------------------------------------------- of a run


class Watch(ContinualCallback):
    """Takes the selections of every task's test images after each task by itself."""

    def __init__(self):
        self.seen = {}

    def on_task_end(self, trainer, task):
        for old in trainer.stream[: task.index + 1]:
            pixels = trainer.decoded(old.test).batch(torch.arange(len(old.test)))[0]
            self.seen[task.index, old.index] = selections(trainer.model, [trainer.normalize(pixels)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone and a recorded run of three tasks."""
    folder = tmp_path_factory.mktemp("patterns")
    backbone, watch = save_backbone(folder / "vit"), Watch()
    tiny_trainer(backbone, folder / "run", callbacks=[RoutingRecorder(), watch], learning_rate=0.05).train()
    return folder, watch


def test_the_recorder_writes_what_the_run_did(place):
    folder, watch = place
    record = load_patterns(folder / "run")
    usage = load_file(folder / "run" / "task-03" / "class_statistics.safetensors")["usage_by_task"].numpy()
    assert [task["task"] for task in record["tasks"]] == [1, 2, 3] and record["chance_survival"] == 0.333333
    for index, task in enumerate(record["tasks"]):
        for part, counts in (("balance", usage[: index + 1].sum(axis=0)), ("own_balance", usage[index])):
            for name, values in balance(counts)._asdict().items():
                np.testing.assert_allclose(task[part][name], values, atol=1e-4)
        np.testing.assert_allclose(task["overlap"]["usage"], task_overlap(usage).usage[:, index, :index], atol=1e-4)
        marks = read(folder / "run" / f"task-0{index + 1}", "routing.json")["frequently_used_share"]
        assert np.mean(task["frequently_used_share"]) == pytest.approx(marks, abs=1e-4)
        assert task["test_images"] == 10
        for old, kept in enumerate(task["survival"]):
            then, now = (np.stack(watch.seen[after, old]) for after in (old, index))
            np.testing.assert_allclose(kept, routing_survival(then, now).mean(axis=(1, 2)), atol=1e-4)
    survival = survival_over_tasks(record)
    assert np.isnan(survival[np.tril_indices(3)]).all() and (survival[np.triu_indices(3, 1)] < 1).any()
    np.testing.assert_allclose(survival[0, 2], np.mean(record["tasks"][2]["survival"][0]))
    np.testing.assert_allclose(overlap_of_tasks(record)[0, 1], task_overlap(usage).usage[:, 0, 1].mean(), atol=1e-4)
    entropy, dead = balance_over_tasks(record)
    np.testing.assert_allclose(dead[1], balance(usage[:2].sum(axis=0)).dead_share.mean(axis=-1), atol=1e-4)
    np.testing.assert_allclose(entropy[0], balance(usage[0]).entropy.mean(axis=-1), atol=1e-4)


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_resumed_run_records_the_same(place, tmp_path, killed):
    folder, _ = place
    order = [Stop(1), RoutingRecorder()] if killed == "before" else [RoutingRecorder(), Stop(1)]
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(str(folder / "vit"), tmp_path / "run", callbacks=order, learning_rate=0.05).train()
    assert len(load_patterns(tmp_path / "run")["tasks"]) == (1 if killed == "before" else 2)
    tiny_trainer(
        str(folder / "vit"), tmp_path / "run", callbacks=[RoutingRecorder()], learning_rate=0.05, resume=True
    ).train()
    assert read(tmp_path / "run", "routing_patterns.json") == read(folder / "run", "routing_patterns.json")


def test_a_record_of_another_run_in_the_folder_is_replaced(place, tmp_path):
    folder, _ = place
    settings = {"seed": 5, "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(str(folder / "vit"), tmp_path, callbacks=[Stop(1)], **settings).train()
    shutil.copy(folder / "run" / "routing_patterns.json", tmp_path)
    shutil.copytree(folder / "run" / "routing_selections", tmp_path / "routing_selections")
    recorder = RoutingRecorder(images_per_task=4)
    tiny_trainer(str(folder / "vit"), tmp_path, callbacks=[recorder], resume=True, **settings).train()
    record, other = load_patterns(tmp_path), load_patterns(folder / "run")
    assert [task["test_images"] for task in record["tasks"]] == [0, 4, 4] and record["images_per_task"] == 4
    assert record["tasks"][0]["survival"] is None and record["tasks"][2]["survival"][0] is None
    assert record["tasks"][0]["usage_sha256"] != other["tasks"][0]["usage_sha256"]
    with pytest.raises(ValueError, match="images_per_task = 256, but .* recorded with 4"):
        tiny_trainer(str(folder / "vit"), tmp_path, callbacks=[RoutingRecorder()], resume=True, **settings).train()


def test_what_nobody_recorded_is_null(place, tmp_path):
    folder, _ = place
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(str(folder / "vit"), tmp_path, callbacks=[Stop(1)], learning_rate=0.05).train()
    tiny_trainer(str(folder / "vit"), tmp_path, callbacks=[RoutingRecorder()], learning_rate=0.05, resume=True).train()
    for name in ("task-02", "task-03"):  # recording changes nothing of the run
        assert_same_tensors(tmp_path / name, folder / "run" / name)
    tasks = load_patterns(tmp_path)["tasks"]
    assert tasks[0]["survival"] is None and tasks[0]["frequently_used_share"] is None
    assert tasks[1]["survival"] == [None] and tasks[2]["survival"][0] is None  # task 2 before task 3 began
    assert len(tasks[2]["survival"][1]) == 2 and len(tasks[2]["overlap"]["usage"][0]) == 2
    assert [task["own_balance"]["gini"] is None for task in tasks] == [False] * 3


def test_models_without_experts_are_refused(tmp_path):
    class Plain:
        records_usage = False

    with pytest.raises(ValueError, match="records the experts of SMoPE, and Plain has none"):
        RoutingRecorder().on_task_begin(type("Trainer", (), {"model": Plain()})(), None)
    with pytest.raises(ValueError, match="images_per_task = 0 is not allowed"):
        RoutingRecorder(images_per_task=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(tasks=[]), "tasks is"),
        (lambda record: record.update(format_version=2), "format_version is 2"),
        (lambda record: record["tasks"][1].update(survival=[[0.5]]), r"tasks\[1\].survival is \[\[0.5\]\]"),
        (lambda record: record["tasks"][2]["overlap"].update(usage=[[1, 2]] * 2), r"tasks\[2\].overlap.usage"),
        (lambda record: record["tasks"][0]["balance"].pop("entropy"), r"tasks\[0\].balance.entropy is None"),
        (lambda record: record.pop("layers"), "layers is None"),
    ],
)
def test_a_broken_record_is_refused(place, tmp_path, change, message):
    record = read(place[0] / "run", "routing_patterns.json")
    change(record)
    (tmp_path / "routing_patterns.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        load_patterns(tmp_path)


def test_plot_draws_what_was_recorded(place, tmp_path):
    done = CliRunner().invoke(app, ["plot", str(place[0] / "run"), "--output", str(tmp_path), "--format", "svg"])
    assert done.exit_code == 0, done.output
    names = {"routing_balance.svg", "routing_overlap.svg", "routing_survival.svg"}
    assert names <= set(os.listdir(tmp_path)) and names <= {os.path.basename(name) for name in done.stdout.split()}
    assert "random choice: 33.3%" in (tmp_path / "routing_survival.svg").read_text()


# ---------------------------------------------------------------------- pictures


@pytest.mark.parametrize("num_tasks", TASKS)
def test_overlap_plot(num_tasks, tmp_path):
    overlap = np.random.default_rng(0).uniform(0.2, 0.7, (3, num_tasks, num_tasks))
    figure = plot_task_overlap(overlap, tmp_path / "a.png", title="Overlap of tasks " * 6, dpi=100)
    check_png(tmp_path / "a.png", width=600)
    check_labels(figure)
    expected = 100 * overlap.mean(axis=0)
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array().filled(np.nan), expected)


@pytest.mark.parametrize("num_tasks", TASKS)
def test_survival_plot(num_tasks, tmp_path):
    survival = np.random.default_rng(0).uniform(0.2, 1, (num_tasks, num_tasks))
    survival[0, num_tasks - 1] = 1
    if num_tasks > 2:
        survival[0, 1] = np.nan
    figure = plot_survival(survival, tmp_path / "a.png", chance=0.2, dpi=100, theme=DARK)
    check_png(tmp_path / "a.png", width=600)
    check_labels(figure)
    expected = 100 * survival
    expected[np.tril_indices(num_tasks)] = np.nan
    drawn = figure.axes[0].images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(drawn, expected)
    if num_tasks == 2:
        assert [text.get_text() for text in figure.axes[0].texts] == ["100.0"]
        assert figure.axes[0].get_xlabel() == "After learning task"  # columns


@pytest.mark.parametrize(("num_tasks", "num_layers"), [(1, 1), (2, 6), (10, 7), (1, 8), (10, 12), (20, 24), (100, 32)])
def test_balance_plot(num_tasks, num_layers, tmp_path):
    entropy, dead = np.random.default_rng(0).uniform(0, 1, (2, num_tasks, num_layers))
    layers = range(4, 4 + num_layers)
    figure = plot_balance(entropy, dead, tmp_path / "a.png", layers=layers, title="Balance", dpi=100)
    check_png(tmp_path / "a.png", width=600)
    check_labels(figure)
    for axes, values in zip(figure.axes, (entropy, dead)):
        if num_layers <= 7:
            np.testing.assert_allclose([line.get_ydata() for line in axes.lines], 100 * values.T)
            assert len({line.get_color() for line in axes.lines}) == num_layers
        else:  # more lines would not be told apart
            (cells,) = axes.collections
            np.testing.assert_allclose(cells.get_array(), 100 * values.T)
            assert axes.get_yticklabels()[0].get_text() == "4" and axes.get_ylabel() == "Prompt layer"
            assert axes.yaxis_inverted() and axes.get_xlim() == (0.5, num_tasks + 0.5)
    if num_layers <= 7:
        scale = figure.axes[2]
        assert scale.get_yticklabels()[0].get_text() == "4" and scale.get_ylabel() == "Prompt layer"


def test_numbers_that_do_not_fit_a_picture_are_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"overlap has shape \(1, 1\). Allowed: .* at least two tasks"):
        plot_task_overlap([[1.0]], path)
    with pytest.raises(ValueError, match="survival holds 50. Allowed: fractions"):
        plot_survival([[1, 50], [1, 1]], path)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_survival(np.full((2, 2), np.nan), path)
    with pytest.raises(ValueError, match=r"\(2, 2\) and dead_share \(2, 1\)"):
        plot_balance(np.ones((2, 2)), np.ones((2, 1)), path)
    with pytest.raises(ValueError, match="dead_share holds nan"):
        plot_balance([[1.0]], [[np.nan]], path)
    with pytest.raises(ValueError, match="layers has 2 numbers for 1"):
        plot_balance([[1.0]], [[0.0]], path, layers=[0, 1])
    assert os.listdir(tmp_path) == []
