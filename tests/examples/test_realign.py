"""`examples/realign.py`: other heads for a finished run equal those that a run with these settings would have had."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import read, tiny_stream
from test_benchmark import benchmark

from smope_hf import ContinualTrainingArguments

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "realign.py"
METHODS = ("smope", "dualprompt", "finetune")  # one whose backbone is in its checkpoints


def load_script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module(SCRIPT.stem)


def realign(monkeypatch, *options):
    given = [str(SCRIPT), *map(str, options), "--dataset", "embedded", "--num_threads", "1"]
    monkeypatch.setattr(sys, "argv", given)
    load_script(monkeypatch).main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as monkeypatch:
        options = ("--alignments", "lda-uncompensated,none", "--alignment_shrinkage", "0.1", "--imbalance_factor", "2",
                   "--max_test_samples_per_class", "12")  # fmt: skip
        benchmark(monkeypatch, folder, *options, methods=",".join(METHODS), seeds="0")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_runs_own_settings_give_its_own_accuracy(method, finished, monkeypatch):
    run = finished / method / "seed-0"
    grid = "drift_compensation=linear,none,afresh alignment_shrinkage=0.1,estimated"
    given = () if method == "finetune" else ("--backbone", "embedded")
    realign(monkeypatch, run, "--grid", grid, "--held_out", 3, *given)
    content, record = read(run, "realigned.json"), read(run, "record.json")["metrics"]
    rows = {row["settings"]: row for row in content["rows"]}
    assert len(rows) == 6 and content["held_out_per_class"] == 3
    assert all(0 < row["held_out"] <= 1 for row in rows.values())
    for kind, alignment in (("linear", "lda"), ("none", "lda-uncompensated")):
        row, expected = rows[f"drift_compensation={kind},alignment_shrinkage=0.1"], record[alignment]
        assert row["test"] == pytest.approx(expected["final_average_accuracy"])
        thirds = ("recall_many", "recall_medium", "recall_few")
        assert [row[name] for name in thirds] == pytest.approx([expected[name] for name in thirds])
    assert len({tuple(row[name] for name in row if name != "settings") for row in rows.values()}) > 1


@pytest.mark.slow
def test_what_it_cannot_do_is_refused(finished, monkeypatch, capsys):
    run = finished / "smope" / "seed-0"
    for grid, message in (
        ("epochs=1,2", "--grid with 'epochs=1' is not allowed"),
        ("alignment=gaussian,lda", "--grid with 'alignment=gaussian' is not allowed"),
        ("drift_shrinkage=0,1", "drift_shrinkage = 0.0 is not allowed"),
        ("drift_shrinkage=1,1", "--grid 'drift_shrinkage=1,1' is not allowed"),
    ):
        with pytest.raises(SystemExit) as stopped:
            realign(monkeypatch, run, "--grid", grid)
        assert message in str(stopped.value)
    with pytest.raises(SystemExit) as stopped:
        realign(monkeypatch, finished / "nothing", "--grid", "drift_shrinkage=1")
    assert "settings.json" in str(stopped.value)


@pytest.mark.slow
def test_other_images_than_the_runs_and_a_cut_run_are_refused(finished, tmp_path, monkeypatch):
    run = shutil.copytree(finished / "smope" / "seed-0", tmp_path / "run")
    (run / "realigned.json").unlink(missing_ok=True)  # of another test on the same run
    settings = read(run, "settings.json")
    (run / "settings.json").write_text(json.dumps(settings | {"class_order_seed": 1}))
    with pytest.raises(SystemExit, match="has learned other tasks than these of --dataset embedded: task 0: classes"):
        realign(monkeypatch, run, "--grid", "drift_shrinkage=1", "--backbone", "embedded")
    (run / "settings.json").write_text(json.dumps(settings))
    shutil.rmtree(run / "task-02")
    with pytest.raises(SystemExit, match="task-02 is missing. Give a run that is whole"):
        realign(monkeypatch, run, "--grid", "drift_shrinkage=1", "--backbone", "embedded")
    assert not (run / "realigned.json").exists()


def test_heads_that_need_sampling_are_not_set_anew(monkeypatch):
    """From no old class they would take no step, and be measured as drawn."""
    script = load_script(monkeypatch)
    for alignment in ("none", "gaussian", "gaussian-full"):
        args = ContinualTrainingArguments("nowhere", alignment=alignment)
        with pytest.raises(ValueError, match=f"alignment = '{alignment}', the run's own.*Put alignment=lda"):
            script.arguments_of("drift_shrinkage=1", args)
        changed, _ = script.arguments_of("drift_shrinkage=1,alignment=ncm", args)
        assert changed.alignment == "ncm"
    changed, _ = script.arguments_of("drift_shrinkage=1", ContinualTrainingArguments("nowhere"), closed_form="ncm")
    assert changed.alignment == "ncm"  # a run with --method ncm


def test_held_out_images_are_others_than_the_runs(monkeypatch):
    script = load_script(monkeypatch)
    used = tiny_stream(max_train_samples_per_class=3)[1].train
    whole = tiny_stream()[1].train
    held_out = script.held_out_images(used, whole, 2)
    labels, counts = np.unique(held_out.labels, return_counts=True)
    assert set(labels) == set(whole.labels) and set(counts) == {2}
    assert not set(held_out.source_rows) & set(used.source_rows)
    assert set(held_out.source_rows) < set(whole.source_rows)
    with pytest.raises(ValueError, match="--held_out needs training images that the run has not seen"):
        script.held_out_images(whole, whole, 2)


def test_statistics_taken_afresh_are_those_of_all_images_under_the_last_prompts(monkeypatch):
    script = load_script(monkeypatch)
    args, afresh = script.arguments_of("drift_compensation=afresh", ContinualTrainingArguments("nowhere"))
    assert afresh and args.drift_compensation == "none"
    features = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    labels = [torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([2, 2, 2, 3, 3, 3])]
    tasks = [script.TaskFeatures(*of, classes, {}) for of, classes in zip(features, labels, strict=True)]
    found = script.statistics_of(tasks, args, afresh)
    for task in tasks:
        for label in task.labels.unique():
            torch.testing.assert_close(found.mean[label].float(), task.last[task.labels == label].mean(dim=0))
    other = script.statistics_of(tasks, *script.arguments_of("drift_compensation=none", args))
    torch.testing.assert_close(other.mean[0].float(), tasks[0].after[:3].mean(dim=0))
