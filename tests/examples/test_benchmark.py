"""`examples/benchmark.py`: methods and seeds into one table, nothing trained twice, nothing mixed that differs."""

import csv
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from runs import assert_same_tensors, read, save_backbone

BENCHMARK = Path(__file__).resolve().parents[2] / "examples" / "benchmark.py"
TINY = [
    "--dataset", "embedded", "--backbone", "embedded", "--num_tasks", "2", "--max_train_samples_per_class", "4",
    "--max_test_samples_per_class", "2", "--epochs", "1", "--dense_epochs", "0", "--batch_size", "10",
    "--num_threads", "1", "--disable_progress", "true", "--report", "false",
]  # fmt: skip
METHODS, SEEDS = ("smope", "dualprompt"), (0, 1)
COLUMNS = [
    "method", "alignment", "seeds", "FAA", "FAA std", "CAA", "CAA std", "FM", "FM std", "parameters", "GFLOPs train",
    "GFLOPs test", "training s/task", "statistics s/task", "alignment s/task", "evaluation s/task",
    "saving s/task", "peak memory MiB",
]  # fmt: skip
pytestmark = pytest.mark.slow


def load_benchmark():
    spec = importlib.util.spec_from_file_location("example_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARK.parent)  # as for a script that is run
        spec.loader.exec_module(module)
    return module


def benchmark(monkeypatch, folder, *options, methods=",".join(METHODS), seeds="0,1"):
    """As from the command line; what it trains runs in processes of their own."""
    module = load_benchmark()
    given = ["--methods", methods, "--seeds", seeds, "--output_dir", str(folder), *TINY, *options]
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *given])
    module.main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two methods with two seeds each; a blank in the folder's name must do no harm."""
    folder = tmp_path_factory.mktemp("side by side")
    with pytest.MonkeyPatch.context() as monkeypatch:
        benchmark(monkeypatch, folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """The same folder, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def runs(folder):
    return [folder / method / f"seed-{seed}" for method in METHODS for seed in SEEDS]


def rows(folder):
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_the_table_says_that_its_runs_come_from_several_processors(copied, monkeypatch):
    assert "processors" not in (copied / "results.md").read_text()
    content = read(copied / "smope" / "seed-1", "record.json")
    content["versions"]["processor"] = "another one"
    (copied / "smope" / "seed-1" / "record.json").write_text(json.dumps(content))
    benchmark(monkeypatch, copied)
    assert "several processors or GPUs (" in (copied / "results.md").read_text()
    assert "another one" in (copied / "results.md").read_text()


def test_the_table_has_a_row_for_each_method_and_says_what_the_runs_say(finished):
    table = rows(finished)
    assert list(table) == list(METHODS) and all(list(row) == COLUMNS for row in table.values())
    for method, row in table.items():
        found = [read(finished / method / f"seed-{seed}", "metrics.json")["metrics"] for seed in SEEDS]
        first, second = (100 * metrics["final_average_accuracy"] for metrics in found)
        assert float(row["FAA"]) == pytest.approx((first + second) / 2) and row["seeds"] == "2"
        assert float(row["FAA std"]) == pytest.approx(abs(first - second) / 2**0.5)
        seconds = [float(row[column]) for column in COLUMNS if column.endswith("s/task")]
        assert min(seconds) >= 0 and seconds[0] > 0  # a closed form takes less than is told
        told = [read(finished / method / f"seed-{seed}", "metrics.json")["seconds_by_task"] for seed in SEEDS]
        told = [task for of_seed in told for task in of_seed]
        assert {f"{stage} s/task" for task in told for stage in task} <= set(row)
        assert sum(seconds) == pytest.approx(sum(sum(task.values()) for task in told) / len(told))
        assert all(float(row[column]) > 0 for column in ("parameters", "GFLOPs train", "GFLOPs test", COLUMNS[-1]))
    # 6 layers of 3 heads with 25 keys and values of 32, and 10 classes of 96 features with a bias
    assert int(table["smope"]["parameters"]) == 6 * 3 * 25 * 2 * 32 + 10 * 97
    lines = (finished / "results.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {method}" for method in METHODS]
    shown = [column for column in COLUMNS if column != "seeds" and not column.endswith(" std")]
    assert lines[0] == "| " + " | ".join(shown) + " |" and "±" in lines[2]
    assert all((finished / name).stat().st_size > 1000 for name in ("average_accuracy.png", "costs.png"))


def test_a_query_costs_a_second_forward_pass(finished):
    table = rows(finished)
    smope, query = (float(table[method]["GFLOPs test"]) for method in METHODS)
    assert query / smope == pytest.approx(2, rel=0.15)


def test_a_second_call_trains_nothing(copied, monkeypatch):
    before = [(folder / "metrics.json").stat().st_mtime_ns for folder in runs(copied)]
    table = (copied / "results.csv").read_text()
    (copied / "results.csv").unlink()
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a run was started"))
    benchmark(monkeypatch, copied)
    assert [(folder / "metrics.json").stat().st_mtime_ns for folder in runs(copied)] == before
    assert (copied / "results.csv").read_text() == table


def test_a_run_that_was_cut_is_gone_on_with(copied, finished, monkeypatch):
    """In the middle of a task, between its last task and the note of its memory, or before its record."""
    noteless = copied / "smope" / "seed-0"
    (noteless / "process.json").unlink()
    (noteless / "record.json").unlink()
    (copied / "smope" / "seed-1" / "record.json").unlink()
    cut = copied / "dualprompt" / "seed-1"
    (cut / "metrics.json").unlink()
    (cut / "record.json").unlink()
    shutil.rmtree(cut / "task-02")
    kept = (cut / "task-01" / "model.safetensors").stat().st_mtime_ns
    others = [folder for folder in runs(copied) if folder not in (cut, noteless)]
    before = [(folder / "metrics.json").stat().st_mtime_ns for folder in others]
    benchmark(monkeypatch, copied)
    assert (cut / "task-01" / "model.safetensors").stat().st_mtime_ns == kept
    assert_same_tensors(cut / "task-02", finished / "dualprompt" / "seed-1" / "task-02")
    assert [(folder / "metrics.json").stat().st_mtime_ns for folder in others] == before
    table, expected = rows(copied), rows(finished)
    assert all(table[method][column] == expected[method][column] for method in METHODS for column in ("FAA", "CAA"))
    assert (noteless / "process.json").is_file()


def test_the_records_alone_give_the_table_again(finished, tmp_path, monkeypatch):
    """What is kept of a run after its checkpoints are gone."""
    for folder in runs(finished):
        kept = tmp_path / folder.relative_to(finished)
        kept.mkdir(parents=True)
        shutil.copy(folder / "record.json", kept)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a run was started"))
    benchmark(monkeypatch, tmp_path)
    assert (tmp_path / "results.csv").read_text() == (finished / "results.csv").read_text()


def test_records_without_a_stage_give_a_table_without_its_seconds(copied, finished, monkeypatch):
    """All those of the first method, and one of the second: the other alone counts then."""
    *older, newer = runs(copied)
    for folder in older:
        record = read(folder, "record.json")
        assert all(task.pop("saving") > 0 for task in record["seconds_by_task"])
        (folder / "record.json").write_text(json.dumps(record))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a run was started"))
    benchmark(monkeypatch, copied)
    saving = [task["saving"] for task in read(newer, "record.json")["seconds_by_task"]]
    expected = dict(zip(METHODS, ("", str(sum(saving) / len(saving))), strict=True))
    table, before = rows(copied), rows(finished)
    assert all(table[method] == {**before[method], "saving s/task": expected[method]} for method in METHODS)
    header, _, *lines = (line.split(" | ") for line in (copied / "results.md").read_text().splitlines())
    place = header.index("saving s/task")
    assert lines[0][place] == "n/a" and lines[1][place] != "n/a"


def test_alignments_are_rows_of_one_training(tmp_path, monkeypatch):
    options = ("--alignments", "none,lda", "--alignment_shrinkage", "0.1")
    benchmark(monkeypatch, tmp_path, *options, methods="linear lda smope:prompt_layers=0+1", seeds="0")
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        found = {(row["method"], row["alignment"]): row for row in csv.DictReader(file)}
    two_layers = "smope:prompt_layers=0+1"
    assert list(found) == [
        ("linear", "lda"), ("linear", "none"), ("lda", "lda"), (two_layers, "lda"), (two_layers, "none"),
    ]  # fmt: skip
    # a frozen backbone's statistics are the same, and so in the end is the closed form on its features
    assert found["linear", "lda"]["FAA"] == found["lda", "lda"]["FAA"]
    assert int(found[two_layers, "lda"]["parameters"]) == 2 * 3 * 25 * 2 * 32 + 10 * 97


def test_runs_on_other_tasks_share_no_table(copied, monkeypatch):
    (copied / "results.csv").unlink()
    with pytest.raises(SystemExit) as refused:
        benchmark(monkeypatch, copied, methods="smope ncm:class_order_seed=1", seeds="0")
    message = str(refused.value)
    assert str(copied / "smope" / "seed-0") in message
    assert str(copied / "ncm-class_order_seed=1" / "seed-0") in message
    assert "learned different tasks" in message and "class_order_seed: 0 and 1" in message
    assert not (copied / "results.csv").exists()


def test_another_backbone_than_that_of_the_runs_there_is_refused_before_training(copied, tmp_path, monkeypatch):
    """Whoever adds methods to somebody's records needs the backbone that they were made on."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a run was started"))
    other = save_backbone(tmp_path / "other")
    with pytest.raises(SystemExit, match=rf"seed-0 has a run on another backbone than {other}: the fingerprint"):
        benchmark(monkeypatch, copied, methods=f"smope ncm:backbone={other}", seeds="0")
    assert not list(copied.glob("ncm*"))


def test_runs_on_other_tasks_end_a_benchmark_at_the_first_of_them(copied, monkeypatch):
    with pytest.raises(SystemExit, match="learned different tasks"):
        benchmark(monkeypatch, copied, methods="smope ncm:class_order_seed=1 ncm", seeds="0")
    assert (copied / "ncm-class_order_seed=1" / "seed-0" / "record.json").is_file()
    assert not (copied / "ncm").exists()


def test_a_setting_that_came_later_had_its_default(copied, monkeypatch):
    """Records of an older version serve as long as what they do not know is left as it was."""
    for folder in runs(copied):
        record = read(folder, "record.json")
        assert record["settings"].pop("torch_compile") is False and record["settings"].pop("imbalance_factor") == 1
        (folder / "record.json").write_text(json.dumps(record))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a run was started"))
    benchmark(monkeypatch, copied)
    with pytest.raises(SystemExit, match="imbalance_factor = 1.0 there, 10.0 now"):
        benchmark(monkeypatch, copied, "--imbalance_factor", "10")


def test_runs_with_other_settings_are_not_taken_for_what_was_asked(copied, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a run was started"))
    with pytest.raises(SystemExit, match=r"seed-0 holds a run with other settings: learning_rate = 0.005 there, 0.1"):
        benchmark(monkeypatch, copied, "--learning_rate", "0.1")


def test_a_mistake_is_found_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a run was started"))
    with pytest.raises(SystemExit, match="epochs = 0 is not allowed"):
        benchmark(monkeypatch, tmp_path / "new", methods="smope lda:epochs=0")
    for entry in ("smope:top_k", "smope:top-k=3", "smope:evaluate_o=test", "smope:top_k=3,top_k=4"):
        with pytest.raises(SystemExit, match=f"--methods '{entry}' is not allowed, because of '"):
            benchmark(monkeypatch, tmp_path / "new", methods=f"lda {entry}")
    for seeds in ("0,0", "0,01,1", "0,one", "0,", "-1"):
        with pytest.raises(SystemExit, match=f"--seeds '{seeds}' is not allowed"):
            benchmark(monkeypatch, tmp_path / "new", f"--seeds={seeds}", methods="lda")
    assert not (tmp_path / "new").exists()


def test_long_tailed_tasks_report_the_recall_of_head_and_tail(tmp_path, monkeypatch):
    benchmark(monkeypatch, tmp_path, "--imbalance_factor", "4", "--alignments", "none", methods="linear", seeds="0")
    content = read(tmp_path / "linear" / "seed-0", "metrics.json")
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        own, other = csv.DictReader(file)
    assert other["alignment"] == "none" and own["recall tail"] != other["recall tail"]
    for row, metrics in ((own, content["metrics"]), (other, content["other_alignments"]["none"]["metrics"])):
        assert float(row["recall head"]) == pytest.approx(100 * metrics["recall_many"])
        assert float(row["recall tail"]) == pytest.approx(100 * metrics["recall_few"])
    assert "| recall head | recall middle | recall tail |" in (tmp_path / "results.md").read_text()


def test_one_task_has_no_alignment_to_compare(tmp_path, monkeypatch):
    benchmark(monkeypatch, tmp_path, "--alignments", "gaussian", methods="joint", seeds="0")
    (row,) = csv.DictReader((tmp_path / "results.csv").open(newline="", encoding="utf-8"))
    assert (row["method"], row["alignment"]) == ("joint", "none")


def test_the_record_of_the_joint_run_is_that_of_the_method_joint():
    """The command of docs/results.md; the record was made where joint was no method yet."""
    module = load_benchmark()
    folder = BENCHMARK.parent / "records" / "cifar100-short" / "joint" / "seed-0"
    recipe = str(BENCHMARK.parent / "recipes" / "cifar100-short.yaml")
    rest = [recipe, "--dataset", "DATA", "--backbone", "BACKBONE", "--yardsticks", "false"]
    alignments = ["none", "gaussian", "gaussian-full", "lda-uncompensated"]
    arguments = module.command_line("joint", 0, folder, alignments, rest)
    assert arguments[arguments.index("--method") + 1] == "joint"
    assert module.is_done(folder, arguments)


def test_an_alignment_for_every_run_is_for_those_that_train_a_head(tmp_path):
    module = load_benchmark()
    (tmp_path / "recipe.yaml").write_text("alignment: none\n")
    for rest in (["--alignment", "gaussian", "--epochs", "2"], [str(tmp_path / "recipe.yaml"), "--epochs", "2"]):
        arguments = {
            name: module.command_line(name, 0, tmp_path, ["none"], [*rest, "--dataset", "embedded"])
            for name in ("smope", "ncm", "lda")
        }
        found = {name: module.settings_of(given) for name, given in arguments.items()}
        assert [found[name]["epochs"] for name in found] == [2, 2, 2]
        assert found["smope"]["alignment"] in ("gaussian", "none")
        assert found["ncm"]["alignment"] == found["lda"]["alignment"] == module.DEFAULTS["alignment"]
    with pytest.raises(ValueError, match="alignment = 'gaussian' is not allowed"):
        module.settings_of(module.command_line("ncm:alignment=gaussian", 0, tmp_path, [], ["--dataset", "embedded"]))


def test_runs_without_checkpoints_are_refused_before_they_train(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="save_checkpoints = False is not allowed"):
        benchmark(monkeypatch, tmp_path, "--save_checkpoints", "false")
    assert not list(tmp_path.rglob("*.json"))
