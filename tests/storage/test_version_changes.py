"""A run that goes on under other versions than it was begun with says so, everywhere; nothing else changes."""

import json
import shutil

import pytest
from runs import (  # noqa: F401 (of the fixture)
    AtStep,
    assert_same_run,
    assert_same_tensors,
    read,
    save_backbone,
    tiny_stream,
    tiny_trainer,
)

from smope_hf import ContinualTrainer
from smope_hf.reports.run_folder import RunFolder
from smope_hf.reports.run_warnings import warnings_of_run
from smope_hf.sharing.checkpoint import load_state
from smope_hf.storage.state_folder import read_content, read_tensors, write_state
from smope_hf.storage.version_changes import change_warning, version_change
from smope_hf.training.run_state import PACKAGES, versions

OTHERS = {**versions(), "torch": "1.0", "threads": "7"}
SETTINGS = {"checkpoint_every": 2}


class Lost(BaseException):
    """Stands for whatever takes a process away."""


def lose(trainer):
    raise Lost


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_trainer(backbone, folder, **SETTINGS).train()
    return folder


@pytest.fixture(scope="module")
def cut(backbone, tmp_path_factory):
    """A run that was lost in its second task, behind step 4."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(Lost):
        tiny_trainer(backbone, folder, callbacks=[AtStep(1, 5, lose)], **SETTINGS).train()
    return folder


@pytest.fixture
def run(cut, tmp_path):
    return shutil.copytree(cut, tmp_path / "run")


def rewrite(folder, found):
    """A task's folder as another installation would have written it, or an older version of the package."""
    state = read(folder, "trainer_state.json")
    state = {name: value for name, value in state.items() if name != "versions" or found is not None}
    state |= {} if found is None else {"versions": found}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    hashes = read(folder, "checksums.json")
    del hashes["sha256"]["trainer_state.json"]
    (folder / "checksums.json").write_text(json.dumps(hashes))


def rewrite_state(folder, **changes):
    content = read_content(folder)
    tensors = read_tensors(folder, content)
    write_state(folder, {**content, **changes}, tensors)


def going_on(backbone, folder, capsys, **settings) -> tuple[list[str], dict]:
    """What a resumed run says of versions, and its metrics.json."""
    capsys.readouterr()
    tiny_trainer(backbone, folder, resume=True, **{**SETTINGS, **settings}).train()
    told = [line for line in capsys.readouterr().out.splitlines() if "under other versions" in line]
    return told, read(folder, "metrics.json")


@pytest.mark.parametrize("name", ["python", "processor", "threads", "processes", *PACKAGES])
def test_each_version_that_is_recorded_is_compared(name):
    now = versions()
    change = version_change({**now, name: "another"}, now, 2, None)
    assert change == {"behind_task": 2, "step": None, "differences": {name: ["another", now[name]]}}
    assert f"behind task 2 under other versions: {name} was 'another' and is '{now[name]}'" in change_warning(change)
    assert version_change(now, now, 2, None) is None
    without = version_change({key: value for key, value in now.items() if key != name}, now, 2, 4)
    assert f"in task 3, behind step 4 of a phase, under other versions: {name} was not recorded." in change_warning(
        without
    )


@pytest.mark.slow
def test_a_run_under_the_same_versions_says_nothing(backbone, whole, run, capsys):
    told, content = going_on(backbone, run, capsys)
    assert told == [] and content["version_changes"] == []
    assert_same_run(whole, run)


def test_a_task_of_other_versions_is_gone_on_from_with_a_warning(backbone, run, capsys):
    shutil.rmtree(run / "state")
    rewrite(run / "task-01", OTHERS)
    told, content = going_on(backbone, run, capsys)
    (change,) = content["version_changes"]
    expected = {"torch": ["1.0", versions()["torch"]], "threads": ["7", versions()["threads"]]}
    assert change == {"behind_task": 1, "step": None, "differences": expected}
    warning = change_warning(change)
    assert told == [f"Warning: {warning}"] and content["warnings"].count(warning) == 1
    assert warnings_of_run(RunFolder(run)).count(warning) == 1
    assert load_state(run / "task-03")["version_changes"] == [change]
    assert load_state(run / "task-03")["versions"] == versions()
    told, content = going_on(backbone, run, capsys)  # behind its last task, which versions of now have written
    assert told == [] and content["version_changes"] == [change]


@pytest.mark.slow
def test_a_state_of_other_versions_counts_and_not_that_of_the_task_before_it(backbone, run, capsys):
    rewrite(run / "task-01", {**versions(), "numpy": "0.1"})
    earlier = version_change({**versions(), "numpy": "0.1"}, OTHERS, 1, None)
    rewrite_state(run / "state", versions=OTHERS, version_changes=[earlier])
    told, content = going_on(backbone, run, capsys)
    later = version_change(OTHERS, versions(), 1, 4)
    assert content["version_changes"] == [earlier, later] and len(told) == 1
    assert "in task 2, behind step 4 of a phase, under other versions: " in told[0] and "torch was '1.0'" in told[0]
    assert [change_warning(change) in content["warnings"] for change in (earlier, later)] == [True, True]


@pytest.mark.slow
def test_a_state_without_versions_is_of_unknown_ones(backbone, run, capsys):
    content = {name: value for name, value in read_content(run / "state").items() if "version" not in name}
    write_state(
        run / "state", {**content, "format_version": 1}, read_tensors(run / "state", read_content(run / "state"))
    )
    told, content = going_on(backbone, run, capsys)
    (change,) = content["version_changes"]
    assert change["differences"] == {name: [None, value] for name, value in versions().items()}
    assert len(told) == 1 and f"under other versions: {', '.join(versions())} were not recorded." in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("found", [OTHERS, {}])
def test_new_classes_for_a_model_of_other_versions_come_with_a_warning(whole, tmp_path, capsys, found):
    before = shutil.copytree(whole / "task-02", tmp_path / "task-02")
    rewrite(before, found)
    classes = list(tiny_stream()[2].class_names)
    trainer = ContinualTrainer.from_checkpoint(
        before, tiny_stream(num_tasks=None, class_lists=[classes]), output_dir=tmp_path / "more", eval_batch_size=8,
        disable_progress=True, report=False,
    )  # fmt: skip
    content = trainer.train()
    (change,) = content["version_changes"]
    assert change == version_change(found, versions(), 2, None)
    assert capsys.readouterr().out.count(f"Warning: {change_warning(change)}") == 1
    assert change_warning(change) in content["warnings"]
    assert_same_tensors(whole / "task-03", tmp_path / "more" / "task-03")


@pytest.mark.parametrize(
    "value", [5, [5], [{}], [{"behind_task": 1, "step": None, "differences": {"torch": ["1", 2]}}],
              [{"behind_task": -1, "step": None, "differences": {}}],
              [{"behind_task": 1, "step": None, "differences": {"torch": ["1"]}}],
              [{"behind_task": 1, "step": None, "differences": {str(i): [None, "1"] for i in range(33)}}],
              [{"behind_task": 1, "step": None, "differences": {}}] * 1001],
)  # fmt: skip
def test_changes_that_no_run_has_written_are_refused_by_field(cut, tmp_path, value):
    folder = shutil.copytree(cut / "task-01", tmp_path / "task-01")
    (folder / "trainer_state.json").write_text(
        json.dumps({**read(folder, "trainer_state.json"), "version_changes": value})
    )
    with pytest.raises(ValueError, match="trainer_state.json: version_changes is .* Allowed: a list of objects with"):
        load_state(folder)


def test_what_others_wrote_as_a_version_is_shown_as_text():
    escape = "\x1b[31m" + "x" * 500
    text = change_warning(version_change({escape: escape, "torch": escape}, {escape: "1", "torch": "2"}, 1, None))
    assert text.isprintable() and len(text) < 600
