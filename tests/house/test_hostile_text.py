"""Names that fight back, through every command: nothing hidden is shown, and no page, card or line is made by them."""

import csv
import json
import logging
import os
import re
import shutil
import unicodedata
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import tiny_config
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from pages import Page, check_self_contained
from runs import save_backbone, tiny_trainer
from typer.testing import CliRunner

from smope_hf import SMoPEConfig, TaskStream
from smope_hf.base.formatting import names_in_short
from smope_hf.base.printable import printable, printable_lines
from smope_hf.cli.program import app
from smope_hf.data.embedded import digits
from smope_hf.reports.plots import plot_average_accuracy, plot_costs
from smope_hf.reports.run_report import write_report
from smope_hf.settings.class_names import one_form
from smope_hf.sharing.hub_files import stage
from smope_hf.sharing.model_card import build_card, card_of
from smope_hf.storage.checksums import update_checksums

BENIGN = ["ant", "bee", "cat", "dog", "eel", "fox"]
HOSTILE = [
    "\x1b]0;owned\x07\x1b[2J\x9b31m\x08\x08",
    "cat\u202egnp.exe\u2066\u200b",
    "dog\n# Heading\n\n[a](http://evil.example)\n---\nlicense: stolen\n---\r\n- item",
    "<img src=x onerror=alert(1)>|`code`|``` [red]x[/red][/][link=http://evil.example]y[/link] :smile:",
    "$\\frac{ \\(x\\) =cmd|' /C calc'!A0 www.evil.example a@evil.example",
    "z" + "\u0301" * 50 + "y" * 100_000,
]
LEARNED = [one_form(name) for name in HOSTILE]  # as a model keeps them
FOLDERS = ["\x1b[31mred", "\u202eeert", "one\ttwo\x07", "[red]x[bold] :smile:"]
FILES = [
    "\x1b]0;owned\x07.png",
    "a\u202egnp.exe.png",
    "b\nlicense: stolen.png",
    os.fsdecode(b"\xff\xfe.png"),
    "[red]c[bold] :smile:.png",
]
NEVER_ALONE = ("# Heading", "license: stolen", "- item", "error: forged")


def check_shown(text: str):
    """Text of several lines holds nothing hidden, no line that a name made, and no line without end."""
    hidden = sorted({c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")})
    assert not hidden, ascii(hidden)
    assert printable_lines(text) == text  # floods of accents, too
    assert not [line for line in text.splitlines() if line.strip().startswith(NEVER_ALONE)]
    assert max(map(len, text.splitlines()), default=0) <= 2100


def smope(*arguments, code=0, width=500):
    done = CliRunner().invoke(app, [str(part) for part in arguments], env={"COLUMNS": str(width)})
    assert done.exit_code == code, done.output + repr(done.exception)
    check_shown(done.stdout)
    check_shown(done.stderr)
    return done


def data_of(names) -> datasets.DatasetDict:
    data = digits()
    few = {split: data[split].select(np.flatnonzero(np.asarray(data[split]["label"]) < 6)) for split in data}
    return datasets.DatasetDict(
        {split: rows.cast_column("label", datasets.ClassLabel(names=names)) for split, rows in few.items()}
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same run with ordinary and with hostile names, its data, and files and folders with hostile names.

    Its pictures are not drawn: they are looked at below.
    """
    folder = tmp_path_factory.mktemp("text")
    save_backbone(folder / "vit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smope_hf.reports.results.draw_results", lambda *results: None)
        patch.setattr("smope_hf.reports.results.plot_accuracy_matrix", lambda matrix, path, **options: path.touch())
        for kind, names in (("benign", BENIGN), ("hostile", HOSTILE)):
            name = "digits" if kind == "benign" else "di\x1b[2J\n# Heading"
            limits = {"max_train_samples_per_class": 6, "max_test_samples_per_class": 4}
            stream = TaskStream(data_of(names), num_tasks=3, name=name, **limits)
            tiny_trainer(str(folder / "vit"), folder / kind, stream, epochs=1).train()
            tests = datasets.concatenate_datasets([task.test.dataset for task in stream])
            datasets.DatasetDict({"test": tests}).save_to_disk(folder / f"{kind}-data")
    images = [image.convert("RGB") for image in tests[:5]["image"]]
    (folder / "images").mkdir()
    for name, image in zip(FILES, images, strict=True):
        image.save(folder / "images" / name, format="png")
    for name in FOLDERS:
        (folder / "photos" / name).mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(folder / "photos" / name / f"{number}.png")
    return folder


# ---------------------------------------------------------------------- the terminal


@pytest.mark.slow
def test_training_shows_no_name_raw(place):
    smope("train", "--dataset", place / "hostile-data", "--test-fraction", "0.5", "--train-split", "test",
          "--epochs", "1", "--num-tasks", "3", "--backbone", place / "vit", "--num-experts", "6", "--top-k", "2",
          "--batch-size", "8", "--output-dir", place / "trained \x1b[2J")  # fmt: skip
    for path in (place / "trained \x1b[2J").rglob("*"):
        if path.suffix in (".html", ".md", ".csv", ".svg"):
            check_file(path)


@pytest.mark.parametrize("command", ["info", "evaluate", "predict"])
def test_tables_show_names_as_they_are_or_as_escapes(place, command):
    run = place / "hostile"
    arguments = {"evaluate": ["--data", place / "hostile-data"], "predict": [place / "images"]}.get(command, [])
    shown = smope(command, run, *arguments).stdout
    if command == "predict":
        assert (
            "[red]x[/red][/][link=http://evil.example]y[/link] :smile:" in shown
            and "[red]c[bold] :smile:.png" in shown
        )
        assert (
            "\\x1b]0;owned\\x07.png" in shown and "\\udcff\\udcfe.png" in shown and "b\\nlicense: stolen.png" in shown
        )
        assert "characters left out" in shown and "😄" not in shown
    assert "\\x1b" in shown and "\\u202e" in shown or command != "predict"


@pytest.mark.parametrize("command", ["info", "evaluate", "predict"])
def test_json_holds_the_names_as_they_are_and_shows_nothing_hidden(place, command):
    arguments = {"evaluate": ["--data", place / "hostile-data"], "predict": [place / "images", "--top", "6"]}
    done = CliRunner().invoke(app, [command, str(place / "hostile"), *map(str, arguments.get(command, [])), "--json"])
    assert done.exit_code == 0 and printable_lines(done.stdout) == done.stdout
    content = json.loads(done.stdout)
    if command == "predict":
        assert {entry["label"] for entry in content[0]["predictions"]} == set(LEARNED)
        assert {Path(entry["image"]).name for entry in content} == set(FILES)
    else:
        assert {name for task in content["tasks"] for name in task["classes"]} == set(LEARNED)


@pytest.mark.slow
def test_a_class_is_still_asked_for_by_its_own_name(place, tmp_path):
    shown = smope("add-classes", place / "hostile", "--data", place / "photos", "--output", tmp_path / "more",
                  "--test-fraction", "0.2", "--classes", f"{FOLDERS[0]},{FOLDERS[2]}").stdout  # fmt: skip
    assert "\\x1b[31mred" in shown and "one\\ttwo\\x07" in shown
    config = json.loads((tmp_path / "more" / "task-04" / "config.json").read_text())
    assert set(config["id2label"].values()) == {*LEARNED, FOLDERS[0], FOLDERS[2]}
    assert "(4 images)" in shown or "(5 images)" in shown


def test_images_that_are_skipped_are_named_in_one_line_each(place, tmp_path):
    (tmp_path / "bad\x1b[2J\nerror: forged.png").write_bytes(b"none")
    shutil.copy(place / "images" / FILES[0], tmp_path / "good.png")
    done = smope("predict", place / "hostile", tmp_path, "--skip-bad", "--top", "1")
    assert "bad\\x1b[2J\\nerror: forged.png" in done.stderr and len(done.stderr.splitlines()) == 2
    smope("predict", place / "hostile", tmp_path, code=2)


ERRORS = {
    "a model": ["info", "no\x1b[2J\nerror: forged"],
    "a long model": ["info", "m" * 100_000],
    "a folder": ["push", "no\u202e", "me/model"],
    "an option": ["train", "--epochs\x1b[2J", "3"],
    "a command": ["in\x9bfo"],
    "a recipe": ["train", "re\x1b[2Jcipe.yaml"],
    "a setting": ["train", "--dataset", "embedded", "--num-tasks", "5", "--epochs", "m" * 100_000],
    "a data set": ["evaluate", "{run}", "--data", "/no\x1b[2J\nwhere"],
    "a column": ["evaluate", "{run}", "--data", "{data}", "--label-column", "\u202e" + "l" * 100_000],
    "a revision": ["info", "{run}", "--revision", "\x1b]0;owned\x07"],
    "a pattern": ["predict", "{run}", "no\nerror: forged*"],
    "a picture's kind": ["plot", "{run}", "--format", "\x1b[2J"],
    "classes of another data set": ["evaluate", "{benign}", "--data", "{data}"],
    "a traceback": ["--debug", "info", "no\x1b[2J\u202e"],
}


@pytest.mark.parametrize("arguments", ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_with_nothing_hidden_in_it(place, arguments):
    where = {"run": place / "hostile", "data": place / "hostile-data", "benign": place / "benign"}
    given = [part.format(**where) if part in ("{run}", "{data}", "{benign}") else part for part in arguments]
    lines = smope(*given, code=2).stderr.splitlines()
    assert lines[-1].startswith("error: ") and len(lines[-1]) <= 2000
    assert len(lines) == 1 or "--debug" in arguments
    assert re.search(r"characters left out|\.\.\.", lines[-1]) or not [part for part in arguments if len(part) > 5000]


def test_warnings_and_logs_of_libraries_are_shown_the_same_way(capsys):
    from smope_hf.base.printing import make_logs_printable, printable_warnings

    logger = logging.getLogger("a_library")
    logger.addHandler(logging.StreamHandler())
    make_logs_printable(["a_library"])
    logger.warning("file %s", "\x1b[2J\u202e" + "x" * 10_000)
    with printable_warnings(), warnings.catch_warnings():
        warnings.simplefilter("always")
        text = warnings.formatwarning(UserWarning("\x1b[2J\nerror: forged"), UserWarning, "a.py", 1, "")
    shown = capsys.readouterr().err + text
    check_shown(shown)
    assert "file \\x1b[2J\\u202exxx" in shown and "characters left out" in shown


def test_fields_of_a_later_config_are_named_printable(caplog):
    logging.getLogger("transformers").propagate = True
    config = {**SMoPEConfig().to_dict(), "la\x1b[2Jter": 1, "\u202e" + "f" * 10_000: 2}
    SMoPEConfig.from_dict(config)
    (message,) = [record.getMessage() for record in caplog.records if "are not taken" in record.getMessage()]
    check_shown(message)
    assert "la\\x1b[2Jter" in message


def test_a_terminal_that_cannot_write_a_letter_gets_its_escape(monkeypatch, tmp_path):
    import sys

    from smope_hf.base.printing import say

    with open(tmp_path / "out", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        say("猫 é")
    assert (tmp_path / "out").read_text() == "\\u732b \\xe9\n"


# ---------------------------------------------------------------------- files for people


def check_file(path: Path):
    text = path.read_text(encoding="utf-8")
    assert printable_lines(text) == text, path.name
    return text


def tokens(text: str):
    """Everything that Markdown makes of a card but its words; links that pages make of words would show in these."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for part in [token, *(token.children or [])]:
            if part.type == "text":
                part_of_link = part.content.replace("arXiv 2509.24483", "")
                assert not re.search(r"://|www\.|@|:\w+:|\$", part_of_link), part.content
            elif part.type not in ("inline", "code_inline", "softbreak"):
                found.append((part.type, part.tag, part.attrs.get("href"), part.attrs.get("src")))
    return found


@pytest.mark.parametrize("task", ["task-01", "task-02", "task-03"])
def test_a_card_has_the_same_parts_whatever_the_names(place, task):
    cards = [check_file(place / kind / task / "README.md") for kind in ("benign", "hostile")]
    benign, hostile = (ModelCard(card) for card in cards)
    assert tokens(hostile.text) == tokens(benign.text)
    assert hostile.data.to_dict().keys() == benign.data.to_dict().keys() and "license" not in hostile.data.to_dict()
    assert [r.metric_value is not None for r in hostile.data.eval_results] == [True] * len(benign.data.eval_results)
    assert len(cards[1]) < len(cards[0]) + 10_000
    assert re.findall("^#.*", hostile.text, re.MULTILINE) == re.findall("^#.*", benign.text, re.MULTILINE)


def test_a_card_reads_as_the_names_do(place):
    names = ["a|b*c_`d<i>", "[x](y)", "~~z~~ & &amp;", "北京", "שלום", "👩\u200d👧"]
    config = tiny_config(num_labels=len(names), tasks=[list(range(len(names)))])
    manifest = json.loads((place / "benign" / "task-01" / "manifest.json").read_text())
    manifest["tasks"][0]["class_names"] = names
    state = json.loads((place / "benign" / "task-01" / "trainer_state.json").read_text())
    card = MarkdownIt("commonmark").enable("table").parse(ModelCard(build_card(config, state, manifest, None)).text)
    (cell,) = [token for token in card if token.type == "inline" and "北京" in token.content]
    words = "".join(part.content for part in cell.children if part.type in ("text", "code_inline", "text_special"))
    assert words == ", ".join(names)


@pytest.mark.parametrize("name", HOSTILE, ids=range(6))
def test_what_others_wrote_in_state_and_manifest_makes_no_part_of_a_card(place, tmp_path, name):
    """A checkpoint of somebody else, its names changed everywhere with the hashes made anew."""
    folder = tmp_path / "task-03"
    shutil.copytree(place / "benign" / "task-03", folder)
    for file, change in (
        ("trainer_state.json", {"versions": {"torch": name, "smope_hf": name}, "recipe": {"seed": 0, name: name}}),
        ("manifest.json", {"name": name}),
    ):
        content = {**json.loads((folder / file).read_text()), **change}
        if file == "trainer_state.json":
            content["continued_from"] = {"name": name, "commit": name, "num_tasks": 1}
        else:
            content["options"] = {**content["options"], "test_split": name}
        (folder / file).write_text(json.dumps(content))
    update_checksums(folder, ["trainer_state.json", "manifest.json"])
    if len(name) > 1000:
        with pytest.raises(ValueError, match=r"trainer_state.json: recipe is \{.{1,300}$"):
            card_of(folder)
        return
    benign, card = ModelCard((place / "benign" / "task-03" / "README.md").read_text()), ModelCard(card_of(folder))
    assert printable_lines(str(card)) == str(card)
    kinds = [kind for kind in tokens(card.text) if kind[0] != "code_inline"]
    assert kinds == tokens(benign.text)
    assert card.data.to_dict().keys() == benign.data.to_dict().keys()


def test_a_commit_on_the_hub_tells_of_names_in_one_line(place, tmp_path):
    for task in ("task-01", "task-02", "task-03"):
        staged = stage(place / "hostile" / task, "me/model", tmp_path / task, True, False)
        check_shown(f"{staged.title}\n{staged.description}")
        assert len(staged.description.splitlines()) == 1 and len(staged.description) < 500
        check_file(staged.files["README.md"])


def test_a_report_has_the_same_tags_whatever_the_names(place, tmp_path, monkeypatch):
    monkeypatch.setattr("smope_hf.reports.run_report.embedded", lambda pictures: [])
    pages = [Page(write_report(place / kind, tmp_path / f"{kind}.html")) for kind in ("benign", "hostile")]
    for page in pages:
        assert printable_lines(page.raw) == page.raw
    assert pages[0].tags == pages[1].tags
    words = pages[1].words()
    assert "\\x1b]0;owned\\x07" in words and "<img src=x onerror=alert(1)>" in words and "\\u202e" in words
    assert max(len(part) for part in pages[1].text) < 5000


@pytest.mark.slow
def test_runs_with_hostile_names_are_drawn_and_compared(place, tmp_path):
    runs = [tmp_path / "a\x1b[2J$\\frac{", tmp_path / "_b\u202e[red]\n# Heading", tmp_path / ("猫" + "y" * 100)]
    for index, run in enumerate(runs):
        shutil.copytree(place / "hostile", run)
        content = json.loads((run / "metrics.json").read_text())
        content["recipe"]["epochs"] = index + 1
        content["method"] = "$x$\x1b[2J\u202e猫" + "m" * 1000
        (run / "metrics.json").write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of letters that the font has not
        smope("plot", *runs, "--output", tmp_path / "figures", "--format", "svg")
        smope("plot", runs[0], "--output", tmp_path / "figures", "--format", "svg")
        smope("report", *runs, "--output", tmp_path / "comparison.html")
        smope("report", runs[0])
    for page in (tmp_path / "comparison.html", runs[0] / "report.html"):
        check_self_contained(Page(page))
        check_file(page)
    for picture in (tmp_path / "figures").glob("*.svg"):
        check_file(picture)


def test_names_in_figures_are_words_and_nothing_else(tmp_path):
    name = "_$\\frac{\x1b[2J\u202e\n猫" + "y" * 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_average_accuracy({name: [[0.5], [0.4, 0.6]]}, tmp_path / "curve.png", title=name)
        row = {"FAA": 50.0, "FAA std": None, "parameters": 10.0, "GFLOPs train": 1.0, "GFLOPs test": 1.0}
        figure = plot_costs([{"method": name, **row}], tmp_path / "costs.png", title=name)
    texts = [text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text"))]
    assert any("\\frac{\\x1b[2J\\u202e\\n" in text for text in texts)
    assert all(printable_lines(text) == text for text in texts)


def test_tables_for_spreadsheets_hold_no_name_at_all(place):
    with open(place / "hostile" / "accuracy_matrix.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["after", "task-1", "task-2", "task-3"]
    assert all(
        re.fullmatch(r"task-\d", row[0]) and all(not cell or 0 <= float(cell) <= 1 for cell in row[1:]) for row in rows
    )


def test_names_as_stored_are_the_data_sets_own(place):
    for kind, names in (("benign", BENIGN), ("hostile", HOSTILE)):
        config = json.loads((place / kind / "task-03" / "config.json").read_text())
        manifest = json.loads((place / kind / "manifest.json").read_text())
        assert (
            set(config["id2label"].values())
            == set(map(one_form, names))
            == {n for t in manifest["tasks"] for n in t["class_names"]}
        )
        weights = [
            (place / k / "task-03" / "class_statistics.safetensors").stat().st_size for k in ("benign", "hostile")
        ]
        assert weights[0] == weights[1]


def test_cells_of_names_are_printable():
    assert names_in_short(["\x1b[2J", "a"]) == "\\x1b[2J, a"
    assert printable(names_in_short(["\u202e" * 90] * 3)) == names_in_short(["\u202e" * 90] * 3)
