"""`examples/benchmark_speed.py`: every figure is there, and those that no clock decides are what they must be."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = [
    "inference", "training", "experts-inference", "experts-training", "top-k-inference", "top-k-training",
    "tasks-inference", "tasks-parameters", "bf16", "memory", "alignment", "begin-task", "end-of-task", "outside",
    "import", "help",
]  # fmt: skip


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    script = str(EXAMPLES / "benchmark_speed.py")
    options = ["--quick", "--batch_size", "4", "--repetitions", "1", "--throughput", "--output_dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "speed.json").read_text()), (folder / "speed.md").read_text(), done.stdout


@pytest.mark.slow
def test_every_row_is_measured_saved_and_printed(quick):
    content, table, printed = quick
    assert [row["name"] for row in content["rows"]] == ROWS
    for row in content["rows"]:
        assert isinstance(row["value"], float) and f"| {row['what']} | {row['value']:.3f}" in table
        assert row["met"] == (row["value"] >= row["limit"] if row["at_least"] else row["value"] <= row["limit"])
    assert list(content["images_per_second"]) == [
        "eager", "eager, bf16 autocast", "torch.compile", "ONNX, onnxruntime",
    ]  # fmt: skip
    assert table in printed and content["threads"] == 1 and content["device"] in ("cpu", "cuda")


@pytest.mark.slow
def test_what_no_clock_decides(quick):
    """The number of tasks costs no parameter, and the end of a task one pass over its images."""
    rows = {row["name"]: row for row in quick[0]["rows"]}
    assert rows["tasks-parameters"]["value"] == rows["end-of-task"]["value"] == 1


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
def test_no_page_is_given_back_with_the_settings_of_the_page():
    """A tenth of the faults with glibc's initial thresholds held: a system short of memory may take back a page.

    Left to itself glibc raises them as it goes, and what it arrives at is another one from process to process.
    """
    page = (EXAMPLES.parent / "docs" / "performance" / "details.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("export MALLOC_"))
    settings = dict(word.split("=") for word in line.split()[1:])
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / "speed_allocator.py"), "--batch_size", "2", "--repetitions", "5"]

    def faults(environment):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=True)
        rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith(("| bare", "| with"))]
        assert len(rows) == 2
        return [int(row[3]) for row in rows]

    initial = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
    assert max(faults(environment | settings)) < min(faults(environment | initial)) / 10


def test_peak_memory_is_that_of_what_is_there_at_the_same_time():
    spec = importlib.util.spec_from_file_location("speed_memory", EXAMPLES / "speed_memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run():
        first = torch.ones(2**20)  # 4 MiB
        second = torch.ones(2**19)
        del first
        third = torch.ones(2**18)
        return second, third

    assert module.peak_bytes(run, torch.device("cpu")) == 6 * 2**20
