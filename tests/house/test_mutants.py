"""Every mutant of every file ends in one message with file and field, within 2 s and 200 MB, or works."""

import gc
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from mutant_doors import prepare
from mutant_plan import plan, sample
from mutant_trials import Outcome, judge, one_door, try_mutant
from mutant_world import build_world
from mutants import Mutant

FIXTURE = Path(__file__).parents[1] / "fixtures" / "checkpoints" / "v1" / "task-03"
IN_SHORT = ("state", "manifest", "statistics", "routing", "card", "info")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from /proc"
)


def told(mutant: Mutant, outcomes: list[Outcome]) -> list[str]:
    return [
        f"{mutant} | {one.door}: {one.verdict} ({one.seconds} s, {one.memory // 10**6} MB) {one.message[:300]}"
        for one in outcomes
        if one.broke
    ]


def test_a_sample_of_mutants_ends_in_a_message(tmp_path):
    """Of a checkpoint without its backbone, through the doors that need none."""
    shutil.copytree(FIXTURE, tmp_path / "world" / "v1" / FIXTURE.name)
    (tmp_path / "world" / "scratch").mkdir()
    broke, verdicts = [], Counter()
    mutants = list(sample(tmp_path / "world", f"v1/{FIXTURE.name}", random.Random(1)))
    gc.collect()
    gc.freeze()  # what a child does not look at, it does not copy
    for number, mutant in enumerate(mutants):
        outcomes = try_mutant(tmp_path / "world", mutant, number, only=IN_SHORT)
        verdicts.update(outcome.verdict for outcome in outcomes)
        broke += told(mutant, outcomes)
    assert not broke, "\n".join(broke)
    assert len(mutants) >= 30 and verdicts["refused"] > 30 and verdicts["works"] > 30


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("half", [0, 1])
def test_every_mutant_ends_in_a_message(tmp_path_factory, half):
    """Of runs, checkpoints and rivals': the library's doors, and in turn the commands, the page, a push."""
    root = build_world(tmp_path_factory.mktemp("mutants") / "world")
    prepare(root)
    mutants = list(plan(root, random.Random(0)))
    gc.collect()
    gc.freeze()  # what a child does not look at, it does not copy
    broke, verdicts, of_doors = [], Counter(), Counter()
    for number, mutant in list(enumerate(mutants))[half::2]:
        outcomes = try_mutant(root, mutant, number, most=1)
        verdicts.update(outcome.verdict for outcome in outcomes)
        of_doors.update(outcome.door for outcome in outcomes)
        broke += told(mutant, outcomes)
    print(f"Half of {len(mutants)} mutants, {sum(of_doors.values())} trials: {dict(verdicts)}; {dict(of_doors)}")
    assert not broke, f"{len(broke)} trials:\n" + "\n".join(broke[:100])
    assert len(mutants) >= 600 and verdicts["refused"] > 300


# ---------------------------------------------------------------------- the harness itself


def raising(error: BaseException):
    def door():
        raise error

    return door


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ValueError("/a/config.json: top_k is 5"), "refused"), (OSError("/a/config.json: top_k"), "refused"),
        (KeyError("top_k"), "raised KeyError"), (TypeError("config.json top_k"), "raised TypeError"),
        (MemoryError(), "raised MemoryError"), (RecursionError(), "raised RecursionError"),
        (ValueError("top_k is 5"), "no file"), (ValueError("config.json is wrong"), "no field"),
        (ValueError("config.json: top_k " + "a" * 2000), "long message"),
        (ValueError("config.json: top_k is \x1b[31m"), "raw text"),
        (ValueError("config.json: top_k (not expected)"), "not expected"),
    ],
)  # fmt: skip
def test_a_verdict_is_what_the_message_deserves(error, verdict):
    mutant = Mutant("smope/task-02/config.json", "one", lambda path: None, ("top_k",))
    assert one_door(raising(error), mutant)[0] == verdict
    if isinstance(error, ValueError):
        assert judge(str(error), mutant) == verdict


def test_what_hangs_or_takes_memory_or_is_slow_is_found(tmp_path, monkeypatch):
    import mutant_trials

    def doors(root, file):
        yield "large", large
        yield "slow", slow
        yield "fills memory", lambda: bytearray(2**42)
        yield "hangs", hangs
        yield "never", lambda: None

    def refuse():
        raise ValueError("file.json")

    def large():
        held = bytearray(b"1") * 300_000_000
        refuse() if held else None

    def slow():
        monkeypatch.setattr(mutant_trials, "SECONDS", 0.0)
        sum(range(10**6))
        refuse()

    def hangs():
        monkeypatch.setattr(mutant_trials.time, "sleep", None)
        mutant_trials.signal.alarm(1)
        mutant_trials.signal.pause()

    (tmp_path / "world" / "scratch").mkdir(parents=True)
    (tmp_path / "world" / "file.json").write_text("{}")
    monkeypatch.setattr(mutant_trials, "doors", doors)
    mutant = Mutant("file.json", "one", lambda path: path.write_text("[]"))
    outcomes = try_mutant(tmp_path / "world", mutant, 0)
    assert [(one.door, one.verdict) for one in outcomes] == [
        ("large", "large"), ("slow", "slow"), ("fills memory", "raised MemoryError"), ("hangs", "killed by status 14"),
    ]  # fmt: skip
    assert (tmp_path / "world" / "file.json").read_text() == "{}"
