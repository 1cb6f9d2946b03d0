"""Starts two runs on one folder, again and again: the second of each pair at a random moment of the first.

    python tests/pair_driver.py FOLDER NUMBER_OF_PAIRS SEED

Torch is imported once: every run is a fork. Prints the counts as JSON.
"""

import json
import os
import random
import re
import shutil
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from kill_driver import SETTINGS, be_ready_to_fork
from runs import NUM_TASKS, assert_same_run, save_backbone, tiny_stream, tiny_trainer

from smope_hf.training.callbacks import ContinualCallback


class UntilTheOtherHasEnded(ContinualCallback):
    """Holds a run behind its last task until a file is there: it could be over before the other has begun.

    Args:
        file: which the parent makes when the other run has ended.
    """

    def __init__(self, file: Path):
        self.file = file

    def on_task_end(self, trainer, task):
        until = time.monotonic() + 120
        while task.index == NUM_TASKS - 1 and not self.file.exists() and time.monotonic() < until:
            time.sleep(0.01)


def start(log: Path, run) -> int:
    """The process of a run that begins now; it ends with 1 where the run fails."""
    pid = os.fork()
    if pid == 0:
        try:
            with open(log, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            run()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return pid


def ended() -> tuple[int, int]:
    """Process and exit status of the run that ends next."""
    pid, status = os.wait()
    return pid, os.waitstatus_to_exitcode(status)


def main(folder: Path, pairs: int, seed: int) -> dict:
    be_ready_to_fork()
    draw, told, found, alone = random.Random(seed), Counter(), folder / "run", folder / "alone"
    backbone, stream = save_backbone(folder / "backbone"), tiny_stream()

    def learn(output, resume):
        settings = {**SETTINGS, "resume": resume}
        tiny_trainer(backbone, output, stream, [UntilTheOtherHasEnded(over)], **settings).train()

    over = folder / "over"
    over.touch()
    begin = time.monotonic()
    start(folder / "alone.log", lambda: learn(alone, False))
    assert ended()[1] == 0, (folder / "alone.log").read_text()[-4000:]
    duration = time.monotonic() - begin
    for pair in range(pairs):
        over.unlink()
        first = start(folder / "first.log", lambda: learn(found, False))
        time.sleep(draw.uniform(0, 0.5 * duration) if pair % 4 else 0)
        resume = draw.random() < 0.5
        second = start(folder / "second.log", lambda resume=resume: learn(found, resume))
        loser, refused = ended()
        over.touch()
        winner, done = ended()
        logs = {first: folder / "first.log", second: folder / "second.log"}
        text = logs[loser].read_text()
        assert (refused, done) == (1, 0), text[-3000:] + logs[winner].read_text()[-3000:]
        last = text.strip().splitlines()[-1]
        assert re.search(
            rf"FolderHeldError: {re.escape(str(found))} is held by another run: process {winner} on ", last
        )
        told["first" if winner == first else "second"] += 1
        assert_same_run(alone, found)
        shutil.rmtree(found)
    return {"pairs": pairs, "held_by": told}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
