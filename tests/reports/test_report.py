"""report.html: every section and warning, nothing from outside, every text escaped, of whole, cut and strange runs."""

import json
import re
import shutil

import datasets
import numpy as np
import pytest
from pages import Page, check_self_contained
from pictures import matrix
from runs import read, save_backbone, tiny_args, tiny_stream, tiny_trainer
from transformers import ViTImageProcessorPil

from smope_hf import ContinualTrainer, PromptedForImageClassification, TaskStream
from smope_hf.data.embedded import digits
from smope_hf.data.manifest import first_tasks
from smope_hf.reports.report_html import duration, percent, shown_value, with_options
from smope_hf.reports.run_folder import RunFolder
from smope_hf.reports.run_report import SECTIONS, write_report
from smope_hf.reports.run_warnings import warnings_of_run
from smope_hf.storage.checksums import CHECKSUMS_FILE
from smope_hf.training.routing_recorder import RoutingRecorder
from smope_hf.training.yardsticks import run_yardsticks

WITH_PICTURES = True  # of the runs in this file

HOSTILE = ["<script>x</script>", "</style><img src=http://evil.example>", "a & b", "{{ 7 * 7 }}", "'\"><b>", "a\\b"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on classes with hostile names, with everything there is to record, and its own report."""
    folder = tmp_path_factory.mktemp("report")
    data = digits()
    few = {split: data[split].select(np.flatnonzero(np.asarray(data[split]["label"]) < 6)) for split in data}
    few = {split: rows.cast_column("label", datasets.ClassLabel(names=HOSTILE)) for split, rows in few.items()}
    samples = {"max_train_samples_per_class": 9, "max_test_samples_per_class": 5}
    stream = TaskStream(datasets.DatasetDict(few), num_tasks=3, name="<i>data</i>", shuffle_classes=False, **samples)
    trainer = tiny_trainer(save_backbone(folder / "vit"), folder / "run", stream, [RoutingRecorder()], report=True)
    trainer.yardsticks = run_yardsticks(trainer.model, trainer.stream, trainer.decoded, trainer.passes)
    trainer.train()
    return folder / "run"


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def change(folder, name, /, **values):
    content = read(folder, name)
    (folder / name).write_text(json.dumps({**content, **values}))
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # the change is meant


def test_a_run_leaves_its_report_with_every_section(run):
    page = Page(run / "report.html")
    check_self_contained(page)
    assert [name for name in page.ids if not name.startswith("picture-")] == list(SECTIONS)
    assert page.links == list(SECTIONS)
    metrics = read(run, "metrics.json")
    assert f"{100 * metrics['metrics']['final_average_accuracy']:.1f}%" in page.words()
    assert {name.removeprefix("picture-") for name in page.ids if name.startswith("picture-")} == {
        "average_accuracy", "forgetting", "accuracy_matrix", "task_confusion", "expert_usage", "routing_balance",
        "routing_overlap", "routing_survival",
    }  # fmt: skip
    assert "LDA" in page.section("accuracy") and "entropy" in page.section("routing")
    assert all(stage in page.section("time") for stage in ("training", "statistics", "alignment", "evaluation"))
    for name in ("num_experts", "learning_rate", "max_train_samples_per_class"):
        assert name in page.section("settings")
    manifest = read(run, "manifest.json")
    assert manifest["protocol_hash"] in page.section("manifest")
    assert manifest["tasks"][2]["train"]["sha256"][:16] in page.section("manifest")
    assert metrics["versions"]["torch"] in page.section("versions")


def test_text_of_a_run_is_text(run, tmp_path):
    plain = set(Page(run / "report.html").tags)
    change(shutil.copytree(run, tmp_path / "<u>run"), "metrics.json", method="<u>M", versions={"<u>p": "<u>1"})
    change(tmp_path / "<u>run", "metrics.json", recipe={"<u>s": "<u>v", "alignment": ["<u>"]})
    page = Page(write_report(tmp_path / "<u>run"))
    check_self_contained(page)
    words = page.words()
    for name in (*HOSTILE, "<i>data</i>", "<u>run", "<u>M on", "<u>p", "<u>1", "<u>s", "<u>v"):
        assert name in words  # whole, as text
    assert set(page.tags) == plain and not {"script", "u"} & plain
    assert "evil.example" not in "".join(page.urls)
    for tag in ("<u>", "<i>data", "</style><img", "<script"):
        assert tag not in page.raw


def test_the_command_writes_the_same_file_again(run, copied):
    before = (run / "report.html").read_bytes()
    (copied / "report.html").unlink()
    assert write_report(copied) == copied / "report.html"
    assert (copied / "report.html").read_bytes() == before
    elsewhere = write_report(run, copied / "more" / "other.html")
    assert elsewhere.read_bytes() == before


def test_a_run_that_was_cut_has_a_report_that_says_so(copied):
    for name in ("metrics.json", "manifest.json", "report.html"):
        (copied / name).unlink()
    shutil.rmtree(copied / "task-03")
    shutil.rmtree(copied / "plots")
    page = Page(write_report(copied))
    check_self_contained(page)
    assert "Not finished: 2 tasks learned so far" in page.words() and "--resume" in page.section("warnings")
    assert "picture-task_confusion" in page.ids and "picture-expert_usage" in page.ids
    one = Page(write_report(copied / "task-01"))
    assert "picture-forgetting" not in one.ids and "picture-expert_usage" in one.ids


def test_a_run_without_checkpoints_measures_and_manifest_has_a_report(run, tmp_path):
    content = {"accuracy_matrix": [[None], [None, None]], "method": "SMoPE"}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    page = Page(write_report(tmp_path))
    assert [name for name in page.ids if not name.startswith("picture-")] == list(SECTIONS)
    assert "nothing was measured" in page.section("accuracy") and "No times were recorded" in page.section("time")
    assert "not recorded" in page.section("manifest") and "No checkpoint was saved" in page.section("routing")
    for part in ("--save-checkpoints", "--test-data"):
        assert part in page.section("warnings")


def test_a_model_without_experts_has_a_report(tmp_path):

    backbone = save_backbone(tmp_path / "vit")
    model = PromptedForImageClassification.from_backbone(backbone, method="lda")
    args = tiny_args(tmp_path / "run", report=True)
    ContinualTrainer(model, args, tiny_stream(), ViTImageProcessorPil.from_pretrained(backbone)).train()
    page = Page(tmp_path / "run" / "report.html")
    assert "LDA has no experts" in page.section("routing") and "picture-task_confusion" in page.ids


def test_nothing_is_said_of_routing_where_every_image_takes_all_experts(tmp_path):
    """As one-prompt does: all are marked, and more of them would be marked too."""
    stream, every = tiny_stream(num_tasks=2), {"num_experts": 4, "top_k": 4}
    tiny_trainer(save_backbone(tmp_path / "vit"), tmp_path / "run", stream, report=True, model_fields=every).train()
    assert read(tmp_path / "run" / "task-02", "routing.json")["frequently_used_share"] == 1
    assert "Nearly all experts" not in "".join(found(tmp_path / "run"))
    assert "Nearly all experts" not in Page(tmp_path / "run" / "report.html").section("warnings")


def test_report_can_be_left_out(tmp_path):
    tiny_trainer(save_backbone(tmp_path / "vit"), tmp_path / "run", tiny_stream(num_tasks=2), report=False).train()
    assert not (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "metrics.json").exists()


def test_a_hundred_tasks_have_a_report_of_bearable_size(tmp_path):
    rows = [[None if v != v else v for v in row[: t + 1]] for t, row in enumerate(matrix(100))]
    confusion = (np.eye(100, dtype=int) * 40 + 1).tolist()
    seconds = [{"training": 61.0, "evaluation": 1.0}] * 100
    content = {"accuracy_matrix": rows, "task_confusion": confusion, "seconds_by_task": seconds}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    page = Page(write_report(tmp_path))
    assert len(page.raw) < 4e6 and "1 h 43 min" in page.section("time") and page.section("tasks").count("<tr>") == 101


def test_how_numbers_are_written():
    assert [duration(seconds) for seconds in (0.031, 0.96, 9.96, 59.6, 61, 3599.7, 7260)] == [
        "0.03 s", "1.0 s", "10 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "2 h 01 min"
    ]  # fmt: skip
    assert (
        percent(None) == percent(float("nan")) == "n/a"
        and percent(-0.0) == "0.0"
        and percent(0.5, 0.01) == "50.0 ± 1.0"
    )
    assert [shown_value(v) for v in (None, True, [0.75, 4 / 3], 1e-05, "a<b", {"k": 1})] == [
        "none", "true", "0.75, 1.33333", "1e-05", "a<b", '{"k": 1}'
    ]  # fmt: skip
    assert with_options("<b> (--top-k), x--y") == '&lt;b&gt; (<code class="option">--top-k</code>), x--y'
    assert re.fullmatch(r"[^<]*", with_options("no option"))


# ---------------------------------------------------------------------- warnings

HEALTHY = {
    "accuracy_matrix": [[0.9], [0.9, 0.9], [0.9, 0.9, 0.9]],
    "test_counts": [90, 90, 90],
    "yardstick_matrices": {"lda": [[0.905], [0.905] * 2, [0.905] * 3]},  # better, but by a hair
}
FORGETFUL = [[0.9], [0.9, 0.9], [0.7, 0.7, 0.9]]


def found(folder) -> list[str]:
    return warnings_of_run(RunFolder(folder))


def test_a_healthy_run_has_no_warning_but_of_its_checkpoint(copied):
    change(copied, "metrics.json", **HEALTHY)
    assert all("experts" in warning or "machine" in warning for warning in found(copied))


@pytest.mark.parametrize(
    ("values", "expected", "remedy"),
    [
        (
            {"accuracy_matrix": [[0.9], [0.9, 0.9], [0.1, 0.9, 1 / 6]]},
            "Tasks 1, 3 ended no better than chance (1 of 6 classes, 16.7%)",
            "--learning-rate",
        ),
        ({"accuracy_matrix": FORGETFUL}, "lost 20.0 points on average", "--learning-rate (now 0.005)"),
        (
            {"accuracy_matrix": FORGETFUL, "recipe": {"alignment": "none"}},
            "lost 20.0 points on average",
            "take --alignment lda, not none",
        ),
        ({"test_counts": [90, 12, 90]}, "fewest 12: one image more or less is 8.3 points", "--max-test-samples"),
        (
            {"yardstick_matrices": {"lda": [[0.95], [0.95] * 2, [0.95] * 3]}},
            "LDA on the frozen features alone reaches 95.0%, and SMoPE 90.0%",
            "--epochs",
        ),
        ({"protocol_hash": "0" * 64}, "results of another protocol", "empty folder"),
        ({"accuracy_matrix": [[0.9], [None, 0.9], [0.9] * 3]}, "Not every task was tested", "--test-data"),
    ],
)
def test_a_trouble_brings_its_sentence_and_its_remedy(copied, values, expected, remedy):
    change(copied, "metrics.json", **HEALTHY)
    assert expected not in "".join(found(copied))
    change(copied, "metrics.json", **values)
    (warning,) = (warning for warning in found(copied) if expected in warning)
    assert remedy in warning


def test_checkpoints_of_another_protocol_are_named(copied):
    assert "another protocol" not in "".join(found(copied))
    other = first_tasks(tiny_stream().manifest(), 2)
    change(copied / "task-02", "manifest.json", **other)
    assert "The checkpoints of task 2 learned other tasks" in "".join(found(copied))


def test_missing_files_and_dead_experts_are_named(copied):
    (copied / "task-03" / "class_statistics.safetensors").unlink()
    routing = read(copied / "task-03", "routing.json")
    for layer in routing["layers"]:
        layer["dead_experts"] = [[0, 1, 2, 3] for _ in layer["dead_experts"]]
    change(copied / "task-03", "routing.json", layers=routing["layers"])
    text = "".join(found(copied))
    assert "no class_statistics.safetensors" in text and "never used in layers 0-1" in text and "--num-experts" in text
    page = Page(write_report(copied))  # and the report has what is left
    assert "entropy" in page.section("routing") and "picture-expert_usage" not in page.ids


def test_a_run_that_saved_nothing_says_what_that_costs(copied):
    for folder in copied.glob("task-*"):
        shutil.rmtree(folder)
    assert "No checkpoint was saved" in "".join(found(copied))
