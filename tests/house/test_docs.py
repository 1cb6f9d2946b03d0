"""What README and docs tell people to type exists: commands, options, Python, links and pages.

`test_doc_blocks.py` runs it.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer
import yaml
from doc_blocks import FENCE, ROOT, Block, blocks_of
from hub_faults import KILLED, LASTING, PASSING
from typer.exceptions import TyperException

from smope_hf.cli.program import app
from smope_hf.training.run_arguments import RUN_ARGUMENTS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CARD = ROOT / "model_cards" / "letters-vit-digits.md"
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def blocks(pages=PAGES) -> list[Block]:
    return [block for page in pages for block in blocks_of(page)]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def shell_lines(block: Block) -> list[list[str]]:
    """The commands of a block, each in its parts: all lines in bash, those behind a prompt in shown sessions."""
    lines = re.sub(r" *\\\n\s*", " ", block.text).splitlines()
    if block.language not in ("bash", ""):
        return []
    typed = lines if block.language == "bash" else [line[2:] for line in lines if line.startswith("$ ")]
    return [parts for parts in (shlex.split(line, comments=True) for line in typed) if parts]


def smope_commands() -> list[list[str]]:
    """What follows `smope`, in every way to call it."""
    found = []
    for block in blocks([*PAGES, CARD]):
        for parts in shell_lines(block):
            if parts[0] == "smope":
                found.append(parts[1:])
            elif "-m smope_hf" in " ".join(parts):  # behind python, accelerate launch or torchrun
                found.append(parts[parts.index("smope_hf") + 1 :])
    return found


def cli():
    group = typer.main.get_command(app)
    return group, group.make_context("smope", [])


def options_of(name: str) -> set[str]:
    group, context = cli()
    command = group.get_command(context, name)
    assert command is not None, f"there is no command {name!r}"
    given = [option for param in command.params for option in (*param.opts, *param.secondary_opts)]
    return {option.replace("_", "-") for option in given if option.startswith("--")} | {"--help", "--debug"}


# ---------------------------------------------------------------------- code


@pytest.mark.parametrize("block", [b for b in blocks([*PAGES, CARD]) if b.language == "python"], ids=str)
def test_python_compiles(block):
    compile(block.text, str(block.page), "exec")


@pytest.mark.parametrize("arguments", smope_commands(), ids=" ".join)
def test_commands_of_smope_parse(arguments):
    name, *rest = arguments
    if name.startswith("-"):
        assert name in {"--help", "--version"}
        return
    group, context = cli()
    command = group.get_command(context, name)
    assert command is not None, f"there is no command {name!r}"
    if "--epohcs" in rest:  # shown as a mistake
        with pytest.raises(TyperException, match="--epohcs"):
            command.make_context(name, rest, parent=context)
    elif "--help" not in rest:
        command.make_context(name, rest, parent=context)


def inline(page: Path, start: str) -> list[str]:
    return [code for code in INLINE.findall(prose(page)) if code.startswith(start)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_named_in_the_text_exist(page):
    group, context = cli()
    everywhere = set().union(*(options_of(name) for name in group.list_commands(context)))
    for code in inline(page, "smope "):
        name, *rest = code.split()[1:]
        known = everywhere if name == "COMMAND" else options_of(name)
        assert {part for part in rest if part.startswith("--")} <= known, code
    for code in inline(page, "--"):
        assert code.split()[0] in everywhere, f"no command has {code}"


def options_of_example(script: Path) -> set[str]:
    """The options that a script reads itself, and those of what it hands the rest to."""
    source = script.read_text(encoding="utf-8")
    own = {"--help", *re.findall(r'add_argument\("(--\w+)"', source)}
    if "typer" in source:
        own |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): Annotated\[", source, re.MULTILINE)}
    if "benchmark.py" in source and script.name != "benchmark.py":  # sample_efficiency hands its rest on to it
        own |= options_of_example(script.with_name("benchmark.py"))
    known = {f"--{setting.name}" for kind in RUN_ARGUMENTS for setting in fields(kind)}
    return own | (known if "parse_arguments" in source else set())


def test_examples_are_called_with_files_and_options_that_exist():
    calls = [parts for block in blocks() for parts in shell_lines(block)]
    inlined = [
        shlex.split(code) for page in PAGES for start in ("python e", "accelerate ") for code in inline(page, start)
    ]
    found = 0
    for parts in (*calls, *inlined):
        files = [place for place, part in enumerate(parts) if part.startswith("examples/")]
        for script in (parts[place] for place in files):
            assert (ROOT / script).exists(), script
            found += 1
        if files and parts[files[0]].endswith(".py"):
            given = {part for part in parts[files[0] + 1 :] if part.startswith("--")}
            unknown = given - options_of_example(ROOT / parts[files[0]])
            assert not unknown, f"{parts[files[0]]} has no {unknown}"
    assert found >= 3


# ---------------------------------------------------------------------- pages


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), f"{page.name} links to {link}"
            picture = target.suffix in (".png", ".svg")  # whose anchors name the theme that shows it
            known = {"only-light", "only-dark"} if picture else anchors(target)
            assert not anchor or anchor in known, f"{page.name} links to {link}"


@pytest.mark.parametrize(("page", "most"), [("README.md", 130), ("docs/results.md", 120)])
def test_the_pages_that_are_read_first_stay_short(page, most):
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= most


def test_each_finding_of_the_results_has_a_page_of_its_own():
    """The whole text of an item of the list, however many lines it takes, and the pages that it leads to."""
    page = ROOT / "docs" / "results.md"
    listed = prose(page).split("## Six findings\n\n")[1].split("\n\n")[0]
    findings = re.split(r"^\d\. ", listed, flags=re.MULTILINE)[1:]
    details = [{link.partition("#")[0] for link in LINK.findall(finding)} for finding in findings]
    assert len(details) == 6 and all(len(links) == 1 for links in details)
    names = set.union(*details)
    assert len(names) == 6 and all((page.parent / name).is_file() for name in names)


def test_the_commands_of_the_readme_parse_as_they_stand():
    """Those of the table of what a reader wants; behind `accelerate launch` too."""
    group, context = cli()
    calls = re.findall(r"\| `(?:smope|accelerate launch -m smope_hf) ([a-z][^`]*)` \|", prose(ROOT / "README.md"))
    for name, *rest in map(shlex.split, calls):
        group.get_command(context, name).make_context(name, rest, parent=context)
    assert {call.split()[0] for call in calls} == set(group.list_commands(context))


def pages_of(nav: list | str) -> list[str]:
    """The files in a navigation, however deep."""
    if isinstance(nav, str):
        return [nav]
    return [file for entry in nav for below in entry.values() for file in pages_of(below)]


def test_the_navigation_lists_every_page():
    listed = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    docs = ROOT / "docs"
    assert sorted(listed) == sorted(str(page.relative_to(docs)) for page in PAGES if page.is_relative_to(docs))


def test_the_fault_table_counts_the_faults_that_are_tested():
    text = " ".join((ROOT / "docs" / "hub.md").read_text().split())
    counts = f"{len(PASSING)} faults that pass, {len(LASTING)} that last, a push killed at {len(KILLED)} moments"
    assert counts in text, f"docs/hub.md does not say: {counts}"


# ---------------------------------------------------------------------- the site


@pytest.mark.slow
def test_the_check_of_the_site_fails_for_a_link_that_leads_nowhere(tmp_path):
    """As `make quality` and `make docs` build it."""
    builds = re.findall(r"^\t\$\(RUN\)/(mkdocs .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(builds) == 2 and set(builds) == {"mkdocs build --strict"}
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "smope_hf").symlink_to(ROOT / "smope_hf")
    command = [sys.executable, "-m", *builds[0].split()]
    whole = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert whole.returncode == 0, whole.stderr
    with open(tmp_path / "docs" / "faq.md", "a") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    broken = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert broken.returncode != 0 and "nowhere.md" in broken.stderr
