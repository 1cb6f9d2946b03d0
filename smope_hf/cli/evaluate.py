"""`smope evaluate`: accuracy of a saved model on each task's classes."""

import sys
from typing import Annotated

import typer

from ..base.printing import print_json, say
from .options import AsJson, Backbone, ImageColumn, LabelColumn, Revision


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run, checkpoint folder or Hub id.")],
    data: Annotated[
        str, typer.Option(metavar="DATA", help="Data set on the Hub, folder of images or of parquet files.")
    ],
    revision: Revision = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Default: test, else validation.")] = None,
    data_config: Annotated[str | None, typer.Option(metavar="NAME", help="Configuration of a Hub data set.")] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    max_per_class: Annotated[
        int | None, typer.Option(metavar="INT", help="Use so many of each class at most.")
    ] = None,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Leave out images of classes the model does not know.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be used, and list them.")
    ] = False,
    batch_size: Annotated[int, typer.Option(metavar="INT", min=1, help="Images per step.")] = 64,
    backbone: Backbone = None,
    as_json: AsJson = False,
):
    """Measure a model's accuracy on the classes of each task.

    All classes that it knows are in competition. Classes are matched by name.

    \b
    Examples:
      smope evaluate runs/cifar100 --data uoft-cs/cifar100 \\
          --label-column fine_label
      smope evaluate me/my-model --revision task-02 --data photos/ \\
          --split test --ignore-unknown --json
    """
    from accelerate import PartialState

    from ..data.image_check import checked_tests
    from ..data.known_tasks import load_known_tests
    from ..sharing.hub import find_checkpoint
    from ..sharing.inspection import class_tasks, read_config
    from .common import be_quiet

    be_quiet()
    checkpoint = find_checkpoint(model, revision)
    tasks = class_tasks(read_config(checkpoint.folder))
    tests = load_known_tests(
        data,
        tasks,
        split=split,
        config_name=data_config,
        image_column=image_column,
        label_column=label_column,
        max_per_class=max_per_class,
        ignore_unknown=ignore_unknown,
    )
    tests = checked_tests(tests, tasks, "skip" if skip_bad else "error")
    accuracies = measure(checkpoint, tests, batch_size, backbone)
    if not PartialState().is_main_process:  # of several processes one prints
        return
    report = summary(tasks, tests, accuracies)
    source = next(test.source_split for test in tests if test is not None)
    report = {"model": str(checkpoint), "revision": revision, "data": data, "split": source, **report}
    report["skipped_images"] = [vars(image) for test in tests if test is not None for image in test.skipped]
    for image in report["skipped_images"]:
        say(f"skipped row {image['row']} of split {source!r}: {image['reason']}", err=True)
    print_json(report) if as_json else _print_report(report)


def measure(checkpoint, tests: list, batch_size: int, backbone: str | None = None) -> list[float | None]:
    """Accuracy of the checkpoint on each task's images; None where there are none."""
    from accelerate import Accelerator
    from accelerate.utils import tqdm

    from ..data.augmentation import Normalization
    from ..data.batches import DecodedImages
    from ..models.image_processors import load_image_processor
    from ..training.evaluation import predict
    from ..training.process_group import end_group_at_exit

    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        end_group_at_exit()
    processor = load_image_processor(checkpoint.folder)
    model = checkpoint.load_model(backbone=backbone).to(accelerator.device)
    normalize = Normalization.from_processor(processor)
    accuracies: list[float | None] = []
    for test in tqdm(tests, desc="tasks", disable=not sys.stderr.isatty(), leave=False):
        if test is None:
            accuracies.append(None)
            continue
        images = DecodedImages(test, processor)
        predicted = predict(model, images, normalize, accelerator, batch_size)
        accuracies.append((predicted == images.labels).double().mean().item())
    return accuracies


def summary(tasks: list[list[str]], tests: list, accuracies: list[float | None]) -> dict:
    """Accuracies by task, their mean, and the accuracy over all images."""
    from ..training.evaluation import overall_accuracy

    counts = [0 if test is None else len(test) for test in tests]
    rows = [
        {"task": index, "classes": names, "images": count, "accuracy": accuracy}
        for index, (names, count, accuracy) in enumerate(zip(tasks, counts, accuracies), start=1)
    ]
    return {"tasks": rows, "images": sum(counts), **overall_accuracy(accuracies, counts)}


def _print_report(report: dict):
    from ..base.formatting import names_in_short, percent
    from ..reports.terminal import print_table

    rows = [
        [str(row["task"]), names_in_short(row["classes"]), str(row["images"]), percent(row["accuracy"])]
        for row in report["tasks"]
    ]
    rows += [
        None,
        ["", "average over tasks", "", percent(report["average_accuracy"])],
        ["", "all images", str(report["images"]), percent(report["weighted_accuracy"])],
    ]
    columns = {"task": "left", "classes": "left", "images": "right", "accuracy": "right"}
    title = f"{report['model']} on {report['data']}, split {report['split']}: accuracy in percent"
    print_table(title, columns, rows)
