"""The command line: every command on a tiny run, its help, its JSON, and one line for every mistake."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from cli_runs import TINY, fails, run_with_images, smope
from runs import tiny_stream

from smope_hf import SMoPEForImageClassification
from smope_hf.base.formatting import names_in_short, ranges
from smope_hf.cli import add_classes as cli_add_classes

COMMANDS = ("train", "evaluate", "add-classes", "predict", "info", "plot", "report", "export", "push")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return run_with_images(tmp_path_factory.mktemp("cli"))


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [80, 120])
def test_every_help_page_has_an_example_and_fits(command, width):
    page = smope(command, "--help", width=width).stdout
    assert "Example" in page and f"smope {command} " in page.partition("Options:")[0].partition("Example")[2]
    assert max(map(len, page.splitlines())) <= width
    assert "_" not in "".join(word for word in page.split() if word.startswith("--"))


def test_the_first_page_lists_every_command():
    for page in (smope().stdout, smope("--help").stdout):
        assert all(f"  {command} " in page for command in COMMANDS) and "..." not in page.partition("Commands:")[2]
    assert smope("--version").stdout.startswith("smope_hf ")


def test_train_has_every_setting_in_its_panel():
    page = smope("train", "--help").stdout
    panels = {title: page.index(f"\n{title}:") for title in ("Data", "Model", "Training", "Hub")}
    for option, panel, behind in (
        ("--num-tasks INT", "Data", "Model"), ("--prompt-layers INT,INT", "Model", "Training"),
        ("--crop-scale NUM,NUM", "Training", "Hub"), ("--[no-]resume", "Training", "Hub"),
    ):  # fmt: skip
        assert panels[panel] < page.index(option) < panels[behind]
    assert panels["Hub"] < page.index("--hub-model-id")
    assert "[0.05,1]" in page and "gaussian-full" in page and " joint" in page


# ---------------------------------------------------------------------- train


def test_train_takes_a_recipe_first_and_the_command_line_last(place, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 3\nlearning_rate: 1e-3\nmixed_precision: no\ncrop_scale: [0.7, 1.0]\nseed:\n")
    shown = smope("train", recipe, *TINY, "--backbone", place / "vit", "--output_dir", tmp_path / "run",
                  "--prompt-layers", "0,2", "--no-save-checkpoints", "--yardsticks").stdout  # fmt: skip
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["recipe"]["epochs"] == 1 and content["recipe"]["learning_rate"] == 1e-3
    assert content["recipe"]["crop_scale"] == [0.7, 1.0] and content["recipe"]["mixed_precision"] == "no"
    assert set(content["yardsticks"]) == {"ncm", "lda", "linear"}
    assert not list((tmp_path / "run").glob("task-*"))
    assert "5 tasks, 10 classes" in shown and "SMoPE" in shown and str(tmp_path / "run") in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "no data set: give --dataset"),
        (["train", "--epohcs", "3"], "No such option: --epohcs. Did you mean '--epochs'? See: smope train --help"),
        (["trian"], "Did you mean 'train'?"),
        ([*["train", *TINY], "--epochs", "many"], "ContinualTrainingArguments.epochs = 'many' is not allowed"),
        ([*["train", *TINY], "--epochs", "0"], "ContinualTrainingArguments.epochs = 0 is not allowed"),
        ([*["train", *TINY], "--crop-scale", "0.5"], "crop_scale = [0.5] is not allowed"),
        ([*["train", *TINY], "--prompt-layers", "0,x"], "ModelArguments.prompt_layers = '0,x' is not allowed"),
        ([*["train", *TINY], "--routing", "odd"], "ModelArguments.routing = 'odd' is not allowed"),
        ([*["train", *TINY], "--num-threads", "0"], "num_threads = 0 is not allowed"),
        ([*["train", *TINY], "--num-tasks", "3"], "num_tasks=3 does not divide"),
        ([*["train", *TINY], "--backbone", "embedded", "--top-k", "7"], "error: SMoPEConfig.top_k = 7 is not allowed"),
        ([*["train", *TINY], "--method", "joint", "--no-joint"], "joint = False is not allowed with method = 'joint'"),
        (["train", "nowhere.yaml"], "nowhere.yaml: No such file"),
    ],
    ids=lambda part: part[-1] if isinstance(part, list) else "",
)
def test_a_mistake_in_training_is_one_line(arguments, message):
    assert message in fails(*arguments)


def test_a_mistake_in_a_recipe_is_one_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text("epohcs: 3")
    assert "'epohcs' is no setting. Did you mean 'epochs'?" in fails("train", tmp_path / "recipe.yaml")


# ---------------------------------------------------------------------- evaluate


def test_evaluate_gives_what_training_measured(place):
    report = json.loads(smope("evaluate", place / "run", "--data", place / "data", "--json").stdout)
    trained = json.loads((place / "run" / "metrics.json").read_text())
    assert [task["accuracy"] for task in report["tasks"]] == trained["accuracy_matrix"][-1]
    assert report["average_accuracy"] == pytest.approx(trained["metrics"]["final_average_accuracy"])
    assert report["weighted_accuracy"] == pytest.approx(trained["metrics"]["weighted_final_accuracy"])
    assert report["images"] == 30 and report["split"] == "test" and report["model"].endswith("task-03")


def test_evaluate_an_earlier_task(place):
    command = ("evaluate", place / "run", "--revision", "task-02", "--data", place / "data")
    assert "does not know 2 of the 6 classes" in fails(*command)
    shown = smope(*command, "--ignore-unknown", "--batch-size", "3").stdout
    rows = json.loads((place / "run" / "metrics.json").read_text())["accuracy_matrix"]
    for task, accuracy in enumerate(rows[1], start=1):
        (line,) = (line for line in shown.splitlines() if line.startswith(f"{task} "))
        assert line.split()[-2:] == ["10", f"{100 * accuracy:.1f}"]
    assert "all images" in shown and "average over tasks" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Missing option '--data'. See: smope evaluate --help"),
        (["--data", "./nowhere"], "./nowhere is not a folder"),
        (["--data", "embedded", "--split", "dev"], "split='dev' does not exist"),
        (["--data", "embedded", "--label-column", "kind"], "label_column='kind'"),
        (["--data", "embedded"], "knows none of the 10 classes"),
        (["--data", "embedded", "--revision", "task-09"], "task-09"),
        (["--data", "embedded", "--batch-size", "0"], "--batch-size"),
    ],
    ids=lambda part: " ".join(part[-2:]) if isinstance(part, list) else "",
)
def test_a_mistake_in_evaluating_is_one_line(place, options, message):
    assert message in fails("evaluate", place / "run", *options)


# ---------------------------------------------------------------------- predict


def test_predict_files_folders_and_patterns(place):
    images = place / "images"
    done = smope("predict", place / "run", images, images / "a.png", f"{images}/*.png", "--top", "2", "--json")
    found = json.loads(done.stdout)
    assert [entry["image"] for entry in found] == [str(images / name) for name in ("a.png", "b.PNG", "more/c.jpg")]
    for entry in found:
        scores = [best["score"] for best in entry["predictions"]]
        assert len(scores) == 2 and scores == sorted(scores, reverse=True) and sum(scores) <= 1 + 1e-6
        assert {best["label"] for best in entry["predictions"]} <= set("abcdef")


def test_predict_is_the_pipeline(place):
    from transformers import pipeline

    image = str(place / "images" / "a.png")
    (found,) = json.loads(smope("predict", place / "run", image, "--top", "6", "--json").stdout)
    expected = pipeline("image-classification", model=str(place / "run" / "task-03"))(image, top_k=6)
    assert [entry["label"] for entry in found["predictions"]] == [entry["label"] for entry in expected]
    assert [entry["score"] for entry in found["predictions"]] == pytest.approx(
        [e["score"] for e in expected], abs=1e-5
    )


def test_predict_takes_more_images_than_layers_from_a_model_that_returns_router_scores(place, tmp_path):
    """Their tuples are over layers, which a pipeline would take for images."""
    model = SMoPEForImageClassification.from_pretrained(place / "run" / "task-03")
    model.config.output_router_scores = True
    model.save_pretrained(tmp_path)
    shutil.copy(place / "run" / "task-03" / "preprocessor_config.json", tmp_path)
    images = place / "images"
    assert len(model.prefix_experts) < len(json.loads(smope("predict", tmp_path, images, "--json").stdout)) == 3


def test_predict_shows_more_classes_than_there_are_as_all_of_them(place):
    shown = smope("predict", place / "run" / "task-01", place / "images" / "a.png", "--top", "50").stdout
    assert len(shown.splitlines()) == 5 and "a.png" in shown


def test_the_only_class_of_a_model_is_certain(place, tmp_path):
    model = SMoPEForImageClassification.from_backbone(str(place / "vit"), num_experts=6, top_k=2)
    model.begin_task(["alone"])
    model.save_pretrained(tmp_path)
    shutil.copy(place / "run" / "task-03" / "preprocessor_config.json", tmp_path)
    (found,) = json.loads(smope("predict", tmp_path, place / "images" / "a.png", "--json").stdout)
    assert found["predictions"] == [{"label": "alone", "score": 1.0}]


def test_a_broken_image_stops_before_anything_is_printed(place, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((place / "images" / "a.png").read_bytes()[:60])
    good = place / "images" / "a.png"
    assert str(broken) in fails("predict", place / "run", good, broken)
    assert "none.png" in fails("predict", place / "run", good, "none.png")
    done = smope("predict", place / "run", good, broken, "none.png", "--skip-bad", "--json")
    assert [entry["image"] for entry in json.loads(done.stdout)] == [str(good)]
    assert str(broken) in done.stderr and "none.png" in done.stderr and "skipped 2 of 3 images" in done.stderr
    assert "none of the 1 images" in smope("predict", place / "run", broken, "--skip-bad", code=2).stderr


def test_names_that_stand_for_no_image(place, tmp_path):
    assert "holds no image" in fails("predict", place / "run", tmp_path)
    assert "no file matches" in fails("predict", place / "run", f"{tmp_path}/*.png")
    assert "Missing argument 'IMAGES'" in fails("predict", place / "run")


# ---------------------------------------------------------------------- errors and processes


@pytest.mark.parametrize("arguments", [["--debug", "info", "vit"], ["info", "vit", "--debug"]])
def test_debug_shows_the_traceback(place, arguments):
    arguments = [str(place / part) if part == "vit" else part for part in arguments]
    done = smope(*arguments, code=2)
    assert "Traceback (most recent call last)" in done.stderr and "inspection.py" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_an_error_that_nobody_expected_says_so(place, monkeypatch):
    import smope_hf.sharing.inspection

    monkeypatch.setattr(smope_hf.sharing.inspection, "count_parameters", lambda folder: 1 / 0)
    assert "ZeroDivisionError: division by zero (not expected; --debug" in fails("info", place / "run")


def test_the_module_is_the_command(place, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "smope_hf", "info", str(place / "run"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and json.loads(done.stdout)["num_classes"] == 6 and done.stderr == ""


def test_a_mistake_is_found_without_the_libraries_of_training(place):
    code = (
        "import sys, smope_hf; before = set(sys.modules); from smope_hf.cli import main\n"
        "try: main()\n"
        "finally: print({'datasets', 'accelerate', 'matplotlib', 'sklearn'} & (set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code, "train", "--dataset", "embedded", "--epochs", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stdout == "set()\n"
    assert done.stderr.startswith("error: ContinualTrainingArguments.epochs = 0") and done.stderr.count("\n") == 1


def test_cells_of_tables():
    assert names_in_short(["a", "b"]) == "a, b"
    many = [f"class {index}" for index in range(100)]
    assert names_in_short(many) == "class 0, class 1, class 2, ... (100)" and len(names_in_short(["x" * 90] * 3)) < 60
    assert ranges([0, 1, 2]) == "0-2" and ranges([1, 3]) == "1, 3" and ranges([4]) == "4"


def test_add_classes_says_of_a_model_saved_alone_what_it_lacks_as_info_does(place, tmp_path):
    SMoPEForImageClassification.from_pretrained(place / "run" / "task-03").save_pretrained(tmp_path / "alone")
    (told,) = (text for text in info_warnings(tmp_path / "alone") if "taught" in text)
    missing, advice = told.split(": ")
    assert missing == "There is no class_statistics.safetensors and no manifest.json and no trainer_state.json"
    assert "Take the task-NN folder that training wrote" in advice
    command = (
        "add-classes",
        tmp_path / "alone",
        "--data",
        "embedded",
        "--classes",
        "six",
        "--output",
        tmp_path / "out",
    )
    tests = ("--test-data", place / "data")
    for options in ((), tests, ("--resume", *tests)):
        assert fails(*command, *options) == f"error: {missing} in {tmp_path / 'alone'}: {advice}"


def info_warnings(folder) -> list[str]:
    return json.loads(smope("info", folder, "--json").stdout)["warnings"]


def test_add_classes_takes_no_empty_class_name(place, tmp_path):
    for classes in ("", "a,,b"):
        options = ("--data", "embedded", "--classes", classes, "--output", tmp_path / "out")
        assert "has an empty name" in fails("add-classes", place / "run", *options)
    assert not list(tmp_path.iterdir())


def test_add_classes_takes_a_class_with_commas_in_its_name(tmp_path):
    import datasets

    rows = tiny_stream()[0].train.dataset.select(range(6)).remove_columns("label")
    rows = rows.add_column("kind", ["fox", "red", "fox, red", "hare", "a,b", "b"])
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path)
    for classes, names in {
        "fox, red": ["fox, red"],
        "fox, red,hare": ["fox, red", "hare"],
        "hare, a,b , b": ["hare", "a,b", "b"],
        "red, fox": ["red", "fox"],
        "fox,new": ["fox", "new"],  # which is named as no class of the data
    }.items():
        assert cli_add_classes._chosen(classes, str(tmp_path), "kind") == names


def test_data_that_is_neither_a_folder_nor_on_the_hub_is_said_to_be_neither(place, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = fails("add-classes", place / "run", "--data", "nosuchfolder", "--output", tmp_path / "out")
    assert "'nosuchfolder' is no folder here and could not be had from the Hub (" in line and "Check the name" in line


def test_add_classes_reads_new_and_old_images_from_columns_of_different_names(place, tmp_path):
    """New classes in a folder of images, tests in a data set with two label columns, as CIFAR-100 has."""
    import datasets

    stream = tiny_stream()
    for index in range(6):
        (tmp_path / "photos" / "newcomer").mkdir(parents=True, exist_ok=True)
        stream[0].train.images([index])[0].save(tmp_path / "photos" / "newcomer" / f"{index}.png")
    tests = datasets.load_from_disk(str(place / "data"))["test"]
    tests = tests.rename_columns({"image": "img", "label": "fine_label"}).add_column("coarse_label", [0] * len(tests))
    tests = tests.cast_column("coarse_label", datasets.ClassLabel(names=["all"]))
    datasets.DatasetDict({"held_out": tests}).save_to_disk(tmp_path / "tests")
    command = ("add-classes", place / "run", "--data", tmp_path / "photos", "--output", tmp_path / "out")
    fine, held_out = ("--test-label-column", "fine_label"), ("--test-split", "held_out")
    assert "are of --test-data" in fails(*command, *fine)
    command += ("--test-data", tmp_path / "tests")
    assert "--test-data" in fails(*command, *fine) and "--test-split" in fails(*command, *fine)
    assert "several label columns" in fails(*command, *held_out)
    told = smope(*command, *fine, *held_out, "--test-image-column", "img", "--epochs", "1").stdout
    assert told.startswith("Learning task 4: 'newcomer' (6 images)\n")  # before it trains
    row = json.loads((tmp_path / "out" / "metrics.json").read_text())["accuracy_matrix"][-1]
    assert None not in row[:3] and row[3] is None


@pytest.mark.slow
def test_add_classes_goes_on_where_its_results_were_not_written(place, tmp_path):
    run = shutil.copytree(place / "run", tmp_path / "run")
    learned = (run / "metrics.json").read_text()
    command = ("add-classes", run, "--data", "embedded", "--classes", "six", "--test-data", place / "data",
               "--output", run, "--epochs", "1", "--alignment", "ncm")  # fmt: skip
    smope(*command)
    whole = json.loads((run / "metrics.json").read_text())
    shutil.rmtree(run / "results-task-03")
    (run / "metrics.json").write_text(learned)  # as if it was killed once task-04 was saved
    smope("report", run, "--output", tmp_path / "page.html")
    assert "Not finished: 4 tasks learned so far" in (tmp_path / "page.html").read_text()
    smope(*command, "--resume")
    found = json.loads((run / "metrics.json").read_text())
    assert found["metrics"] == whole["metrics"] and found["accuracy_matrix"] == whole["accuracy_matrix"]
    assert (run / "results-task-03" / "metrics.json").read_text() == learned


def test_another_model_is_told_apart_in_one_line(place):
    assert "model_type = 'vit' is no model of smope_hf" in fails("predict", place / "vit", place / "images/a.png")


def test_a_rival_is_trained_shown_and_drawn_under_its_name(tmp_path):
    """`--method` goes through every command that SMoPE goes through."""
    options = ("--backbone", "embedded", "--method", "dualprompt", "--method-settings", "expert_length=2")
    assert "DualPrompt" in smope("train", *TINY[:-4], *options, "--output-dir", tmp_path / "run").stdout
    page = smope("info", tmp_path / "run").stdout
    assert "dualprompt, prompts in layers 0-4" in page and "settings {'expert_length': 2}" in page
    drawn = smope("plot", tmp_path / "run").stdout
    assert "average_accuracy.png" in drawn and "expert_usage" not in drawn
    assert "warning" not in page
    wrong = ("--method", "dualprompt", "--method-settings", "length=2", "--backbone", "embedded")
    assert "settings['length']" in fails("train", *TINY[:-4], *wrong, "--output-dir", tmp_path / "x")
