"""What the command line shows of a run: `smope info` and `smope plot`."""

import json
import os
import shutil

import pytest
from cli_runs import fails, run_with_images, smope

from smope_hf.sharing.inspection import routing_health, warnings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return run_with_images(tmp_path_factory.mktemp("cli"))


# ---------------------------------------------------------------------- info


def test_info_of_a_run(place):
    report = json.loads(smope("info", place / "run", "--json").stdout)
    rows = json.loads((place / "run" / "metrics.json").read_text())["accuracy_matrix"]
    assert report["folder"] == str(place / "run" / "task-03") and report["base_model"] == str(place / "vit")
    assert [task["accuracy"] for task in report["tasks"]] == rows[-1] and report["num_classes"] == 6
    assert report["parameters"] == {"experts": 2 * 2 * 2 * 6 * 16, "head": 6 * 32 + 6, "routing_state": 2 * 2 * 6 * 18}
    assert report["bytes_by_file"]["model.safetensors"] == os.path.getsize(
        place / "run" / "task-03" / "model.safetensors"
    )
    assert [task["task"] for task in report["run"]] == ["task-01", "task-02", "task-03"]
    assert report["run"][1]["average_accuracy"] == pytest.approx(sum(rows[1]) / 2)
    assert [layer["layer"] for layer in report["routing"]] == [0, 1]
    assert any("folder of one machine" in warning for warning in report["warnings"])


def test_info_does_not_need_the_backbone(place, tmp_path):
    checkpoint = tmp_path / "moved"
    checkpoint.mkdir()
    for file in (place / "run" / "task-02").iterdir():
        text = file.read_bytes()
        (checkpoint / file.name).write_bytes(text.replace(str(place / "vit").encode(), b"gone/away"))
    shown = smope("info", checkpoint).stdout
    assert "gone/away" in shown and "4 in 2 tasks" in shown and "Checkpoints of the run" not in shown
    assert max(map(len, shown.replace(str(checkpoint), "").splitlines())) <= 80


def test_a_base_model_that_has_moved_is_named_on_the_command_line(place, tmp_path, monkeypatch):
    checkpoint, vit = tmp_path / "moved", place / "vit"
    shutil.copytree(place / "run" / "task-02", checkpoint)
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(config.replace(str(vit), "/gone/away"))
    (checkpoint / "checksums.json").unlink()
    monkeypatch.setattr(
        "smope_hf.models.export.export_model", lambda model, size, path, kind: path.write_text("") or 0.0
    )
    evaluate = ("evaluate", checkpoint, "--data", place / "data", "--ignore-unknown", "--json")
    predict = ("predict", checkpoint, place / "images" / "a.png", "--json")
    export = ("export", checkpoint, "--output", tmp_path / "out", "--format", "torch")
    for command in (evaluate, predict, export):
        assert "on a command line --backbone" in smope(*command, code=2).stderr
        smope(*command, "--backbone", vit)


def health(shares, dead=(), marked=()):
    layer = {
        "layer": 3,
        "usage_share": [shares],
        "dead_experts": [list(dead)],
        "frequently_used_experts": [list(marked)],
    }
    return routing_health({"layers": [layer]})[0]


def test_balance_of_usage():
    even, alone, half = health([0.25] * 4), health([1, 0, 0, 0]), health([0.5, 0.5, 0, 0])
    assert (even["entropy"], even["gini"]) == (1, 0)
    assert (alone["entropy"], alone["gini"]) == (0, 0.75)  # of n experts, one alone has 1 - 1/n
    assert (half["entropy"], half["gini"]) == (0.5, 0.5)


def test_warnings_come_with_remedies():
    files = dict.fromkeys(("class_statistics.safetensors", "trainer_state.json", "manifest.json"), 1)
    report = {"routing": [health([1, 0, 0, 0], dead=[1, 2, 3], marked=[0])], "standalone": False,
              "base_model": "owner/name", "bytes_by_file": files, "num_experts": 4, "top_k": 1}  # fmt: skip
    (dead,) = warnings(report)
    assert "layer 3" in dead and "--num-experts" in dead
    (marked,) = warnings({**report, "routing": [health([0.25] * 4, marked=[0, 1, 2, 3])]})
    assert "frequently used in layer 3" in marked
    assert warnings({**report, "routing": [health([0.5, 0.5, 0, 0], dead=[2, 3], marked=[0])]}) == []
    assert "taught more classes" in warnings({**report, "routing": [], "bytes_by_file": {}})[0]
    del files["manifest.json"]
    assert "no manifest.json: the model cannot be taught" in warnings({**report, "routing": []})[0]


def test_info_refuses_other_models(place, tmp_path):
    assert "model_type = 'vit' is no model of smope_hf" in fails("info", place / "vit")
    assert str(tmp_path) in fails("info", tmp_path)
    assert "no-such-folder" in fails("info", "./no-such-folder")


# ---------------------------------------------------------------------- plot


def test_plot_a_run(place, tmp_path):
    written = smope("plot", place / "run", "--output", tmp_path / "a", "--theme", "dark").stdout.split()
    assert [os.path.basename(path) for path in written] == [
        "average_accuracy.png", "forgetting.png", "accuracy_matrix.png", "task_confusion.png", "expert_usage.png",
        "routing_balance.png", "routing_overlap.png",
    ]  # fmt: skip
    assert all(open(path, "rb").read(4) == b"\x89PNG" for path in written)
    smope("plot", place / "run" / "task-02", "--output", tmp_path / "b", "--format", "svg", "--every-task")
    names = sorted(os.listdir(tmp_path / "b"))
    assert names[2:4] == ["expert_usage-task-01.svg", "expert_usage-task-02.svg"]
    assert "images of task 2" in (tmp_path / "b" / names[3]).read_text()


def test_plot_draws_the_yardsticks_of_a_run(place, tmp_path):
    rows = [[0.9], [0.8, 0.7]]
    (tmp_path / "metrics.json").write_text(
        json.dumps({"accuracy_matrix": rows, "yardstick_matrices": {"ncm": [[0.5], [0.4, 0.3]]}})
    )
    smope("plot", tmp_path, "--format", "svg")
    drawn = (tmp_path / "plots" / "average_accuracy.svg").read_text()
    assert "SMoPE 75.0" in drawn and "NCM 35.0" in drawn


def test_plot_several_runs_in_one_picture(place, tmp_path):
    for name, value in (("one", 0.5), ("two", 0.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"accuracy_matrix": [[1], [value, value]]}))
    runs = (tmp_path / "one", tmp_path / "two")
    assert "--output" in fails("plot", *runs)
    smope("plot", *runs, "--output", tmp_path / "both", "--format", "svg")
    drawn = (tmp_path / "both" / "average_accuracy.svg").read_text()
    assert "one 50.0" in drawn and "two 25.0" in drawn
    assert "given twice" in fails("plot", runs[0], runs[0], "--output", tmp_path)


def test_a_table_of_costs_that_is_no_file_is_named(tmp_path):
    """Not taken for a run's folder: nobody would look for the table then."""
    for source, told in (("/dev/zero", "results.csv"), ("nowhere", "results.csv")):
        (tmp_path / "results.csv").unlink(missing_ok=True)
        (tmp_path / "results.csv").symlink_to(source)
        for given in (tmp_path, tmp_path / "results.csv"):
            assert told in smope("plot", given, code=2).stderr.splitlines()[-1]


def test_plot_the_costs_of_a_benchmark(tmp_path):
    header = "method,seeds,FAA,FAA std,parameters,GFLOPs train,GFLOPs test\n"
    (tmp_path / "results.csv").write_text(header + "smope,2,60.5,1.2,383000,33.7,33.7\nlda,2,58,,7700,33.7,33.7\n")
    for source in (tmp_path, tmp_path / "results.csv"):
        assert smope("plot", source).stdout.strip() == str(tmp_path / "plots" / "costs.png")
    (tmp_path / "results.csv").write_text("method\nsmope\n")
    assert "no column 'FAA'" in fails("plot", tmp_path)


def test_a_mistake_in_plotting_is_one_line(place, tmp_path):
    assert "--format pdf is not allowed" in fails("plot", place / "run", "--format", "pdf")
    assert "--theme pink is not allowed" in fails("plot", place / "run", "--theme", "pink")
    assert "holds no run" in fails("plot", tmp_path)
    for name, protocol in (("one", "a"), ("two", "b")):
        (tmp_path / name).mkdir()
        content = {"accuracy_matrix": [[1], [0.5, 0.5]], "protocol_hash": protocol}
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))
    both = ("plot", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "out")
    assert "learned different tasks, so they share no picture: one; two" in fails(*both)
    (tmp_path / "one" / "metrics.json").write_text(json.dumps({"accuracy_matrix": [[1], [50]]}))
    assert "accuracy_matrix is [[1], [50]]. Allowed: for each task a row, of as many fractions" in fails(
        "plot", tmp_path / "one"
    )
