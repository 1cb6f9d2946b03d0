"""Every code block of README and docs is run, in the order of its page; those that are not are counted here."""

import os
import subprocess
import sys
from collections import Counter

import doc_blocks
import hub_server
import pytest
from doc_blocks import REASONS, ROOT, blocks_of, runs
from hub_fixtures import loopback_hub
from test_docs import PAGES

from smope_hf.models.methods.rivals import PROMPT_METHODS

WITH_PICTURES = True  # of the runs that pages show

NEEDS_HUB = {"share.md"}  # its commands speak to the Hub of the tests, as a user named me
NOT_RUN = {
    "docs/bad-input.md": Counter(files=1),
    "docs/bad-input/images.md": Counter(files=1),
    "docs/cli.md": Counter(network=1),
    "docs/demo.md": Counter(devices=1, files=2),
    "docs/guides/adding-a-method.md": Counter(files=1),
    "docs/guides/choosing-settings.md": Counter(hours=1),
    "docs/guides/many-processes.md": Counter(devices=2),
    "docs/hub.md": Counter(network=1, hours=1),
    "docs/index.md": Counter(network=3),
    "docs/methods.md": Counter(hours=4),
}
RUN = [page for page in PAGES if any(map(runs, blocks_of(page)))]


@pytest.fixture(autouse=True)
def methods_as_they_were():
    before = dict(PROMPT_METHODS)
    yield
    PROMPT_METHODS.clear()
    PROMPT_METHODS.update(before)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    if page.name not in NEEDS_HUB:
        doc_blocks.run_page(page, tmp_path)
        return
    (tmp_path / "page").mkdir()
    monkeypatch.setitem(hub_server.TOKENS, "hf_me", "me")
    with loopback_hub(tmp_path / "hub") as hub:
        environment = {**hub_server.environment(hub, "hf_me", tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, doc_blocks.__file__, str(page), str(tmp_path / "page")]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_what_is_not_run_says_why_and_does_not_grow_unseen():
    reasons = {page: [block.reason for block in blocks_of(page) if block.reason] for page in PAGES}
    assert {reason for found in reasons.values() for reason in found} <= set(REASONS)
    own = {page: Counter(found) for page, found in reasons.items() if found and not doc_blocks.reason_of(page)}
    assert {str(page.relative_to(ROOT)): counts for page, counts in own.items()} == NOT_RUN


def test_every_block_is_of_a_kind_that_is_run_or_shows_no_code():
    """A language that nobody runs would be a way around."""
    for page in PAGES:
        for block in blocks_of(page):
            shown_only = block.language == "" and "$ " not in block.text
            assert runs(block) or block.reason or shown_only or block.language in ("yaml", "text"), str(block)


def test_a_wrong_block_is_found(tmp_path):
    """The runner itself: what fails, what ends otherwise than shown, and what prints something else."""
    wrong = {
        "```python\nassert 1 == 2\n```": AssertionError,
        "```bash\nfalse\n```": "ends with 1",
        "```bash\nsmope info nowhere\n```": "ends with 2",
        "```\n$ echo 12 images\n12 pictures\n```": "prints no line like",
        "```\n$ smope --version\nerror: no\n```": "ends with 0",
    }
    for number, (text, message) in enumerate(wrong.items()):
        page, folder = tmp_path / f"{number}.md", tmp_path / str(number)
        page.write_text(f"# Page\n\n{text}\n")
        folder.mkdir()
        with pytest.raises(AssertionError, match=None if message is AssertionError else message):
            doc_blocks.run_page(page, folder)
    right = tmp_path / "right.md"
    right.write_text("```\n$ echo 12 images\n34 images\n```\n\n<!-- not run: hours -->\n```bash\nfalse\n```\n")
    (tmp_path / "right").mkdir()
    doc_blocks.run_page(right, tmp_path / "right")
