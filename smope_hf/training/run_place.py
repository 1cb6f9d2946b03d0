"""A run's folder before its work: taken, tried, and free of what would stand in the way of the run's own files."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data.image_check import SKIPPED_FILE
from ..routing.record import PATTERNS_FILE
from ..routing.training_record import TRAINING_FILE
from ..sharing.checkpoint import STATE_FILE, saved_tasks, task_index
from ..storage.files import OF_SAFETENSORS, TEMPORARY
from ..storage.output_check import check_replaceable, check_text, named_errors, try_folder
from ..storage.state_folder import INDEX_FILE, STATE_FOLDER, has_state
from .other_alignments import FOLDER as OTHER_ALIGNMENTS
from .process_group import on_main_process
from .result_files import PLOTS_FOLDER, RESULT_FILES
from .routing_recorder import SELECTIONS_FOLDER
from .run_lock import FolderHold, hold_folder

FILES = (*RESULT_FILES, SKIPPED_FILE, PATTERNS_FILE, TRAINING_FILE)
FOLDERS = (PLOTS_FOLDER, STATE_FOLDER, OTHER_ALIGNMENTS, SELECTIONS_FOLDER)
TRACKER_FOLDER = "smope"  # of tensorboard: the project that the trainer names
_TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")


def take_folder(
    output_dir: str | os.PathLike, image_cache_dir: str | os.PathLike | None = None, report_to: str = "none"
) -> FolderHold | None:
    """Hold a run's folder and try all places that the run writes to; called on every process of it.

    Args:
        output_dir: of the run.
        image_cache_dir: for decoded images; None for `output_dir`.
        report_to: tracker, which has a folder too.

    Returns:
        The hold, to be released, on the main process; None on the others.

    Raises:
        FolderHeldError: when another run has the folder; on every process.
        ValueError: for a path that UTF-8 cannot write.
        OSError: for a place that cannot be written, or where something else is; the message names it and what to do.
    """
    return on_main_process(lambda: _take(output_dir, image_cache_dir, report_to))


@contextmanager
def folder_taken(
    output_dir: str | os.PathLike, image_cache_dir: str | os.PathLike | None = None, report_to: str = "none"
) -> Iterator[None]:
    """`take_folder` for a block, in which a trainer is made that takes a hold of its own."""
    hold = take_folder(output_dir, image_cache_dir, report_to)
    try:
        yield
    finally:
        if hold is not None:
            hold.release()


def _take(output_dir, image_cache_dir, report_to) -> FolderHold:
    check_text(output_dir, "output_dir")
    with named_errors(output_dir, "output_dir"):
        hold = hold_folder(output_dir)
    try:
        try_folder(output_dir, "output_dir")
        check_names(Path(output_dir), report_to)
        if image_cache_dir is not None:
            try_folder(image_cache_dir, "image_cache_dir")
        if report_to == "trackio":
            from trackio.utils import TRACKIO_DIR

            try_folder(TRACKIO_DIR, "the folder of trackio (TRACKIO_DIR)")
    except BaseException:
        hold.release()
        raise
    return hold


def check_begun(output_dir: str | os.PathLike, resume: bool, num_known: int = 0):
    """Refuse a folder with a run in it that is not to go on.

    Args:
        output_dir: of the run.
        resume: whether it is to go on.
        num_known: tasks that the model knows already; theirs are no tasks of the run.

    Raises:
        FileExistsError: saying what the folder holds.
    """
    saved = saved_tasks(output_dir, num_known)
    if (saved or has_state(output_dir)) and not resume:
        training = f"a task in training, in {Path(output_dir) / STATE_FOLDER}"
        what = f"learned tasks, up to {saved[-1].name}" if saved else training
        raise FileExistsError(
            f"{output_dir} already holds {what}. Set resume (on a command line --resume) to go on from there, or give "
            "another output_dir."
        )


def check_names(folder: Path, report_to: str = "none"):
    """Refuse what lies where a run puts its files and folders, and is none of a run's.

    Raises:
        FileExistsError: naming the first one.
    """
    for name in FILES:
        check_replaceable(folder / name, name)
    for name in (*FOLDERS, *([TRACKER_FOLDER] if report_to == "tensorboard" else [])):
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise FileExistsError(f"{folder / name} is no folder, and a run puts one there. {_ADVICE}")
    _check_tasks(folder)
    state = folder / STATE_FOLDER
    for name in sorted(os.listdir(state)) if state.is_dir() else ():
        known = name == INDEX_FILE or any(kind.fullmatch(name) for kind in (_TENSORS, TEMPORARY, OF_SAFETENSORS))
        if not known or not (state / name).is_file():
            raise FileExistsError(f"{state / name} is none of a run's files, and a run empties {state}. {_ADVICE}")


def _check_tasks(folder: Path):
    """Refuse what lies where one of the next tasks is to be saved."""
    # where small and capital letters are the same, Task-01 is in the way too
    names = {name.lower() for name in os.listdir(folder) if task_index(name.lower()) is not None}
    there = {task_index(name): folder / name for name in names if os.path.lexists(folder / name)}
    whole = {index for index, task in there.items() if (task / STATE_FILE).is_file()}
    for index, task in sorted(there.items()):
        if index > max(whole, default=-1):
            what = f"holds no {STATE_FILE}" if task.is_dir() else "is no folder"
            raise FileExistsError(f"{task} {what}, so it is no saved task, and a run puts one there. {_ADVICE}")


_ADVICE = "Move it away, or give another output_dir."
