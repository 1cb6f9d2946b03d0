"""`examples/tune.py`: settings chosen on validation images, with the same trials for every method."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from runs import read
from test_benchmark import TINY

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "tune.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("example_tune", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder, *options):
    command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), *TINY, *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_grid_of_several_settings_is_every_combination(script):
    assert script.read_grid("a=1,2") == ["a=1", "a=2"]
    assert script.read_grid("a=1,2  b=x,y") == ["a=1,b=x", "a=1,b=y", "a=2,b=x", "a=2,b=y"]
    assert script.read_grid("prompt_layers=0+1,2+3") == ["prompt_layers=0+1", "prompt_layers=2+3"]


@pytest.mark.parametrize("grid", ["", "  ", "a", "a=", "=1", "a=1 a=2", "a=1,1", "a=1 b"])
def test_what_is_no_grid_is_refused_before_anything_is_trained(grid, tmp_path):
    refused = run(tmp_path / "new", "--methods", "lda", "--grid", grid)
    assert refused.returncode == 1 and f"--grid {grid!r} is not allowed" in refused.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_test_images_are_refused(tmp_path):
    for option in (["--evaluate_on", "test"], ["--evaluate_on=test"], ["--evaluate-on", "test"]):
        refused = run(tmp_path / "new", "--methods", "lda", "--grid", "alignment_shrinkage=0.1", *option)
        assert refused.returncode == 1 and "settings are chosen on validation images" in refused.stderr
    for name in ("evaluate_on=test", "validation_fraction=0.5"):  # an entry's settings come last, and would win
        for methods, grid in ((f"lda:{name}", "alignment_shrinkage=0.1"), ("lda", f"alignment_shrinkage=0.1 {name}")):
            refused = run(tmp_path / "new", "--methods", methods, "--grid", grid)
            assert refused.returncode == 1 and f"{name.split('=')[0]} is not allowed in" in refused.stderr
    for name in ("evaluate-on=test", "evaluate_o=test"):  # which the command line of a run would take as well
        for methods, grid in ((f"lda:{name}", "alignment_shrinkage=0.1"), ("lda", f"alignment_shrinkage=0.1 {name}")):
            refused = run(tmp_path / "new", "--methods", methods, "--grid", grid)
            assert refused.returncode == 1 and f"because of {name!r}" in refused.stderr
    assert not (tmp_path / "new").exists()


def test_a_setting_of_a_method_and_of_the_grid_is_refused(tmp_path):
    refused = run(tmp_path / "new", "--methods", "linear:epochs=1", "--grid", "epochs=1,2")
    assert refused.returncode == 1 and "'linear:epochs=1' sets epochs, and so does --grid" in refused.stderr
    assert not (tmp_path / "new").exists()


def test_the_best_trial_of_each_method_is_chosen_and_of_equal_ones_the_first(script):
    def row(accuracy):
        return {"method": "entry", "alignment": "lda", "seeds": "1", "FAA": accuracy, "FAA std": ""}

    best = {
        "smope:top_k=3,lr=1": row("9.5"), "smope:top_k=3,lr=2": row("10.5"), "smope:top_k=3,lr=3": row("10.0"),
        "l2p:lr=1": row("7.0"), "l2p:lr=2": row("7.0"), "l2p:lr=3": row("6.0"),
    }  # fmt: skip
    rows = script.trials(["smope:top_k=3", "l2p"], ["lr=1", "lr=2", "lr=3"], best)
    assert [(row["method"], row["settings"]) for row in rows if row["chosen"] == "yes"] == [
        ("smope:top_k=3", "lr=2"), ("l2p", "lr=1"),
    ]  # fmt: skip
    assert [row["FAA"] for row in rows] == ["9.5", "10.5", "10.0", "7.0", "7.0", "6.0"]  # as text 9.5 would be above


@pytest.mark.slow
def test_trials_measure_validation_images_of_the_first_tasks_and_nothing_is_trained_twice(tmp_path):
    options = (
        "--methods", "linear smope:top_k=3", "--grid", "learning_rate=0.005,0.05", "--alignments", "none",
        "--max_tasks", "1", "--validation_fraction", "0.2", "--seeds", "1",
    )  # fmt: skip
    first = run(tmp_path, *options)
    assert first.returncode == 0, first.stderr
    with open(tmp_path / "tuning.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["settings"]) for row in rows] == [
        (method, f"learning_rate={rate}") for method in ("linear", "smope:top_k=3") for rate in ("0.005", "0.05")
    ]
    chosen = {row["method"]: row for row in rows if row["chosen"] == "yes"}
    for method, row in chosen.items():
        assert float(row["FAA"]) == max(float(other["FAA"]) for other in rows if other["method"] == method)
    entries = (f"linear:{chosen['linear']['settings']}", f"smope:top_k=3,{chosen['smope:top_k=3']['settings']}")
    assert first.stdout.splitlines()[-1] == " ".join(entries)
    line = next(line for line in (tmp_path / "tuning.md").read_text().splitlines() if line.startswith("| linear"))
    assert line.count("**") == 2 and line.count("|") == 4
    folders = [path.parent for path in tmp_path.rglob("record.json")]
    assert len(folders) == 4
    for folder in folders:
        manifest = read(folder, "manifest.json")
        assert manifest["options"]["evaluate_on"] == "validation" and manifest["options"]["validation_fraction"] == 0.2
        assert len(manifest["tasks"]) == 1 and manifest["options"]["max_tasks"] == 1
        assert read(folder, "record.json")["settings"]["seed"] == 1
    times = {folder: (folder / "record.json").stat().st_mtime_ns for folder in folders}
    assert run(tmp_path, *options).returncode == 0
    assert {folder: (folder / "record.json").stat().st_mtime_ns for folder in folders} == times
