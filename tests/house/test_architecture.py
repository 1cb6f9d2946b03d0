"""What the pages for those who carry on name is there: files, functions, targets of make, the rooms in the picture."""

import ast
import re
import runpy
from itertools import combinations
from pathlib import Path

import pytest
from doc_blocks import FENCE, ROOT
from test_rooms import FLOORS

ARCHITECTURE, CONTRIBUTING = ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"
CHANGELOG = ROOT / "CHANGELOG.md"
FIGURES = ROOT / "docs" / "figures"
PICTURE = runpy.run_path(str(FIGURES / "rooms.py"))
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.-]+/[\w./-]*|\.ci/run")
NAME = re.compile(r"[A-Za-z_][\w.]*")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)")
OTHER_WORDS = {
    "smope_hf",
    "smope",
    "slow",
    "path",
    "title",
    "dpi",
    "theme",
    *FLOORS,
}  # a command, a mark, arguments, packages


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def items(page: Path) -> list[str]:
    """Entries of lists, rows of tables and paragraphs: what stands together."""
    return re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.|\|) ?)", prose(page))


def definitions(file: Path) -> set[str]:
    """Functions, classes, methods ("Class.method") and names of a file."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        named = getattr(node, "targets", [getattr(node, "target", None)])
        found |= {target.id for target in named if isinstance(target, ast.Name)}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return found


def problems(item: str) -> list[str]:
    """What an entry names that is not there; a name has to be of a file that the same entry names."""
    codes = CODE.findall(item)
    words = [word for code in codes for word in code.split()]
    paths = [word for word in words if PATH.fullmatch(word) and not word.startswith(".venv")]
    found = [f"there is no {path}" for path in paths if not (ROOT / path).exists()]
    files = [ROOT / path for path in paths if path.endswith(".py") and (ROOT / path).is_file()]
    known = set().union(*map(definitions, files)) | OTHER_WORDS
    names = [code for code in codes if NAME.fullmatch(code) and not code.endswith((".py", ".md"))]
    return found + [f"{name} is in no file that is named beside it" for name in names if name not in known]


@pytest.mark.parametrize("page", [ARCHITECTURE, CONTRIBUTING], ids=lambda page: page.name)
def test_files_and_functions_are_there(page):
    entries = items(page)
    broken = [problem for entry in entries for problem in problems(entry)]
    assert not broken, "\n".join(broken)
    assert sum(len(CODE.findall(entry)) for entry in entries) > 60


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("`smope_hf/base/gone.py`", "there is no smope_hf/base/gone.py"),
        ("`pytest tests/gone`", "there is no tests/gone"),
        ("`say` in `smope_hf/base/printing.py`", None),
        ("`say_gone` in `smope_hf/base/printing.py`", "say_gone is in no file"),
        ("`TaskSplit.images` (`smope_hf/data/split.py`)", None),
        ("`TaskSplit.gone` (`smope_hf/data/split.py`)", "TaskSplit.gone is in no file"),
        ("`say` of another page", "say is in no file"),
    ],
)
def test_what_is_not_there_is_found(item, problem):
    found = problems(item)
    assert (not found) if problem is None else found[0].startswith(problem)


@pytest.mark.parametrize("page", [CONTRIBUTING, CHANGELOG, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_their_links_lead_somewhere(page):
    files = [link for link in LINK.findall(prose(page)) if not link.startswith("https://")]
    assert files and not [link for link in files if not (page.parent / link).is_file()]


def test_targets_of_make_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", CONTRIBUTING.read_text().replace("need Python 3.11 or newer and", "")))
    assert named <= targets and {"test", "test-slow", "quality", "dist"} <= named


# ---------------------------------------------------------------------- the picture of the rooms


def test_the_picture_has_the_packages_in_their_order_and_the_steps_of_the_page():
    assert tuple(PICTURE["FLOORS"]) == FLOORS[::-1]
    life = ARCHITECTURE.read_text().partition("## The life of an image")[2].partition("\n## ")[0]
    steps = [entry for entry in re.split(r"\n(?=\d+\. )", life) if re.match(r"\d+\. ", entry)]
    assert len(steps) == len(PICTURE["STEPS"])
    for step, floor in zip(steps, PICTURE["STEPS"], strict=True):
        assert f"`smope_hf/{floor}/" in step, f"{step[:40]} does not pass through {floor}"
    for floor in FLOORS:
        assert f"| `{floor}` |" in ARCHITECTURE.read_text()


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_pictures_in_the_repository_are_those_of_the_script(name, tmp_path):
    PICTURE["main"](tmp_path)
    assert (tmp_path / f"rooms-{name}.svg").read_bytes() == (FIGURES / f"rooms-{name}.svg").read_bytes()


def test_no_text_is_cut_or_covers_another():
    figure = PICTURE["draw"](PICTURE["LIGHT"])
    (axes,) = figure.axes
    boxes = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
    first = axes.transData.transform((PICTURE["FIRST"] - 6, 0))[0]
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
        assert text not in PICTURE["FLOORS"].values() or box.x1 <= first, f"{text} runs into the steps"
    for (one, a), (other, b) in combinations(boxes, 2):
        assert min(a.x1, b.x1) <= max(a.x0, b.x0) or min(a.y1, b.y1) <= max(a.y0, b.y0), f"{one} covers {other}"
