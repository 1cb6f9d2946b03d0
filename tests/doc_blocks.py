"""The code blocks of a page, and running them in order as a reader would type them.

A block that is not run has a comment in front of it that names why, `<!-- not run: network -->`; the words that may
stand there are in `REASONS`. So that a page takes seconds, `smope train` gets `TINY` behind it, and the digits that
come along are fewer: `FEWER` of each class; all else runs as it stands. As a program, for pages whose commands need a
Hub of their own: python tests/doc_blocks.py PAGE FOLDER
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from smope_hf.data import embedded as embedded_data

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"(?:^ *<!-- not run: (.+?) -->\n+)?^( *)```(\w*)[^\n]*\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
REASONS = {
    "network": "asks the Hub or a package registry for something",
    "hours": "takes minutes to hours",
    "devices": "needs several processes, a GPU or a browser",
    "files": "works on files that only the reader has",
}
WHOLE_PAGES = {"results": "hours", "performance": "hours", "scaling": "hours"}  # each with the pages in its folder
TINY = ["--epochs", "1", "--no-report"]
FEWER = {"train": 20, "test": 15}
CHECKOUT = ("examples", "tests", "model_cards", "docs", "smope_hf")  # what commands may name, as links in the folder


@dataclass
class Block:
    """A block of code in a page; `line` is the first of its text, `reason` why it is not run."""

    page: Path
    language: str
    text: str
    line: int = 1
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page.name}: {self.text[:40]!r}"


def reason_of(page: Path) -> str | None:
    """Why no block of a page is run, where that holds for all of them."""
    return WHOLE_PAGES.get(page.stem) or WHOLE_PAGES.get(page.parent.name)


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in its order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start(4)) + 1
        reason = match[1] or reason_of(page)
        found.append(Block(page, match[3], textwrap.dedent(match[4]), line, reason))
    return found


def is_dialogue(block: Block) -> bool:
    """Whether a block shows commands behind a prompt, with what they print."""
    return block.language == "" and block.text.startswith("$ ")


def runs(block: Block) -> bool:
    """Whether there is something to run in a block, and no reason against it."""
    return block.reason is None and (block.language in ("python", "bash") or is_dialogue(block))


def dialogue(block: Block) -> list[tuple[str, str]]:
    """Each command of a dialogue, and what it is said to print."""
    parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n?", block.text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def run_page(page: Path, folder: Path):
    """Run a page's blocks in a folder that looks like a checkout; the first failure names its line."""
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    space = {"__name__": "__main__"}
    few = fewer_digits()
    patches = mock.patch.object(embedded_data, "digits", few), mock.patch("smope_hf.data.reading.digits", few)
    with contextlib.chdir(folder), patches[0], patches[1]:
        for block in filter(runs, blocks_of(page)):
            where = f"{page.name}, line {block.line}"
            if block.language == "python":
                exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), space)
            elif block.language == "bash":
                for command in commands(block.text):
                    run_command(command, where)
            else:
                for command, shown in dialogue(block):
                    check_output(shown, run_command(command, where, fails="error: " in shown), f"{where}: {command}")


def fewer_digits():
    """What stands in the place of `digits`: the same data set with the first images of each class."""
    rows = embedded_data.digits()
    for split, most in FEWER.items():
        labels = np.asarray(rows[split]["label"])
        kept = np.concatenate([np.flatnonzero(labels == digit)[:most] for digit in range(10)])
        rows[split] = rows[split].select(np.sort(kept))
    return lambda: rows


def commands(text: str) -> list[str]:
    """A bash block in parts: each command of smope, and what stands between them."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    parts = [[lines[0]]]
    for before, line in zip(lines, lines[1:]):
        if before.startswith("smope ") or line.startswith("smope "):
            parts.append([])
        parts[-1].append(line)
    return ["\n".join(part) for part in parts if any(line.strip() for line in part)]


def run_command(command: str, where: str, fails: bool = False) -> str:
    """Run one command, smope's in this process, and give what it prints."""
    command = re.sub(r"\\\n\s*", "", command)
    name, *arguments = shlex.split(command, comments=True) or [""]
    if name == "smope":
        from typer.testing import CliRunner

        from smope_hf.cli.program import app

        tiny = TINY if arguments[0] == "train" and not fails else []
        done = CliRunner().invoke(app, arguments + tiny, env={"COLUMNS": "100"})
        code, output = done.exit_code, done.output + (repr(done.exception) if done.exit_code == 1 else "")
    else:
        if "examples/train.py" in command:
            command = " ".join([command, *TINY[:2]])
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        done = subprocess.run(["bash", "-ec", command], env=environment, capture_output=True, text=True, timeout=200)
        code, output = done.returncode, done.stdout + done.stderr
    assert code == (2 if fails else 0), f"{where}: {command}\nends with {code}:\n{output[-3000:]}"
    return output


def check_output(shown: str, printed: str, where: str):
    """Every line shown is printed, whatever its numbers are; equal hashes stay equal."""
    everything = " ".join(shape(printed))
    missing = [line for line in shape(shown) if line not in everything]
    assert not missing, f"{where}\nprints no line like {missing}, but:\n{printed[-3000:]}"


def shape(text: str) -> list[str]:
    """Lines without numbers, rules and widths; each hash as its place among the different ones."""
    hashes = list(dict.fromkeys(re.findall(r"\b[0-9a-f]{64}\b", text)))
    text = re.sub(r"\b[0-9a-f]{64}\b", lambda match: f"hash {'abcdefgh'[hashes.index(match[0])]}", text)
    text = re.sub(r"\d[\d,.]*(?:e-\d+)?", "#", text)
    text = re.sub(r"-{2,}(?!\w)|(?<![\w#])-(?=#)", " ", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    run_page(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
