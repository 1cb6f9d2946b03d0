"""What stands around the page of examples/space: limits, visits, requests that are not taken, and a Space's files."""

import io
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

from desk import BROKEN, explain  # isort: skip
from files import Files  # isort: skip
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
        "\u3164\u3164": "cannot be shown",
        "a\x1b[31m": "cannot be shown",
        "CAT": "knows a class 'cat' already. Give the new one another name, or choose a revision",
    }.items():
        with pytest.raises(Refused, match=message):
            LIMITS.check_name(name, ["cat"])
    for known in ("caf\u00e9", "cafe\u0301", "Cafe\u0301 ", "ca\u200bfé"):
        for name in ("caf\u00e9", "cafe\u0301"):
            with pytest.raises(Refused, match="knows a class"):
                LIMITS.check_name(name, ["cat", known])
    assert LIMITS.check_name("cafe\u0301", ["cat"]) == "caf\u00e9"


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


def open_visits(folder: Path, limits: Limits = LIMITS, clock=Clock(), forget=lambda folder: None) -> Visits:
    return Visits(Files(folder / "uploads", limits, clock), limits, forget, clock)


def upload(visits: Visits, name: str) -> Path:
    path = visits.files.place(name)
    path.write_bytes(b"image")
    visits.files.add_sent(path, "image/png", "1.2.3.4")
    return path


def test_a_visit_that_ends_leaves_nothing_and_takes_nothing_of_others(tmp_path):
    forgotten, outside = [], tmp_path / "mine.txt"
    outside.write_text("keep")
    visits = open_visits(tmp_path, forget=forgotten.append)
    (visits.of("a").folder / "task-05").mkdir()
    (example,) = visits.files.add_own([outside])
    own, others, unused = upload(visits, "own"), upload(visits, "own"), upload(visits, "own")
    for key, path in (("a", own), ("b", others), ("a", example), ("b", example)):
        assert visits.take(visits.of(key), str(path)) == path
    folder, other = visits.of("a").folder, visits.of("b").folder
    assert re.fullmatch(r"visit-[0-9a-f]{32}", folder.name)  # its files are handed out to whom knows the name
    visits.end("a")
    visits.end("a")  # a page may say so twice
    assert not folder.exists() and not own.parent.exists() and forgotten == [folder]
    assert others.exists() and unused.exists() and example.exists() and outside.exists() and other.exists()
    visits.end("b")
    assert not others.parent.exists() and example.exists()


def test_only_uploaded_files_are_taken(tmp_path):
    visits = open_visits(tmp_path)
    other = visits.of("other").folder / "lesson.zip"
    other.write_bytes(b"another visitor's")
    theirs = upload(visits, "theirs")
    visits.take(visits.of("other"), str(theirs))
    outside = tmp_path / "mine.txt"
    outside.write_text("keep")
    link = visits.files.folder / "hash" / "link.png"
    link.parent.mkdir()
    link.symlink_to(outside)
    mine = upload(visits, "mine")
    for path in (
        outside, other, theirs, link, link.parent / ".." / ".." / "mine.txt", "/etc/passwd", "", f"{mine}/",
        mine.parent / ".." / mine.parent.name / mine.name,
    ):  # fmt: skip
        with pytest.raises(Refused, match="was not uploaded here"):
            visits.take(visits.of("a"), str(path))
    assert visits.take(visits.of("a"), str(mine)) == mine


def test_uploads_that_no_visit_uses_go(tmp_path):
    clock = Clock()
    visits = open_visits(tmp_path, clock=clock)
    unused, used = upload(visits, "a.png"), upload(visits, "a.png")
    visits.take(visits.of("a"), str(used))
    clock.now = 1799.0
    visits.of("a")
    assert unused.exists()
    clock.now = 1801.0
    visits.sweep()
    assert not unused.parent.exists() and used.exists() and visits.files.find(str(unused)) is None


def test_idle_visits_end_and_others_do_not(tmp_path):
    clock = Clock()
    visits = open_visits(tmp_path, clock=clock)
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
    visits = open_visits(tmp_path)
    visit = visits.of("a")
    visits.start_lesson(visit)
    with pytest.raises(Refused, match="running already"):
        visits.start_lesson(visit)
    visits.end("a")
    assert visit.ended and visit.folder.exists()
    visits.stop_lesson(visit)
    assert not visit.folder.exists()


def test_no_lesson_begins_where_there_is_no_room_for_what_it_makes(tmp_path):
    visits = open_visits(tmp_path, replace(LIMITS, upload_bytes=10))
    visits.start_lesson(visits.of("a"))
    (visits.of("b").folder / "state").write_bytes(bytes(11))
    with pytest.raises(Refused, match="Too many files are here"):
        visits.start_lesson(visits.of("b"))


def test_there_are_only_so_many_visits(tmp_path):
    visits = open_visits(tmp_path, replace(LIMITS, visits=2))
    visits.of("a"), visits.of("b"), visits.of("a")
    with pytest.raises(Refused, match="Too many people"):
        visits.of("c")
    visits.end("a")
    visits.of("c")


def test_a_closed_page_begins_no_visit_and_leaves_nothing(tmp_path):
    """A late request must not make a folder that outlives the program."""
    visits = open_visits(tmp_path)
    folder = visits.of("somebody").folder
    visits.close()
    assert not folder.exists()
    with pytest.raises(Refused, match="being closed"):
        visits.of("late")
    assert not list(visits.files.folder.iterdir())


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
        f"| one address | {LIMITS.address_visits} visits at a time, {LIMITS.address_bytes // 2**20} MiB of uploads |",
    ):
        assert line in text, line


def test_options_come_from_the_environment_too():
    command = [sys.executable, str(SPACE / "app.py"), "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250).stdout
    for name in ("SMOPE_CHECKPOINTS", "SMOPE_TEST_DATA", "SMOPE_CACHE"):
        assert name in help_text and f"`{name}`" in (SPACE / "README.md").read_text()
