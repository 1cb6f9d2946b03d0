"""`smope add-classes`: one more task for a saved model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..base.home import expanded
from ..base.printing import say_once
from ..settings.training_args import ContinualTrainingArguments
from .options import Backbone, ImageColumn, LabelColumn, Revision, given, with_options

SETTINGS = (
    "seed", "epochs", "batch_size", "eval_batch_size", "gradient_accumulation_steps", "learning_rate",
    "min_learning_rate", "freeze_epochs", "prefix_lr_multiplier", "max_grad_norm", "crop_scale", "crop_ratio",
    "flip_probability", "alignment", "alignment_epochs", "alignment_batch_ratio", "alignment_learning_rate",
    "alignment_shrinkage", "drift_compensation",
    "mixed_precision", "gradient_checkpointing", "torch_compile", "image_cache_gib", "image_cache_dir",
    "dataloader_num_workers", "on_bad_image", "on_duplicate", "checkpoint_every", "resume", "hub_private_repo",
    "hub_include_backbone", "hub_remote_code", "hub_license",
)  # fmt: skip


@with_options(ContinualTrainingArguments, only=SETTINGS, defaults=False)
def add_classes(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run, checkpoint folder or Hub id to go on from.")],
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="The new classes: a folder of images, one folder per class, or a data set."),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the new task; the run's own is fine.")],
    revision: Revision = None,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Learn these classes only. Default: all in DATA.")
    ] = None,
    test_data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images of the old classes, to measure what is forgotten.")
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(metavar="NUM", help="Share of DATA to test on where it has no test split.")
    ] = 0.0,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    test_image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --test-data. Default: --image-column, else as there.")
    ] = None,
    test_label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --test-data. Default: --label-column, else as there.")
    ] = None,
    test_split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --test-data. Default: test, else validation.")
    ] = None,
    backbone: Backbone = None,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Push the new task to this Hub repository.")] = None,
    **options,
):
    """Teach a saved model more classes, without the old images.

    \b
    Examples:
      smope add-classes runs/cifar100 --data photos/ --output runs/cifar100
      smope add-classes me/my-model --revision task-10 --data photos/ \\
          --output runs/more --push me/my-model

    What is not set is as the model was trained before.
    """
    from ..data.tasks import TaskStream
    from ..sharing.inspection import class_tasks, read_config
    from ..training.continuation import checkpoint_to_continue
    from ..training.run_place import folder_taken
    from ..training.trainer import ContinualTrainer
    from .common import be_quiet

    be_quiet()
    settings = {"disable_progress": not sys.stderr.isatty(), **given(options, ContinualTrainingArguments)}
    settings |= {"push_to_hub": push is not None, "hub_model_id": push}
    columns = {"image_column": image_column, "label_column": label_column}
    test_options = {"split": test_split, "image_column": test_image_column, "label_column": test_label_column}
    if test_data is None and any(value is not None for value in test_options.values()):
        raise ValueError("--test-split, --test-image-column and --test-label-column are of --test-data: give it too")
    cache = expanded(settings.get("image_cache_dir"))
    with folder_taken(output, cache):  # before any image is read
        if classes is not None:
            tasks = {"class_lists": [_chosen(classes, data, label_column)]}
        else:
            tasks = {"num_tasks": 1, "shuffle_classes": False}
        stream = TaskStream.load(
            data, **tasks, **columns, test_fraction=test_fraction, allow_no_test=test_fraction == 0
        )
        old_tests = None
        if test_data is not None:
            resume = settings.get("resume", False)
            start = checkpoint_to_continue(model, stream, output, revision=revision, resume=resume)
            known = class_tasks(read_config(start.folder))
            old_tests = _old_tests(test_data, known, test_options, columns)
        trainer = ContinualTrainer.from_checkpoint(
            model, stream, output_dir=output, revision=revision, backbone=backbone, old_tests=old_tests, **settings
        )
    say_once(trainer.accelerator, _announcement(trainer.stream[-1]))
    trainer.train()
    if old_tests is None:
        say_once(trainer.accelerator, "Old classes were not measured: --test-data takes images of them.")
    say_once(trainer.accelerator, f"The model with its new classes: {trainer.saved_tasks()[-1]}")
    trainer.accelerator.end_training()


def _chosen(classes: str, data: str, label_column: str | None) -> list[str]:
    """The names between commas; as one name what is the name of a class, the longest first."""
    from ..data.reading import load_class_names
    from ..settings.class_names import one_form

    parts = one_form(classes).split(",")
    known = set(load_class_names(data, label_column)) if len(parts) > 1 else set()
    names = []
    while parts:
        end = next((end for end in range(len(parts), 1, -1) if ",".join(parts[:end]).strip() in known), 1)
        names.append(",".join(parts[:end]).strip())
        parts = parts[end:]
    if not all(names):
        raise ValueError(f"--classes {classes!r} has an empty name; give names separated by single commas")
    return names


def _announcement(task) -> str:
    """What will be learned, as it can still be stopped: a class cannot be taken from a model again."""
    counts = [int((task.train.labels == class_id).sum()) for class_id in task.class_ids]
    classes = [f"{name!r} ({n} image{'s' * (n != 1)})" for name, n in zip(task.class_names, counts)]
    return f"Learning task {task.index + 1}: {', '.join(classes)}"


def _old_tests(data: str, known: list[list[str]], options: dict, columns: dict) -> list:
    """Images of the old classes by task; a column that has no option of its own is that of the new images."""
    from ..data.known_tasks import load_known_tests

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return load_known_tests(data, known, **{**columns, **given}, ignore_unknown=True)
    except ValueError as error:
        own = "--test-split, --test-image-column and --test-label-column"
        raise ValueError(f"--test-data {data}: {error}. Its split and columns: {own}") from error
