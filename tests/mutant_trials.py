"""One trial: a mutant read through its doors, in a process of its own with a limit on memory and time."""

import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mutant_doors import LONG_DOORS, REFUSALS, Refused, doors
from mutant_world import rehash
from mutants import Mutant

SECONDS, MEMORY = 2.0, 200e6  # promised for whatever is refused
HARD_SECONDS, HARD_MEMORY = 30, 3 * 2**30
LONGEST_MESSAGE = 2000
NO_FILES = ("a fifo", "a folder", "socket", "link to itself")
DEEP = ("nested", "deep", "beyond", "many lists", "many keys", "many", "twice")


@dataclass
class Outcome:
    """What one door did with a mutant.

    Args:
        door: its name.
        verdict: "works", "refused", or how it broke.
        message: of the error.
        seconds: of the processor.
        memory: bytes above those before.
    """

    door: str
    verdict: str
    message: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def broke(self) -> bool:
        return self.verdict not in ("works", "refused")


def try_mutant(root: Path, mutant: Mutant, number: int, most: int = 99, only=None) -> list[Outcome]:
    """Write the mutant, try the doors that read its file in one forked process, and put the good file back.

    Args:
        root: the world.
        mutant: one of its files, broken.
        number: of the mutant; of the doors that take long it chooses which.
        most: so many of the doors that take long.
        only: names of the doors to try. Default: all.
    """
    file = root / mutant.file
    copied = root / mutant.file.partition("/")[0]
    kept = root.parent / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    (shutil.copytree if copied.is_dir() else shutil.copy2)(copied, kept)
    try:
        mutant.write(file)
        rehash(file.parent, file.name)
        before = listing(root)
        outcomes = in_child(lambda: run_doors(root, mutant, number, most, only))
        new = listing(root) - before
        if new and not mutant.file.startswith("stopped"):
            outcomes.append(Outcome("any", "wrote", str(sorted(new)[:3])))
        return outcomes
    finally:
        shutil.rmtree(copied) if copied.is_dir() else copied.unlink()
        shutil.move(kept, copied)
        shutil.rmtree(root / "scratch")
        (root / "scratch").mkdir()


def listing(folder: Path) -> set[str]:
    return {
        os.path.join(place, name) for place, _, names in os.walk(folder) for name in names if "scratch" not in place
    }


def in_child(act) -> list[Outcome]:
    """What `act` yields, from a forked process that cannot take more than the hard limits."""
    readable, writable = os.pipe()
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(readable)
        _bound()
        with os.fdopen(writable, "w") as out:
            try:
                for outcome in act():
                    out.write(json.dumps(vars(outcome)) + "\n")
                    out.flush()
            finally:
                out.flush()
                os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as lines:
        outcomes = [Outcome(**json.loads(line)) for line in lines]
    _, status = os.waitpid(child, 0)
    started = [outcome for outcome in outcomes if outcome.verdict == "began"]
    ended = [outcome for outcome in outcomes if outcome.verdict != "began"]
    if len(started) > len(ended):
        ended.append(Outcome(started[-1].door, f"killed by status {status}"))
    return ended


def _bound():
    """Silence, and hard limits."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HARD_MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever the tests' own handler does
    gc.disable()


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def run_doors(root: Path, mutant: Mutant, number: int, most: int, only=None):
    Figure.savefig = lambda figure, path, **options: Path(path).write_bytes(b"-")  # seconds each, and reads nothing
    FigureCanvasAgg.draw = lambda canvas: None
    every = [pair for pair in doors(root, mutant.file) if only is None or pair[0] in only]
    every = [pair for pair in every if _is_ours(pair[0], mutant)]
    short = [pair for pair in every if pair[0] not in LONG_DOORS]
    long = [pair for pair in every if pair[0] in LONG_DOORS]
    turn = number * most % max(1, len(long))
    for name, door in short + (long + long)[turn : turn + min(most, len(long))]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        yield Outcome(name, "began")
        signal.alarm(HARD_SECONDS)
        before, start = memory("VmRSS"), time.process_time()
        verdict, message = one_door(door, mutant)
        seconds, grown = time.process_time() - start, memory("VmHWM") - before
        signal.alarm(0)
        gc.collect()
        if verdict == "refused" and seconds > SECONDS:
            verdict = "slow"
        if verdict == "refused" and grown > MEMORY:
            verdict = "large"
        yield Outcome(name, verdict, message[:3000], round(seconds, 3), grown)


def _is_ours(name: str, mutant: Mutant) -> bool:
    """Whether our code is the first to read the file: the Auto classes parse a config.json by themselves before."""
    return name != "auto" or not mutant.file.endswith("config.json") or bool(mutant.fields) and mutant.what not in DEEP


def one_door(door, mutant: Mutant) -> tuple[str, str]:
    try:
        door()
    except (*REFUSALS, Refused) as error:
        message = str(error)
        where = type(error).__name__
        return judge(message, mutant), f"{where}: {message}"
    except BaseException as error:
        lines = traceback.format_exc().splitlines()
        return f"raised {type(error).__name__}", f"{str(error)[:300]} | {' | '.join(lines[-7:])[:1200]}"
    return "works", ""


AS_A_WHOLE = (  # what is compared as a whole, and cannot name the one field that differs
    "with fingerprint ",  # of all weights of a base model
    "backbone_config of config.json",  # the shapes of a backbone's tensors: it names one that has no place
    "were not recorded",  # the steps of a task, where state.json says that a recorder had none
)


def judge(message: str, mutant: Mutant) -> str:
    """Whether a message tells what is wrong: in a few lines, with the file, and with the field where one is wrong."""
    if "not expected" in message:
        return "not expected"
    if len(message) > LONGEST_MESSAGE:
        return "long message"
    missing = (
        [str(Path(mutant.file).parent)] if mutant.what in NO_FILES else []
    )  # the folder lacks it, as for exists()
    if not any(name in message for name in file_names(mutant.file) + missing):
        return "no file"
    as_a_whole = any(words in message for words in AS_A_WHOLE)
    if mutant.fields and not as_a_whole and not any(field in message for field in mutant.fields):
        return "no field"
    if not message.isprintable() and any(not (c.isprintable() or c == "\n") for c in message):
        return "raw text"
    return "refused"


def file_names(file: str) -> list[str]:
    """The file itself, and the config that its content is compared with."""
    name = Path(file).name
    others = [f"/{Path(file).parent.name}'"] if file.startswith("base/") else ["Config.", "state", "recipe in"]
    return [name, *others] if name == "config.json" else [name, "config.json", *others]
