"""Going on from a checkpoint: a trainer for more classes, out of what the checkpoint carries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..base.home import expanded
from ..data.continued_stream import ContinuedStream
from ..data.split import TaskSplit
from ..data.tasks import TaskStream
from ..models.image_processors import load_image_processor
from ..settings.class_names import one_form
from ..settings.recipe_guard import arguments_to_go_on
from ..settings.training_args import CLOSED_FORMS, ContinualTrainingArguments, check_alignment
from ..sharing.checkpoint import (
    MANIFEST_FILE,
    STATISTICS_FILE,
    check_own_run,
    load_manifest,
    load_state,
    load_statistics,
    missing_to_go_on,
    statistics_hash,
    task_folder,
)
from ..sharing.source import CheckpointSource, find_checkpoint
from .callbacks import ContinualCallback
from .run_place import check_begun
from .run_state import RunState


def continue_from(
    trainer_class: type,
    checkpoint: str | Path,
    stream: TaskStream,
    *,
    output_dir: str | Path,
    revision: str | None = None,
    backbone: str | PreTrainedModel | None = None,
    old_tests: Sequence[TaskSplit | None] | None = None,
    callbacks: Sequence[ContinualCallback] = (),
    token: str | None = None,
    **settings: Any,
):
    """A trainer that teaches a saved model more classes, with the statistics, routing and recipe of its checkpoint.

    The result equals, bit for bit, what the run that made the checkpoint would have learned from the same images next,
    under the versions that made it. Where others are installed, `train()` names them in a warning.

    Args:
        trainer_class: [`ContinualTrainer`].
        checkpoint: Hub id, a task's folder, or a run's folder, whose last task is taken; see `checkpoint_to_continue`.
        stream: the new classes only, as tasks of their own.
        output_dir: folder for the new tasks; it may be the run's own.
        revision: branch, tag (such as "task-03") or commit on the Hub.
        backbone: where the base model is, when it is not where the checkpoint says.
        old_tests: for each learned task its test images, or None; see `smope_hf.data.known_tasks.load_known_tests`.
        callbacks: told what happens.
        token: for private repositories. Default: the one of `hf auth login` or HF_TOKEN.
        **settings: fields of [`ContinualTrainingArguments`] that are to differ from the checkpoint's recipe and its
            `eval_batch_size`, and those that no checkpoint decides (`smope_hf.settings.training_args.OWN`), such as
            `push_to_hub`. Of the recipe `compare_alignments` is left out, which needs a run from the first task. What
            takes time or memory is taken up to a limit (`smope_hf.settings.recipe_guard.MOST`). Give more here.
            Behind two tasks or more, an `alignment` that begins with the head's rows as trained ("none", "gaussian",
            "gaussian-full") cannot follow one in closed form ("lda", "ncm"); the reverse can.

    Raises:
        ValueError: for classes that the model knows, a setting that does not exist or is not allowed, or a checkpoint
            that cannot be gone on from.
        OSError: when the checkpoint or its base model is not found.
        FileExistsError: when the output folder holds tasks behind the checkpoint's already, or those of another run.
    """
    resume, output_dir, backbone = settings.get("resume", False), expanded(output_dir), expanded(backbone)
    source = checkpoint_to_continue(checkpoint, stream, output_dir, revision=revision, resume=resume, token=token)
    saved = load_state(source.folder)
    learned = load_manifest(source.folder)
    statistics, usage_history = load_statistics(source.folder)
    args = arguments_to_go_on(saved, source.folder, {**settings, "output_dir": str(output_dir)})
    continued = ContinuedStream(learned, stream, old_tests)
    image_processor = load_image_processor(source.folder)
    num_known, follows = len(learned["tasks"]), statistics_hash(source.folder)
    check_own_run(output_dir, num_known, follows)  # before a base model is loaded
    check_begun(output_dir, resume, num_known)
    model = source.load_model(backbone=backbone, **({"token": token} if token else {}))
    if "alignment" in settings:
        check_alignment(args.alignment, model.closed_form)
        if model.closed_form is None:
            _check_comparable(args.alignment, saved["recipe"], len(learned["tasks"]), source)
    _check_whole(source.folder, model.config.tasks, learned, statistics)
    state = RunState.from_saved(saved, statistics, usage_history)
    state.continued_from = {
        "name": None if source.commit is None else source.name,
        "commit": source.commit,
        "num_tasks": len(learned["tasks"]),
    }
    state.follows, state.logged_steps = follows, saved["logged_steps"]
    trainer = trainer_class(model, args, continued, image_processor, callbacks, state=state)
    source.check_unchanged()
    return trainer


def checkpoint_to_continue(
    checkpoint: str | Path,
    stream: TaskStream,
    output_dir: str | Path,
    *,
    revision: str | None = None,
    resume: bool = False,
    token: str | None = None,
) -> CheckpointSource:
    """The checkpoint that new tasks follow.

    A run's folder stands for its last task, but when an addition in that very folder is resumed, for the task that the
    addition began behind: tasks of the stream that it saved before it was stopped are no tasks to follow.

    Args:
        checkpoint: Hub id, a task's folder, or a run's folder.
        stream: the new tasks.
        output_dir: folder for the new tasks.
        revision: branch, tag or commit on the Hub, or a task of the run's folder.
        resume: whether an addition that was stopped is to go on.
        token: for private repositories.

    Raises:
        FileNotFoundError: when it lacks what training needs to go on, as a folder of `save_pretrained` alone does.
        OSError, ValueError: as `find_checkpoint` and `load_state`.
    """
    checkpoint, output_dir = expanded(checkpoint), expanded(output_dir)
    source = find_checkpoint(checkpoint, revision, token=token)
    if missing := missing_to_go_on((path.name for path in source.folder.iterdir()), f" in {source}"):
        raise FileNotFoundError(missing)
    own_folder = source.commit is None and Path(checkpoint).resolve() == Path(output_dir).resolve()
    if not resume or revision is not None or not own_folder:
        return source
    origin = load_state(source.folder).get("continued_from")
    if origin is None:
        return source
    added = [task["class_names"] for task in load_manifest(source.folder)["tasks"][origin["num_tasks"] :]]
    added = [[one_form(name) for name in names] for names in added]
    same = added == [list(task.class_names) for task in stream][: len(added)]
    before = task_folder(checkpoint, origin["num_tasks"] - 1)
    return find_checkpoint(before) if same and before.is_dir() else source


def _check_comparable(alignment: str, recipe: dict, num_tasks: int, source: CheckpointSource):
    """Refuse an alignment that leaves new rows as trained, or nearly so, beside old ones set in closed form."""
    before = recipe.get("alignment", ContinualTrainingArguments.alignment)
    if num_tasks > 1 and before in CLOSED_FORMS and alignment not in CLOSED_FORMS:  # the first task is never aligned
        raise ValueError(
            f"alignment = {alignment!r} is not allowed behind {source}, whose alignment was {before!r}: that set the "
            f"head's rows of the old classes in closed form, {alignment!r} takes those of the new ones from training, "
            "and the two cannot be compared: images of the new classes would be taken for old ones. Allowed: "
            f"{' or '.join(map(repr, CLOSED_FORMS))}. Leave alignment (--alignment) out to keep {before!r}."
        )


def _check_whole(folder: Path, tasks: list[list[int]], manifest: dict, statistics):
    """Refuse a folder whose files tell of different models."""
    classes = sum(len(task) for task in tasks)
    listed = [task["class_ids"] for task in manifest["tasks"]]
    if listed != tasks or len(statistics.count) != classes:
        raise ValueError(
            f"{folder} is not whole: config.json has {len(tasks)} tasks with {classes} classes, {MANIFEST_FILE} "
            f"{len(listed)} tasks and {STATISTICS_FILE} {len(statistics.count)} classes. Download it again."
        )
