"""What stands around the page of examples/space: limits, visits, requests that are not taken, and a Space's files."""

import io
import json
import re
import struct
import subprocess
import sys
import threading
import time
import tomllib
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from space import ROOT, SPACE
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from desk import BROKEN, explain  # isort: skip
from guard import Guard  # isort: skip
from limits import Limits, Refused  # isort: skip
from visits import Visits, remove_for_good  # isort: skip

LIMITS = Limits()


# ---------------------------------------------------------------------- limits


def png_of(width: int, height: int) -> bytes:
    """A small file whose header promises an image of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1 + width // 8) * 10)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(5001, 5000), (20000, 20000)], ids=["large", "bomb"])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, size):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(*size))  # the data ends after ten rows: decoding it would be another error
    with pytest.raises(Refused, match=r"a\.png has more than 25 million pixels.*Send a smaller copy"):
        LIMITS.read_image(path)


def test_what_is_no_image_is_refused(tmp_path):
    good = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(good, "PNG")
    for content in (b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", good.getvalue()[:3000]):
        path = tmp_path / "a.png"
        path.write_bytes(content)
        with pytest.raises(Refused, match=r"a\.png cannot be read as an image. Send a JPEG, PNG"):
            LIMITS.read_image(path)
    with pytest.raises(Refused, match="no longer here.*Upload it again"):
        LIMITS.read_image(tmp_path / "b.png")
    with pytest.raises(Refused, match="more than 0 MB"):
        replace(LIMITS, image_bytes=2).read_image(path)


def test_an_image_is_read_upright_small_and_without_its_metadata(tmp_path):
    image = Image.new("RGB", (2000, 1000), "white")
    image.paste("black", (0, 0, 1000, 1000))
    exif = image.getexif()
    exif[274], exif[315] = 6, "somebody"  # turned to the right; artist
    image.save(tmp_path / "a.jpg", exif=exif)
    read = LIMITS.read_image(tmp_path / "a.jpg")
    assert read.size == (512, 1024) and read.mode == "RGB"
    assert read.getpixel((256, 100))[0] < 50 and read.getpixel((256, 900))[0] > 200
    saved = io.BytesIO()
    read.save(saved, "PNG")
    assert b"somebody" not in saved.getvalue()


def test_names_of_new_classes():
    assert LIMITS.check_name("  my   dog ", ["cat"]) == "my dog"
    for name, message in {
        "": "has no name. Type one",
        None: "has no name. Type one",
        "   ": "has no name. Type one",
        "x" * 41: "41 characters: at most 40",
        "a\u202eb": "cannot be shown",
        "a\nb": "cannot be shown",
        "CAT": "knows a class 'cat' already. Give the new one another name, or choose a revision",
    }.items():
        with pytest.raises(Refused, match=message):
            LIMITS.check_name(name, ["cat"])


def test_numbers_of_images_and_lessons():
    LIMITS.check_number(4), LIMITS.check_number(40), LIMITS.check_teaching(4, 299.0)
    for count, message in {0: "No images.*at least 4", 1: "One image.*at least 4", 41: "at most 40.*Remove 1"}.items():
        with pytest.raises(Refused, match=message):
            LIMITS.check_number(count)
    with pytest.raises(Refused, match="taught 5 classes"):
        LIMITS.check_teaching(5, 0.0)
    with pytest.raises(Refused, match="used its 300 seconds"):
        LIMITS.check_teaching(0, 300.0)


def test_nobody_is_shown_an_error_that_was_not_meant_for_them(capsys):
    assert explain(Refused("Send a smaller copy.")) == "Send a smaller copy."
    assert explain(ValueError("secret/path")) == BROKEN
    assert "secret/path" in capsys.readouterr().err


# ---------------------------------------------------------------------- visits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def upload(visits: Visits, name: str, *keys: str) -> Path:
    path = visits.uploads / f"hash-of-{name}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image")
    for key in keys:
        assert visits.take(visits.of(key), str(path)) == path
    return path


def test_a_visit_that_ends_leaves_nothing_and_takes_nothing_of_others(tmp_path):
    forgotten, outside = [], tmp_path / "mine.txt"
    outside.write_text("keep")
    visits = Visits(tmp_path / "uploads", LIMITS, forgotten.append)
    (visits.of("a").folder / "task-05").mkdir()
    own, both, example = upload(visits, "own", "a"), upload(visits, "both", "a", "b"), upload(visits, "example", "a")
    visits.own_files = {example}
    folder, other = visits.of("a").folder, visits.of("b").folder
    assert re.fullmatch(r"visit-[0-9a-f]{32}", folder.name)  # its files are handed out to whom knows the name
    visits.end("a")
    visits.end("a")  # a page may say so twice
    assert not folder.exists() and not own.parent.exists() and forgotten == [folder]
    assert both.exists() and example.exists() and outside.exists() and other.exists()
    visits.end("b")
    assert not both.exists() and sorted(p.name for p in visits.uploads.iterdir()) == ["hash-of-example"]


def test_only_uploaded_files_are_taken(tmp_path):
    visits = Visits(tmp_path / "uploads", LIMITS)
    other = visits.of("other").folder / "lesson.zip"
    other.write_bytes(b"another visitor's")
    outside = tmp_path / "mine.txt"
    outside.write_text("keep")
    link = visits.uploads / "hash" / "link.png"
    link.parent.mkdir()
    link.symlink_to(outside)
    for path in (outside, other, link, visits.uploads / "hash" / ".." / ".." / "mine.txt", "/etc/passwd", ""):
        with pytest.raises(Refused, match="was not uploaded here"):
            visits.take(visits.of("a"), str(path))
    assert not visits.of("a").uploads


def test_idle_visits_end_and_others_do_not(tmp_path):
    clock = Clock()
    visits = Visits(tmp_path / "uploads", LIMITS, clock=clock)
    idle, active, learning = (visits.of(key) for key in ("idle", "active", "learning"))
    visits.start_lesson(learning)
    clock.now = 1799.0
    visits.of("active")
    assert idle.folder.exists()
    clock.now = 1801.0
    visits.sweep()
    assert not idle.folder.exists() and active.folder.exists() and learning.folder.exists()
    assert visits.of("idle") is not idle


def test_a_lesson_whose_page_was_closed_is_told_and_its_folder_goes_when_it_stops(tmp_path):
    visits = Visits(tmp_path / "uploads", LIMITS)
    visit = visits.of("a")
    visits.start_lesson(visit)
    with pytest.raises(Refused, match="running already"):
        visits.start_lesson(visit)
    visits.end("a")
    assert visit.ended and visit.folder.exists()
    visits.stop_lesson(visit)
    assert not visit.folder.exists()


def test_there_are_only_so_many_visits(tmp_path):
    visits = Visits(tmp_path / "uploads", replace(LIMITS, visits=2))
    visits.of("a"), visits.of("b"), visits.of("a")
    with pytest.raises(Refused, match="Too many people"):
        visits.of("c")
    visits.end("a")
    visits.of("c")


# ---------------------------------------------------------------------- requests


@pytest.fixture
def client(tmp_path) -> TestClient:
    async def answer(request):
        return PlainTextResponse(f"{len(await request.body())} bytes")

    guard = Middleware(Guard, uploads=tmp_path, request_bytes=1000, upload_bytes=1500)
    routes = [Route("/{path:path}", answer, methods=["GET", "POST"])]
    return TestClient(Starlette(routes=routes, middleware=[guard]))


def test_uploads_are_bounded(client, tmp_path):
    assert client.post("/gradio_api/upload", content=b"x" * 1000).text == "1000 bytes"
    assert client.post("/gradio_api/upload", content=b"x" * 1001).status_code == 413
    assert client.post("/gradio_api/upload", content=iter([b"x"] * 10)).status_code == 411  # of no stated length
    (tmp_path / "there").write_bytes(b"x" * 1000)
    assert client.post("/gradio_api/upload", content=b"x" * 400).status_code == 200
    assert client.post("/gradio_api/upload", content=b"x" * 600).status_code == 503


def test_nothing_is_fetched_for_a_visitor_and_no_state_is_kept(client):
    for path in ("/gradio_api/deep_link?session_hash=a", "/gradio_api/proxy=http://a", "/gradio_api/file=HTTPS://a/b"):
        assert client.get(path).status_code == 404, path
    assert client.get("/gradio_api/file=/folder/a.png").status_code == 200
    for path in ("http://10.0.0.1/a.png", " HTTPS://a/b"):
        message = json.dumps({"data": [[{"path": path}], None]}).replace("http", "\\u0068ttp")
        assert client.post("/gradio_api/queue/join", content=message).status_code == 400, path
    assert client.post("/gradio_api/queue/join", json={"data": [{"path": "/folder/a.png"}]}).status_code == 200
    assert client.post("/gradio_api/queue/join", json={"data": "x" * 2**20}).status_code == 413
    assert client.post("/gradio_api/queue/join", content=b"{").status_code == 400


def test_the_browser_is_told_to_load_nothing_from_elsewhere(client):
    policy = client.get("/").headers["content-security-policy"]
    sources = {source for rule in policy.split(";") for source in rule.split()[1:]}
    assert policy.startswith("default-src 'self'")
    assert sources <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}


def test_a_closed_page_begins_no_visit_and_leaves_nothing(tmp_path):
    """A late request must not make a folder that outlives the program."""
    visits = Visits(tmp_path / "uploads", LIMITS)
    folder = visits.of("somebody").folder
    visits.close()
    assert not folder.exists()
    with pytest.raises(Refused, match="being closed"):
        visits.of("late")
    assert not list(visits.uploads.iterdir())


def test_a_folder_that_is_still_written_to_is_removed(tmp_path):
    folder, stop = tmp_path / "scratch", time.monotonic() + 0.5

    def write():
        while time.monotonic() < stop:
            (folder / "deep").mkdir(parents=True, exist_ok=True)

    writer = threading.Thread(target=write)
    writer.start()
    remove_for_good(folder)
    writer.join()
    remove_for_good(folder)
    assert not folder.exists()


# ---------------------------------------------------------------------- a Space


def test_the_space_needs_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (SPACE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == project["dependencies"] + project["optional-dependencies"]["demo"]


def test_the_front_matter_says_how_a_space_runs():
    _, front, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    content = yaml.safe_load(front)
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert content["sdk"] == "gradio" and content["sdk_version"] == pinned["gradio"]
    assert (SPACE / content["app_file"]).is_file() and content["license"] == "apache-2.0"
    assert len(content["short_description"]) <= 60  # more is refused


def test_every_file_of_the_space_is_named_in_its_readme():
    named = set(re.findall(r"^\| `(\w+\.py)` \|", (SPACE / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in SPACE.glob("*.py")}


def test_the_documentation_states_the_limits_that_hold():
    text = (ROOT / "docs" / "demo.md").read_text()
    for line in (
        f"| images of a new class | {LIMITS.least_images} to {LIMITS.most_images} |",
        f"| size of a file | {LIMITS.image_bytes // 2**20} MB |",
        f"| size of an image | {LIMITS.image_pixels // 10**6} million pixels,",
        f"| name of a class | {LIMITS.name_length} characters,",
        f"| training for one class | {LIMITS.lesson_seconds:.0f} seconds,",
        f"| one visit | {LIMITS.lessons} classes, {LIMITS.visit_seconds:.0f} seconds of training, "
        f"{LIMITS.idle_seconds / 60:.0f} minutes without use |",
        f"| all visits | {LIMITS.visits} at a time, {LIMITS.upload_bytes // 2**30} GiB of files together |",
    ):
        assert line in text, line


def test_options_come_from_the_environment_too():
    command = [sys.executable, str(SPACE / "app.py"), "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250).stdout
    for name in ("SMOPE_CHECKPOINTS", "SMOPE_TEST_DATA", "SMOPE_CACHE"):
        assert name in help_text and f"`{name}`" in (SPACE / "README.md").read_text()
