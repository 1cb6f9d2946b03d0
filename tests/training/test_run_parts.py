"""Each part of a run is built from what it uses, without a trainer and without a run."""

import copy
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import tiny_model
from PIL import Image
from transformers import ViTImageProcessorPil

from smope_hf import ContinualTrainingArguments
from smope_hf.data.augmentation import BatchAugmentation, Normalization
from smope_hf.data.image_store import DecodedImages
from smope_hf.data.split import Task
from smope_hf.heads.alignment import ClassStatistics
from smope_hf.metrics.accuracy_matrix import AccuracyMatrix
from smope_hf.reports.results import ResultsReport
from smope_hf.storage.state_folder import read_content
from smope_hf.training.callbacks import DEFAULT_CALLBACKS
from smope_hf.training.evaluation import evaluate_tasks, predict
from smope_hf.training.health import health_of
from smope_hf.training.interruption import StopSignals, TrainingInterrupted, how_to_go_on, interruptible
from smope_hf.training.mid_task import MidTask
from smope_hf.training.other_alignments import OtherAlignments
from smope_hf.training.passes import ImagePasses, ProgressBars
from smope_hf.training.phase import TrainingPhase
from smope_hf.training.result_files import run_details, write_results
from smope_hf.training.run_state import RunState
from smope_hf.training.statistics_pass import StatisticsStage, features_before, take_statistics
from smope_hf.training.yardsticks import frozen_features, run_yardsticks

PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})
PER_CLASS = 4


class Shades:
    """As `TaskSplit`, of grey images: the classes are shades."""

    def __init__(self, class_ids: range):
        self.labels = np.repeat(class_ids, PER_CLASS)

    def __len__(self):
        return len(self.labels)

    def images(self, rows):
        return [Image.new("RGB", (20, 20), (20 + 50 * int(self.labels[row]) + int(row),) * 3) for row in rows]


def task_of(index: int) -> Task:
    ids = range(2 * index, 2 * index + 2)
    return Task(index, tuple("abcd"[ids.start : ids.stop]), ids, Shades(ids), None, Shades(ids))


def decoded(split: Shades) -> DecodedImages:
    return DecodedImages(split, PROCESSOR)


@pytest.fixture
def passes(tmp_path):
    AcceleratorState._reset_state()
    args = ContinualTrainingArguments(
        output_dir=str(tmp_path), epochs=2, batch_size=4, eval_batch_size=3, logging_steps=2, dataloader_num_workers=0
    )
    bars = ProgressBars(num_tasks=2, disable=True)
    return ImagePasses(Accelerator(), args, Normalization(), BatchAugmentation((16, 16)), bars)


@pytest.fixture
def model():
    """Of two classes, those of the first task."""
    made = tiny_model(num_labels=None)
    made.begin_task(("a", "b"))
    return made


def state_of(model) -> RunState:
    return RunState(ClassStatistics.empty(model.config.hidden_size))


def phase_of(model, passes, **options) -> TrainingPhase:
    parts = {"state": state_of(model), "signals": StopSignals(), "mid_task": MidTask(passes.args, passes.accelerator)}
    return TrainingPhase(model, task_of(0), "sparse", 2, passes=passes, **{**parts, **options})


def test_a_training_phase_trains_and_tells_what_it_does(model, passes):
    before, heard = model.classifier.weight.detach().clone(), []
    phase = phase_of(model, passes, notify=lambda event, *what: heard.append((event, what)))
    assert phase.run(decoded(task_of(0).train)) is model and not model.training
    assert not torch.equal(model.classifier.weight, before)
    assert [event for event, _ in heard] == ["on_forward", "on_forward", "on_log"] * 2  # 8 images in batches of 4
    assert set(heard[2][1][1]) == set(model.losses) and phase.state.logged_steps == 4


def test_a_training_phase_goes_on_from_what_it_saved(model, passes):
    """A signal behind the second of four steps; the other two give what four in a row do."""
    images, whole = decoded(task_of(0).train), copy.deepcopy(model)
    phase_of(whole, passes).run(images)
    state, signals, given = state_of(model), StopSignals(), []
    mid_task = MidTask(
        passes.args, passes.accelerator, callback_states=lambda: {"Mine": {"n": 1}}, restore_callbacks=given.append
    )
    mid_task.begin({})

    def stop(event, *what):
        if event == "on_log":
            signals.received = signal.SIGTERM

    with pytest.raises(TrainingInterrupted):
        phase_of(model, passes, state=state, signals=signals, mid_task=mid_task, notify=stop).run(images)
    content = read_content(mid_task.folder)
    assert content["step"] == 2 and content["callbacks"] == {"Mine": {"n": 1}}
    assert "stands in" in how_to_go_on(passes.args.output_dir)
    model.config.tasks = []  # as a fresh model, whose first task begins again
    mid_task.find(model, state, content["protocol_hash"])
    model.config.tasks = [[0, 1]]
    phase_of(model, passes, state=state, mid_task=mid_task).run(images)
    assert given == [{"Mine": {"n": 1}}] and mid_task.phase is None and state.logged_steps == 4
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in model.state_dict().items())
    mid_task.remove()
    assert not mid_task.folder.exists() and "Nothing was saved" in how_to_go_on(passes.args.output_dir)


def test_a_model_that_was_left_within_a_task_is_refused(model, passes):
    with pytest.raises(RuntimeError, match="has begun task 1, and only 0 tasks are whole"):
        MidTask(passes.args, passes.accelerator).find(model, state_of(model), "hash")


def test_a_statistics_stage_brings_the_state_up_to_date(model, passes):
    passes.args.drift_compensation, passes.args.drift_shrinkage = "shift", 0.0
    state = state_of(model)
    for task in (task_of(0), task_of(1)):
        stage = StatisticsStage(model, task, decoded(task.train), passes)
        if task.index:
            assert torch.equal(stage.before, features_before(model, task, decoded(task.train), passes))
            model.begin_task(task.class_names)
        new = stage.finish(model, state)
        assert new.count.tolist() == [PER_CLASS] * 2
    assert state.statistics.count.tolist() == [PER_CLASS] * 4 and len(state.usage_history) == 2
    statistics, features = take_statistics(model, task_of(1), decoded(task_of(1).train), passes, keep_features=True)
    assert torch.equal(statistics.mean, new.mean) and len(features) == 2 * PER_CLASS


def test_tasks_are_evaluated_as_far_as_the_model_knows_them(model, passes):
    found = evaluate_tasks(model, [task_of(0), task_of(1)], decoded, passes, heads=[model.classifier])
    own, other = found.accuracies
    assert own == other and len(own) == 1 and sum(found.confusion[0]) == 2 * PER_CLASS
    classes = predict(model, decoded(task_of(0).test), passes.normalize, passes.accelerator, batch_size=3)
    assert own[0] == (classes.numpy() == task_of(0).test.labels).mean()


def test_yardsticks_are_measured(passes):
    model = tiny_model(num_labels=None)
    matrices = run_yardsticks(model, [task_of(0), task_of(1)], decoded, passes)
    assert all(len(matrix) == 2 for matrix in matrices.values())
    assert frozen_features(model, decoded(task_of(0).test), passes).shape == (2 * PER_CLASS, 32)


def test_health_details_files_and_report_of_a_run(model, passes, monkeypatch, capsys):
    state = state_of(model)
    StatisticsStage(model, task_of(0), decoded(task_of(0).train), passes).finish(model, state)
    evaluation = evaluate_tasks(model, [task_of(0)], decoded, passes)
    state.matrix = AccuracyMatrix([[0.5]])
    args, others = passes.args, OtherAlignments(passes.args, tiny_model(num_labels=None))
    warning, *_ = health_of(model, state, args.recipe(), newest=True)
    assert warning.startswith("Not learned: right after its training no better than chance was task 1")
    details = run_details(model, state, args, others, evaluation, [2 * PER_CLASS])
    assert warning in details["warnings"] and details["method"] == "SMoPE" and details["num_processes"] == 1
    assert details["recall_by_class"] == evaluation.recalls[0]
    metrics = {"final_average_accuracy": 0.5, "cumulative_average_accuracy": 0.5}
    metrics |= {"forgetting": None, "backward_transfer": None}
    manifest = {"protocol_hash": "0" * 64}
    content = write_results(args.output_dir, state.matrix, [8], manifest, {"metrics": metrics, **details})
    drawn = []
    for name in ("plot_accuracy_matrix", "plot_average_accuracy"):
        monkeypatch.setattr(f"smope_hf.reports.results.{name}", lambda what, file, **_: drawn.append(file.name))
    monkeypatch.setattr("smope_hf.reports.results.write_report", lambda folder: drawn.append("report.html"))

    class Run:
        accelerator, yardsticks = passes.accelerator, {}

    Run.args, Run.state = args, state
    assert isinstance(DEFAULT_CALLBACKS["report"](), ResultsReport)
    ResultsReport().on_train_end(Run, content)
    assert drawn == ["accuracy_matrix.png", "average_accuracy.png", "report.html"]
    assert "accuracy in percent" in capsys.readouterr().out


def test_a_signal_ends_a_block_with_advice_and_finishes_trackers(passes, capsys):
    class Tracker:
        finished = 0

        def finish(self):
            Tracker.finished += 1

    passes.accelerator.trackers = [Tracker()]
    with pytest.raises(TrainingInterrupted):
        with interruptible(StopSignals(), passes.accelerator, passes.args.output_dir):
            signal.raise_signal(signal.SIGTERM)
    assert "Stopped by SIGTERM. Nothing was saved yet" in capsys.readouterr().err
    assert Tracker.finished == 1 and passes.accelerator.trackers == []
