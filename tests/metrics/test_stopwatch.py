"""Durations are never below 0, and a run that an earlier version wrote with such seconds is read."""

import itertools
import json

import pytest
from runs import AtStep, read, save_backbone, tiny_stream, tiny_trainer

from smope_hf.metrics.stopwatch import as_measured, seconds_since
from smope_hf.reports.run_folder import RunFolder
from smope_hf.sharing.checkpoint import load_state
from smope_hf.storage.files import write_json
from smope_hf.storage.state_folder import INDEX_FILE, read_content


@pytest.fixture
def backwards(monkeypatch):
    """A clock that goes back by a thousand seconds each time that it is read."""
    readings = itertools.count(10**6, -1000)
    monkeypatch.setattr("time.perf_counter", lambda: float(next(readings)))


def test_a_duration_is_at_least_0(backwards):
    assert seconds_since(5e5) > 0 and seconds_since(2e6) == 0
    assert as_measured({"training": -3.5, "saving": 2.0, "evaluation": 0}) == {
        "training": 0, "saving": 2.0, "evaluation": 0,
    }  # fmt: skip


class Stopped(Exception):
    pass


def stop(trainer):
    raise Stopped


def one_task():
    return tiny_stream(num_tasks=None, class_lists=[["a", "b"]])


def test_a_run_under_a_clock_that_goes_back_is_read_and_resumed(tmp_path, monkeypatch):
    backbone = save_backbone(tmp_path / "vit")
    settings = {"checkpoint_every": 1, "stream": one_task()}
    with monkeypatch.context() as patched:
        readings = itertools.count(10**6, -1000)
        patched.setattr("time.perf_counter", lambda: float(next(readings)))
        with pytest.raises(Stopped):
            tiny_trainer(backbone, tmp_path / "run", callbacks=[AtStep(0, 2, stop)], **settings).train()
        content = read_content(tmp_path / "run" / "state")
        assert content["seconds"] and min(content["seconds"].values()) >= 0
        tiny_trainer(backbone, tmp_path / "run", resume=True, **settings).train()
    for place in (tmp_path / "run" / "task-01" / "trainer_state.json", tmp_path / "run" / "metrics.json"):
        seconds = json.loads(place.read_text())["seconds_by_task"]
        assert seconds[0] and all(spent >= 0 for task in seconds for spent in task.values())
    assert load_state(tmp_path / "run" / "task-01") and RunFolder(tmp_path / "run").finished
    _as_an_earlier_version(tmp_path / "run")


def _as_an_earlier_version(run):
    """The seconds that it wrote are read as 0, by all that reads them."""
    for place in (run / "task-01", run):
        name = "trainer_state.json" if place != run else "metrics.json"
        content = read(place, name)
        content["seconds_by_task"] = [{"training": -1000.0, "saving": 2.0}]
        write_json(place / name, content)
    (run / "task-01" / "checksums.json").unlink()
    expected = [{"training": 0, "saving": 2.0}]
    assert load_state(run / "task-01")["seconds_by_task"] == expected
    assert RunFolder(run).content["seconds_by_task"] == expected
    (run / "metrics.json").unlink()
    assert RunFolder(run).content["seconds_by_task"] == expected
    assert INDEX_FILE not in {path.name for path in run.rglob("*.json")}


@pytest.mark.parametrize("seconds", ["1", None, True, [], 1e300, -1e300])
def test_what_is_no_duration_is_refused(tmp_path, seconds):
    from good_checkpoints import STATE

    write_json(tmp_path / "trainer_state.json", {**STATE, "seconds_by_task": [{"training": seconds}]})
    with pytest.raises(ValueError, match="seconds_by_task is .*Allowed: an object of seconds"):
        load_state(tmp_path)
