"""The page of examples/space in a browser, as a visitor uses it: with a mouse, with the keyboard, on a phone."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hub_server import environment
from PIL import Image
from space import ROOT, SPACE
from space_browser import Server, check_fits, choose, teach, visit

from smope_hf import SMoPEForImageClassification
from smope_hf.cli.predict import classify
from smope_hf.sharing.hub import find_checkpoint

from first_checkpoint import RUN, first_checkpoint  # isort: skip

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # seconds; on an idle machine all of them together take about 90
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    first_checkpoint(folder / "cache", epochs=1)  # what the page would train at its first start, in less time
    server = Server(folder)
    yield server
    server.end()
    assert {path.name for path in folder.iterdir()} == {"cache", "scratch", "log.txt"}
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_look_teach_look_again_and_take_it_home(browser, server, tmp_path, width, scheme):
    with visit(browser, server, width, scheme=scheme) as page:
        check_fits(page, width)
        page.locator("input[type=file]").first.set_input_files(server.image("eight"))
        page.get_by_text("Seen by task-04, which knows 8 classes").wait_for()
        label = page.get_by_test_id("label-output-value")
        assert label.first.inner_text() != "eight"
        shown = page.locator("img.experts:visible")
        assert shown.count() == 1 and f"on-{scheme}" in shown.get_attribute("class")
        assert "each of 3 heads switches on 5 of its 25 experts" in shown.get_attribute("alt")
        check_fits(page, width)
        choose(page, "Compare with revision", "task-01")
        page.get_by_text("Seen by task-01, which knows 2 classes").wait_for()
        page.get_by_text("% of the experts that it switches on are the same").wait_for()
        check_fits(page, width)
        page.screenshot(path=tmp_path / "compare.png", full_page=True)

        teach(page, server.new_class(16), "eight")
        page.get_by_text(re.compile(r"Learning: step \d+ of \d+|Aligning|Measuring")).first.wait_for()
        page.get_by_text("Learned 'eight' from 12 images").wait_for()
        for text in ("on 160 held-out images", "on 4 of your images, held out"):
            assert page.get_by_text(text).is_visible()
        numbers = page.locator("table.lesson td.number").all_inner_texts()
        assert re.fullmatch(r"\d+\.\d%", numbers[0]) and re.fullmatch(r"\d+\.\d%", numbers[1]), numbers
        assert numbers[2] == "not learned" and re.fullmatch(r"\d+\.\d%\s+\d of 4", numbers[3]), numbers
        check_fits(page, width)
        page.screenshot(path=tmp_path / "taught.png", full_page=True)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the new checkpoint").click()
        download.value.save_as(tmp_path / "taught.zip")

        page.get_by_role("tab", name="Look").click()
        page.get_by_text("Seen by yours: task-05 with eight, which knows 9 classes").wait_for()
        assert label.first.inner_text() == "eight"
        check_fits(page, width)
        page.screenshot(path=tmp_path / "again.png", full_page=True)
    with zipfile.ZipFile(tmp_path / "taught.zip") as packed:
        packed.extractall(tmp_path)
    model = SMoPEForImageClassification.from_pretrained(tmp_path / "taught-model")
    assert model.config.id2label[8] == "eight"
    ((best, *_),) = classify(find_checkpoint(tmp_path / "taught-model"), [Path(server.image("eight"))], 1, 1)
    assert best["label"] == "eight"


def test_mistakes_are_explained_on_the_page(browser, server, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "broken.png").write_bytes(Path(server.image("eight")).read_bytes()[:500])
    Image.new("1", (6000, 5000)).save(tmp_path / "large.png")
    (tmp_path / "heavy.png").write_bytes(os.urandom(11 * 2**20))
    with visit(browser, server) as page:
        alert, chooser = page.get_by_role("alert"), page.locator("input[type=file]").first
        for name, message in (
            ("broken.png", "broken.png cannot be read as an image. Send a JPEG"),
            ("large.png", "large.png has more than 25 million pixels (6000 x 5000). Send a smaller copy."),
        ):
            chooser.set_input_files(tmp_path / name)
            alert.filter(has_text=message).wait_for()
            page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
            page.get_by_text("Drop an image, or choose one").wait_for()
            chooser = page.locator("input[type=file]").first
        chooser.set_input_files(tmp_path / "text.png")
        page.get_by_text("text.png cannot be read as an image. Send a JPEG").first.wait_for()
        chooser = page.locator("input[type=file]").first
        chooser.set_input_files(tmp_path / "heavy.png")
        page.get_by_text("exceed the maximum allowed size of 10.0 Mb").first.wait_for()
        heavy = {"name": "a.png", "mimeType": "image/png", "buffer": (tmp_path / "heavy.png").read_bytes()}
        assert page.request.post(f"{server.url}gradio_api/upload", multipart={"files": heavy}).status == 413
        assert page.request.get(f"{server.url}gradio_api/deep_link?session_hash=a").status == 404
        teach(page, server.new_class(3), "eight")
        alert.filter(has_text="3 images of the new class: at least 4 are needed").wait_for()
        page.get_by_label("Its name").fill("Seven")
        page.get_by_role("button", name="Learn", exact=True).click()
        alert.filter(has_text="The model knows a class 'seven' already. Give the new one another name").wait_for()
        assert "Traceback" not in page.content()


def focus(page, what: str, key: str = "Tab"):
    """Press Tab until something of this name has the focus."""
    for _ in range(40):
        page.keyboard.press(key)
        name = page.evaluate(
            "(() => { const e = document.activeElement; return e === document.body ? '' :"
            " e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || '' })()"
        )
        if what in name:
            style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style == "solid", f"{what} has the focus, and nobody can see it"
            return
    raise AssertionError(f"{what} cannot be reached with the Tab key")


def test_the_keyboard_is_enough(browser, server):
    with visit(browser, server) as page:
        page.on("filechooser", lambda chooser: None)  # or the key may come before the browser hands choosers over
        focus(page, "Drop an image file here")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(server.image("four"))
        page.get_by_text("Seen by task-04").wait_for()
        focus(page, "Task revision")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        page.get_by_text(re.compile("Seen by task-0[123]")).wait_for()
        focus(page, "Teach")
        page.keyboard.press("Enter")
        focus(page, "Take 20 images of an eight")
        page.keyboard.press("Enter")
        page.get_by_text("eight-").first.wait_for()
        focus(page, "Its name", "Shift+Tab")
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("a new one")
        page.keyboard.press("Enter")
        page.get_by_text("Learned 'a new one' from 15 images").wait_for()
        focus(page, "Download the new checkpoint")
        with page.expect_download():
            page.keyboard.press("Enter")


def test_checkpoints_of_a_folder_and_of_the_hub(browser, server, fresh_hub, tmp_path):
    run = str(server.cache / RUN)
    client = environment(fresh_hub, "hf_alice", tmp_path / "client")
    push = [sys.executable, "-m", "smope_hf", "push", run, "alice/digits"]
    subprocess.run(push, env={**client, "PYTHONPATH": str(ROOT)}, check=True, timeout=300, capture_output=True)
    variables = {**environment(fresh_hub, None, tmp_path / "home"), "SMOPE_CHECKPOINTS": f"{run}/task-02 alice/digits"}
    other = Server(tmp_path, **variables)
    try:
        with visit(browser, other) as page:
            page.locator("input[type=file]").first.set_input_files(server.image("seven"))
            page.get_by_text("Seen by task-02, which knows 4 classes").wait_for()
            choose(page, "Checkpoint", "alice/digits")
            page.get_by_text("Seen by task-04, which knows 8 classes").wait_for()
            page.get_by_label("Task revision").click()
            options = page.get_by_role("option")
            texts = [text.split()[-1] for text in options.all_inner_texts()]  # a tick before the chosen one
            assert texts == ["task-01", "task-02", "task-03", "task-04"]
            options.nth(2).click()
            page.get_by_text("Seen by task-03, which knows 6 classes").wait_for()
            teach(page, server.new_class(8), "eight")
            page.get_by_text("Learned 'eight' from 6 images").wait_for()
            numbers = page.locator("table.lesson td.number").all_inner_texts()
            assert numbers[:3] == ["unknown", "unknown", "not learned"]
    finally:
        other.end()
    assert not other.cache.exists()  # nothing was trained where checkpoints are given


TAGS = {
    "zero": "<img src=x onerror=alert(1)>", "one": "<b>x</b>", "two": "**a** [b](javascript:alert(1))",
    "three": "ab\u202egnp.exe", "four": "a\x1b[31mred", "five": "x" * 10_000, "six": "$\\frac{1}{2}$",
    "seven": "</script><script>alert(2)</script>",
}  # fmt: skip


def hostile_copy(run: Path, folder: Path) -> Path:
    """A run whose class names are for eyes, pages and terminals to stumble over, with its checksums made anew."""
    shutil.copytree(run, folder)
    for file in folder.rglob("*.json"):
        text = file.read_text()
        for name, other in TAGS.items():
            text = text.replace(json.dumps(name), json.dumps(other))
        file.write_text(text)
    for file in folder.rglob("checksums.json"):
        content = json.loads(file.read_text())
        for name in content["sha256"]:
            content["sha256"][name] = hashlib.sha256((file.parent / name).read_bytes()).hexdigest()
        file.write_text(json.dumps(content))
    return folder


def check_nothing_ran(page):
    assert not page.evaluate("[...document.images].filter(image => image.getAttribute('src') === 'x').length")
    texts = page.evaluate("[...document.querySelectorAll('b, strong, a')].map(element => element.innerText)")
    assert not {"x", "a", "b"} & set(texts)
    assert not re.search("[\u202e\x1b]", page.locator("body").inner_text())


def test_names_of_others_are_text_on_the_page(browser, server, tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    hostile, digits = hostile_copy(server.cache / RUN, tmp_path / "hostile"), server.cache / RUN
    other, asked = Server(folder, "--checkpoint", str(hostile), "--checkpoint", str(digits)), []
    try:
        with visit(browser, other) as page:
            page.on("dialog", lambda dialog: asked.append(dialog.message))
            page.locator("input[type=file]").first.set_input_files(server.image("zero"))
            page.get_by_text("Seen by task-04, which knows 8 classes").wait_for()
            shown = page.get_by_test_id("label-output-value").first
            assert TAGS["zero"] in page.locator("body").inner_text()  # the first name that is told
            assert shown.inner_text() and len(page.locator("body").inner_text()) < 5000
            check_fits(page, 1280)
            check_nothing_ran(page)
            page.screenshot(path=tmp_path / "hostile.png", full_page=True)
            choose(page, "Checkpoint", RUN)
            name = "<img src=x onerror=alert(3)><b>x</b>"
            teach(page, server.new_class(6), name)
            page.get_by_text("Learned").first.wait_for()
            assert name in page.locator("table.lesson").inner_text()
            page.get_by_label("Task revision").click()
            assert page.get_by_role("option").last.inner_text().endswith(f"yours: task-05 with {name}")
            page.screenshot(path=tmp_path / "dropdown.png", full_page=True)
            check_nothing_ran(page)
            page.keyboard.press("Escape")
            page.get_by_role("tab", name="Look").click()
            page.get_by_text(f"Seen by yours: task-05 with {name}").wait_for()
            check_nothing_ran(page)
    finally:
        other.end()
    assert not asked


def test_a_mistake_at_the_start_is_one_line(tmp_path):
    command = [sys.executable, str(SPACE / "app.py"), "--checkpoint", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "nowhere is not a folder" in done.stderr and "Traceback" not in done.stderr
