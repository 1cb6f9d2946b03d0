"""A run that is stopped in the middle of a task goes on there, and ends as if nothing had happened."""

import re
import shutil
import signal

import pytest
from mid_task_runs import RUN, Lost, StopAt, lose, make, resumed, stopped, whole_runs
from runs import (  # noqa: F401 (of the fixture)
    assert_same_run,
    assert_same_tensors,
    drop_signal,
    save_backbone,
    tiny_stream,
)

from smope_hf import ContinualTrainer
from smope_hf.storage.state_folder import read_content, read_tensors, write_state
from smope_hf.training.interruption import TrainingInterrupted

STEPS = {"dense": 3, "sparse": 6}  # 18 images in batches of 8, and 1 and 2 epochs


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    return whole_runs(backbone, tmp_path_factory)


# ---------------------------------------------------------------------- going on


@pytest.mark.parametrize(
    "task, step, phase, done",
    [
        (0, 1, None, 0),  # before the first saving: the run begins anew
        (0, 2, "dense", 2),
        (0, 3, "dense", 3),  # between the phases
        (0, 4, "dense", 3),
        (0, 8, "sparse", 4),
        (1, 1, None, 0),
        (1, 5, "sparse", 4),  # in the second epoch
        (2, 2, "sparse", 2),  # in the first
    ],
)
def test_a_run_goes_on_where_it_was_saved_last(backbone, whole, tmp_path, task, step, phase, done):
    expected, _, heard = whole()
    before, _ = stopped(backbone, tmp_path, task, step)
    content = read_content(tmp_path / "state")
    if phase is None:
        assert content is None
    else:
        assert (content["task"], content["phase"], content["step"]) == (task, phase, done)
        assert content["steps"] == STEPS[phase]
    _, after = resumed(backbone, tmp_path)
    assert_same_run(expected, tmp_path)
    kept = [entry for entry in before.losses if entry not in after.losses]
    assert kept + after.losses == heard.losses  # nothing is logged with other numbers, and nothing is left out


@pytest.mark.parametrize("stage", ["statistics", "alignment", "evaluation", "saving"])
def test_a_task_is_not_trained_again_when_it_is_lost_behind_its_training(
    backbone, whole, tmp_path, monkeypatch, stage
):
    expected, _, _ = whole()
    place = {
        "statistics": "smope_hf.training.statistics_pass.take_statistics",
        "alignment": "smope_hf.training.trainer.align_classifier",
        "evaluation": "smope_hf.training.trainer.evaluate_tasks",
        "saving": "smope_hf.sharing.checkpoint.write_card",
    }[stage]
    module, name = place.rsplit(".", 1)
    right, calls = getattr(__import__(module, fromlist=[name]), name), []

    def second_time_lost(*arguments, **options):
        calls.append(0)
        if len(calls) == (1 if stage == "alignment" else 2):  # of the second task
            right(*arguments, **options)
            raise Lost
        return right(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, second_time_lost)
        with pytest.raises(Lost):
            make(backbone, tmp_path).train()
    assert read_content(tmp_path / "state")["step"] == STEPS["sparse"]
    resumed(backbone, tmp_path)
    trained = StopAt(1, 0, lose)  # the second task has no step left
    assert_same_run(expected, tmp_path)
    shutil.rmtree(tmp_path / "task-03")
    make(backbone, tmp_path, callback=trained, resume=True).train()
    assert_same_run(expected, tmp_path)


@pytest.mark.parametrize("method", ["ovor", "finetune", "coda-prompt"])
def test_methods_that_draw_in_their_steps_or_train_the_backbone_go_on_too(backbone, whole, tmp_path, method):
    expected, _, _ = whole(method=method)
    stopped(backbone, tmp_path, 1, 3, method=method)
    assert read_content(tmp_path / "state")["step"] == 2
    resumed(backbone, tmp_path, method=method)
    assert_same_run(expected, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 3},
        {"lr_schedule": "cosine-per-epoch", "weight_decay": 0.1, "max_grad_norm": 1.0},
        {"freeze_epochs": 1, "statistics": "train", "alignment": "gaussian", "alignment_epochs": 2},
        {"mixed_precision": "bf16"},
        {"compare_alignments": ["none"]},
    ],
    ids=str,
)
def test_settings_that_reach_into_a_step(backbone, whole, tmp_path, settings):
    expected, _, _ = whole(**settings)
    stopped(backbone, tmp_path, 1, 13 if "gradient_accumulation_steps" in settings else 5, **settings)
    assert read_content(tmp_path / "state")["step"] == 4
    resumed(backbone, tmp_path, **settings)
    assert_same_run(expected, tmp_path)


def test_a_run_may_be_stopped_many_times_and_read_its_losses_otherwise(backbone, whole, tmp_path):
    expected, _, _ = whole()
    stopped(backbone, tmp_path, 0, 2)
    for step in (2, 2, 2):
        stopped(backbone, tmp_path, 0, step, resume=True)
    _, heard = resumed(backbone, tmp_path, logging_steps=1, checkpoint_every=0)
    assert_same_run(expected, tmp_path)
    assert len(heard.losses) > len(whole()[2].losses) / 2


def test_the_state_saves_work(backbone, tmp_path):
    """Steps that a state has are not computed again."""
    stopped(backbone, tmp_path, 1, 5)
    stopped(backbone, tmp_path, 1, 1, resume=True)  # the fifth step was lost and is the first one now
    content = read_content(tmp_path / "state")
    assert (content["task"], content["step"]) == (1, 4)


def test_seconds_of_all_parts_are_counted(backbone, tmp_path):
    stopped(backbone, tmp_path, 1, 5)
    folder = tmp_path / "state"
    saved, tensors = read_content(folder), read_tensors(folder, read_content(folder))
    assert saved["seconds"]["training"] > 0 and saved["seconds"]["statistics"] > 0
    write_state(folder, {**saved, "seconds": {"training": 1000.0, "statistics": 500.0}}, tensors)
    seconds = resumed(backbone, tmp_path)[0]["seconds_by_task"][1]
    assert 1000 < seconds["training"] < 1100 and 500 < seconds["statistics"] < 600


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("every", [0, 2])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(backbone, whole, tmp_path, capsys, number, status, every):
    expected, _, _ = whole()
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    _, stop = stopped(
        backbone, tmp_path, 1, 2, lambda: signal.raise_signal(number), TrainingInterrupted, checkpoint_every=every
    )
    assert stop.code == status
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    content = read_content(tmp_path / "state")
    assert (content["task"], content["phase"], content["step"]) == (1, "sparse", 3)
    message = capsys.readouterr().err
    assert f"Stopped by {signal.Signals(number).name}" in message and f"stands in {tmp_path}/state" in message
    assert "--resume goes on from there" in message
    resumed(backbone, tmp_path)
    assert_same_run(expected, tmp_path)


def test_a_signal_outside_of_training_leaves_at_once(backbone, whole, tmp_path, capsys, monkeypatch):
    expected, _, _ = whole()
    with monkeypatch.context() as patch:
        patch.setattr("smope_hf.training.trainer.evaluate_tasks", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            make(backbone, tmp_path, checkpoint_every=0).train()
    assert "Nothing was saved yet; the same command begins anew." in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("smope_hf.training.trainer.evaluate_tasks", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            make(backbone, tmp_path).train()
    assert f"stands in {tmp_path}/state" in capsys.readouterr().err
    resumed(backbone, tmp_path)
    assert_same_run(expected, tmp_path)


def test_an_impatient_second_signal_does_not_wait(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("smope_hf.training.interruption.PATIENCE", 0.0)

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the step went on")

    stopped(backbone, tmp_path, 0, 1, twice, TrainingInterrupted)
    assert read_content(tmp_path / "state") is None


def test_a_launchers_echo_of_the_signal_is_no_second_one(backbone, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    _, stop = stopped(backbone, tmp_path, 0, 0, twice, TrainingInterrupted)
    assert stop.code == 130 and read_content(tmp_path / "state")["step"] == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "place, stages, message",
    [
        ("trainer_folder.write_skipped", set(), "Nothing was saved yet"),  # before the first stage
        ("trainer.derive_seed", {"statistics"}, "Nothing was saved yet"),  # when the model begins the task
        ("training_phase.build_optimizer", {"statistics"}, "Nothing was saved yet"),  # in front of the first step
        ("statistics_pass.take_statistics", {"statistics", "training"}, "The training stands in"),
        ("trainer.evaluate_tasks", {"statistics", "training", "alignment", "evaluation"}, "The training stands in"),
        ("checkpoint.write_card", set(), "The last whole task is .*task-01"),
        ("results.print_results", None, "The last whole task is .*task-03"),  # when all is done
    ],
)
def test_a_signal_that_python_drops_ends_the_run_at_the_next_boundary(
    backbone, whole, tmp_path, capsys, monkeypatch, place, stages, message
):
    module, name = f"smope_hf.{place}".rsplit(".", 1)
    right = getattr(__import__(module, fromlist=[name]), name)

    def drops(*arguments, **options):
        drop_signal(signal.SIGTERM)
        return right(*arguments, **options)

    trainer = make(backbone, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted) as stop:
        patch.setattr(f"{module}.{name}", drops)
        trainer.train()
    assert stop.value.code == 143 and re.search(f"Stopped by SIGTERM. {message}", capsys.readouterr().err)
    if stages is not None:
        assert trainer.state.seconds[-1].keys() == stages
    resumed(backbone, tmp_path)
    assert_same_run(whole()[0], tmp_path)


# ---------------------------------------------------------------------- the same trainer again


@pytest.mark.parametrize("method", ["smope", "linear"])
@pytest.mark.parametrize("saves", [True, False])
def test_a_trainer_left_in_its_first_task_is_not_gone_on_with(backbone, whole, tmp_path, method, saves):
    settings = RUN if saves else {"checkpoint_every": 0, "save_checkpoints": False}
    trainer = make(backbone, tmp_path, method, StopAt(0, 2, lose), **settings)
    with pytest.raises(Lost):
        trainer.train()
    with pytest.raises(RuntimeError, match="begun task 1, and only 0 tasks are whole.* new trainer.* resume=True"):
        trainer.train()
    if saves:
        assert read_content(tmp_path / "state")["step"] == 2
        resumed(backbone, tmp_path, method=method)  # what was advised helps
        assert_same_run(whole(method=method)[0], tmp_path)


def test_a_trainer_left_in_the_first_task_of_its_own_is_not_gone_on_with(backbone, whole, tmp_path):
    expected, _, _ = whole()
    stream = tiny_stream()
    names = [list(task.class_names) for task in stream]

    def more(callback, **settings):
        return ContinualTrainer.from_checkpoint(
            expected / "task-02", tiny_stream(num_tasks=None, class_lists=names[2:]), output_dir=tmp_path,
            callbacks=[callback], disable_progress=True, eval_batch_size=8, **RUN, **settings,
        )  # fmt: skip

    trainer = more(StopAt(2, 3, lose))
    with pytest.raises(Lost):
        trainer.train()
    with pytest.raises(RuntimeError, match="begun task 3, and only 2 tasks are whole"):
        trainer.train()
    assert read_content(tmp_path / "state")["step"] == 2
    more(StopAt(), resume=True).train()
    assert_same_tensors(expected / "task-03", tmp_path / "task-03")


def test_a_trainer_left_behind_a_saved_task_goes_on_from_it(backbone, whole, tmp_path):
    expected, _, _ = whole()
    trainer = make(backbone, tmp_path, callback=StopAt(1, 3, lose))
    with pytest.raises(Lost):
        trainer.train()
    trainer.callbacks = []
    trainer.train()
    assert_same_run(expected, tmp_path)
