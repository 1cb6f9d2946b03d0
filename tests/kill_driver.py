"""Kills tiny runs at random moments, again and again, and compares what they end with to runs that nobody touched.

    python tests/kill_driver.py FOLDER NUMBER_OF_KILLS SEED [STAGE]

Torch is imported once: every attempt is a fork. Half of the kills come at a random time of an attempt, the others a
random time after a stage has begun, so that short stages are met as well. With a STAGE, such as
saving, all come in it or right behind it. What is saved is read after each kill. Prints the counts as JSON.

With "push" as STAGE the runs record their routing and push to the Hub of HF_ENDPOINT; records and repositories are
compared as well, and the repository is looked at after each kill.
"""

import contextlib
import functools
import gc
import json
import mmap
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
import urllib.request
from collections import Counter
from pathlib import Path

import torch
from runs import NUM_TASKS, assert_same_run, read, save_backbone, tiny_args, tiny_stream, tiny_trainer
from tqdm import tqdm
from transformers import ViTImageProcessorPil

import smope_hf.reports.results
import smope_hf.sharing.hub
import smope_hf.training.mid_task
from smope_hf import ContinualTrainer
from smope_hf.models.modeling_prompted import PromptedForImageClassification
from smope_hf.sharing.checkpoint import load_statistics, saved_tasks
from smope_hf.sharing.source import find_checkpoint
from smope_hf.training.phase import TrainingPhase
from smope_hf.training.routing_recorder import RoutingRecorder
from smope_hf.training.training_recorder import TrainingRoutingRecorder

STAGES = ("dense", "sparse", "statistics", "alignment", "evaluation", "saving", "state", "finish")
METHODS = ("smope", "ovor", "finetune")
PUSH = "push"
OF_PUSH = ("pushing", "recording")  # stages that such a run has besides
RECORDS = ("routing_patterns.json", "routing_training.json", "routing_selections/*")
SETTINGS = {"checkpoint_every": 2, "epochs": 3, "dense_epochs": 2, "resume": True}


class Stage:
    """Which stage a forked run is in, in memory that its parent reads when it is gone."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 32)
        self.target: str | None = None  # where the run is to wait for its parent

    def __str__(self) -> str:
        return self.memory[:].rstrip(b"\0 ").decode()

    @contextlib.contextmanager
    def be(self, name: str):
        before = str(self)
        self.set(name)
        yield
        self.set(before)

    def set(self, name: str):
        self.memory[:] = name.ljust(32).encode()
        if name == self.target:
            self.target = None
            os.kill(os.getpid(), signal.SIGSTOP)


def watch(stage: Stage):
    """Have a run in this process tell its stages."""

    def told(function, name):
        def run(*arguments, **options):
            with stage.be(name(*arguments) if callable(name) else name):
                return function(*arguments, **options)

        return run

    timed = ContinualTrainer._timed

    @contextlib.contextmanager
    def told_timed(self, seconds, name):
        with stage.be(name), timed(self, seconds, name):
            yield

    ContinualTrainer._timed = told_timed
    ContinualTrainer._finish = told(ContinualTrainer._finish, "finish")
    TrainingPhase.run = told(TrainingPhase.run, lambda phase, images: phase.name)
    smope_hf.training.mid_task.write_state = told(smope_hf.training.mid_task.write_state, "state")
    RoutingRecorder._record_what_is_missing = told(RoutingRecorder._record_what_is_missing, "recording")


def learn(method: str, backbone: str, stream, folder: Path, repository: str):
    if method == PUSH:
        hub = {"push_to_hub": True, "hub_model_id": repository, "hub_include_backbone": True}
        records = [RoutingRecorder(), TrainingRoutingRecorder()]
        tiny_trainer(backbone, folder, stream, records, **SETTINGS, **hub).train()
        return
    if method == "smope":
        tiny_trainer(backbone, folder, stream=stream, **SETTINGS).train()
        return
    torch.manual_seed(0)
    model = PromptedForImageClassification.from_backbone(backbone, method=method)
    processor = ViTImageProcessorPil.from_pretrained(backbone)
    ContinualTrainer(model, tiny_args(folder, **SETTINGS), stream, processor).train()


def attempt(stage: Stage, log: Path, run, target: str | None = None, delay: float | None = None) -> bool:
    """Whether a forked run ended by itself, before it was killed some time after its start, or that of a stage."""
    stage.set("start")
    stage.target = target
    pid = os.fork()
    if pid == 0:
        try:
            with open(log, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if target is not None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        os.kill(pid, signal.SIGCONT)
    if delay is not None:
        end = time.monotonic() + delay
        while time.monotonic() < end and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(min(0.001, delay))
        os.kill(pid, signal.SIGKILL)  # one that is over stays a zombie until it is waited for
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, log.read_text()[-4000:]
    return True


def on_the_hub(repository: str) -> dict:
    """What the Hub has of a repository: each tag a commit of its own, in order; no commit of a task twice."""
    with urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/_state/{repository}") as answer:
        state = json.load(answer)
    learned = [commit for commit in state["commits"] if commit["title"].startswith("Learn task ")]
    assert [commit["title"].split(":")[0] for commit in learned] == [
        f"Learn task {n + 1}" for n in range(len(learned))
    ]
    tagged = {f"task-{n + 1:02d}": commit["oid"] for n, commit in enumerate(learned)}
    assert state["tags"].items() <= tagged.items() and len(learned) - len(state["tags"]) in (0, 1)
    return {**state, "learned": learned}


def assert_same_records_and_repository(expected: Path, found: Path, repositories: tuple[str, str]):
    """The records of both kinds to the byte; in the repositories the same files but for what tells of one alone."""
    for pattern in RECORDS:
        files = [{path.name: path.read_bytes() for path in folder.glob(pattern)} for folder in (expected, found)]
        assert files[0] and files[0] == files[1], pattern
    told = ("README.md", "trainer_state.json", "checksums.json")  # the name of the repository, seconds, hashes of both
    both = []
    for repository in repositories:
        state = on_the_hub(repository)
        assert len(state["tags"]) == len(state["learned"]) == NUM_TASKS == len(state["commits"]) - 1  # the first: made
        both.append([{k: v for k, v in commit["files"].items() if k not in told} for commit in state["learned"]])
    assert both[0] == both[1]


def be_ready_to_fork():
    """One thread, and runs that can be killed at any moment and draw nothing."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared by all forks, and one killed with it would hold up the others
    for name in ("plot_accuracy_matrix", "plot_average_accuracy"):
        vars(smope_hf.reports.results)[name] = lambda *_, **__: None  # most of the time of so small a run
    gc.collect()
    gc.freeze()  # a run collects garbage behind every phase; what was imported need not be looked through each time


def main(folder: Path, kills: int, seed: int, only: str | None = None) -> dict:
    be_ready_to_fork()
    smope_hf.sharing.hub.RETRY_DELAYS = (0.05, 0.1, 0.2)
    draw, stage, hit, aimed, runs = random.Random(seed), Stage(), Counter(), Counter(), 0
    methods, stages = METHODS, STAGES
    if only == PUSH:
        methods, stages, only = (PUSH,), (*STAGES, *OF_PUSH), None
    watch(stage)
    backbone, stream, durations = save_backbone(folder / "backbone"), tiny_stream(), {}
    while sum(hit.values()) < kills or len(aimed) < (1 if only else len(stages)):
        method = methods[runs % len(methods)]
        repositories = f"alice/{method}", f"alice/run-{runs}"
        expected, found = folder / method, folder / "run"
        if method not in durations:
            start = time.monotonic()
            attempt(stage, folder / "log", lambda: learn(method, backbone, stream, expected, repositories[0]))
            durations[method] = time.monotonic() - start
        whole = False
        while not whole:
            ahead = stages[1:] if list(found.glob("task-*")) else stages  # the first task alone has a dense phase
            target = min(ahead, key=lambda name: aimed[name]) if draw.random() < 0.5 else None
            delay = draw.expovariate(1 / 0.004) if target else draw.uniform(0, 0.6 * durations[method])
            if only:
                seconds = [task[only] for task in read(expected, "metrics.json")["seconds_by_task"]]
                target, delay = only, draw.uniform(0, 1.2 * max(seconds))
            run = functools.partial(learn, method, backbone, stream, found, repositories[1])
            whole = attempt(stage, folder / "log", run, target, delay)
            if not whole:
                hit[str(stage)] += 1
                aimed.update([target] if target else [])
                for task in saved_tasks(found):
                    assert find_checkpoint(task).load_model().config.num_labels == len(load_statistics(task)[0].count)
                if method == PUSH and list(found.glob("task-*")):
                    on_the_hub(repositories[1])
        assert_same_run(expected, found)
        if method == PUSH:
            assert_same_records_and_repository(expected, found, repositories)
        shutil.rmtree(found)
        runs += 1
    return {"kills": sum(hit.values()), "runs": runs, "hit": dict(hit.most_common()), "aimed": dict(aimed)}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])))
