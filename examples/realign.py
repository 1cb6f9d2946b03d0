"""Heads that a finished run would have had with other statistics: its features once, then a grid; nothing is trained.

    python examples/realign.py runs/short/smope/seed-0 --held_out 30 --dataset DATA --backbone BACKBONE \
        --grid "drift_shrinkage=1,10 alignment_shrinkage=0.001,estimated"

RUN is the folder of a run of `examples/benchmark.py` (RUNS/METHOD/seed-N), with its tasks' checkpoints. Each task's
training images are seen by the prompts before and after that task, test images and `--held_out` other training images
of each class by the last ones. From these features the class statistics are carried through all tasks anew, as in
training, for every combination of the grid, and the head is set from them in closed form. Settings of the grid:
alignment (lda, ncm), alignment_shrinkage (a share, or "estimated"), drift_compensation, drift_shrinkage.
drift_compensation=afresh is no method, as it needs the images of all tasks: their statistics under the last prompts,
which show what is left to gain by any compensation.

The folder gets realigned.json, beside the settings the final average accuracy on held-out and on test images (and the
recall of the head, middle and tail third of the classes on test images for a run with an imbalance factor). Choose by
the held-out images, which the run has not seen; the test images (with --evaluate_on validation the run's validation
images) are for the report.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from benchmark_records import read_settings
from torch import Tensor
from tune import read_grid

from smope_hf.base.home import expanded, home_path
from smope_hf.base.printing import say_lines
from smope_hf.data.augmentation import Normalization
from smope_hf.data.batches import DecodedImages, GlobalBatches
from smope_hf.data.image_check import checked_stream
from smope_hf.data.manifest import manifest_differences
from smope_hf.data.split import TaskSplit
from smope_hf.heads.alignment import ClassStatistics, StatisticsAccumulator, align_classifier
from smope_hf.metrics.class_recall import recall_by_frequency, recall_of_classes
from smope_hf.models.image_processors import load_image_processor
from smope_hf.models.methods.rivals import PROMPT_METHODS
from smope_hf.settings.training_args import CLOSED_FORMS
from smope_hf.sharing.checkpoint import task_folder
from smope_hf.sharing.hub import find_checkpoint
from smope_hf.sharing.run_files import load_manifest
from smope_hf.storage.files import write_json
from smope_hf.storage.output_check import try_file
from smope_hf.training.run_arguments import build_arguments, load_stream
from smope_hf.training.statistics_pass import carried_along

ESTIMATED, AFRESH = "estimated", "afresh"
HELD_OUT, TEST = "held_out", "test"


@dataclass
class TaskFeatures:
    """What a run's prompts make of one task's images: features (N, D) and class ids (N,).

    Args:
        before: of its training images under the prompts before the task; None for the first.
        after: of the same images under the prompts after the task.
        last: of the same images under the last prompts; None where nobody asked.
        labels: of the same images.
        probes: for held-out and test images features under the last prompts and class ids.
    """

    before: Tensor | None
    after: Tensor
    last: Tensor | None
    labels: Tensor
    probes: dict[str, tuple[Tensor, Tensor]]


class FeaturePass:
    """Takes features as a run takes them: its precision, its evaluation transform.

    Args:
        run: folder of the run.
        args: [`ContinualTrainingArguments`] of the run.
        backbone: name or folder of the backbone; None for what the checkpoints name or hold.
    """

    def __init__(self, run: Path, args, backbone: str | None):
        self.run, self.args, self.backbone = run, args, backbone
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision)
        self.processor = load_image_processor(task_folder(run, 0))
        self.normalize = Normalization.from_processor(self.processor)

    def model_after(self, index: int):
        model = find_checkpoint(task_folder(self.run, index)).load_model(backbone=self.backbone)
        return model.to(self.accelerator.device).eval()

    @torch.no_grad()
    def __call__(self, models: list, split: TaskSplit) -> list[Tensor]:
        """Each model's features (N, D), then the class ids (N,), on the CPU; every image is decoded once."""
        batches = GlobalBatches(DecodedImages(split, self.processor), self.args.eval_batch_size, self.accelerator)
        found = []
        for pixels, classes, _, _ in batches():
            pixels = self.normalize(pixels.to(self.accelerator.device))
            with self.accelerator.autocast():
                found.append([*(model(pixels).pooled_output.float().cpu() for model in models), classes])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]


def held_out_images(used: TaskSplit, whole: TaskSplit, per_class: int) -> TaskSplit:
    """The first images of each class that the run has not trained on.

    Raises:
        ValueError: where a class has no such images.
    """
    rank, chosen = dict.fromkeys(np.unique(whole.labels).tolist(), 0), []
    known = set(used.source_rows.tolist())
    for position, (row, label) in enumerate(zip(whole.source_rows.tolist(), whole.labels.tolist(), strict=True)):
        if row not in known and rank[label] < per_class:
            rank[label] += 1
            chosen.append(position)
    if min(rank.values()) == 0:
        raise ValueError(
            "--held_out needs training images that the run has not seen, and there are none of some classes. "
            "Leave --held_out out."
        )
    others = np.setdiff1d(np.arange(len(whole)), chosen)
    return whole.without(others.tolist(), ())


def usable(stream, run: Path, args, accelerator):
    """The stream without images that cannot be used, where the run has left some out."""
    skipped = load_manifest(run)["information"]["skipped_images"]
    return checked_stream(stream, args, accelerator) if skipped else stream


def stream_of(run: Path, data, args, accelerator):
    """The run's own tasks.

    Raises:
        ValueError: when the run is not whole, or the data set now holds other images than the run has learned.
    """
    stream = usable(load_stream(data), run, args, accelerator)
    if missing := [task_folder(run, task.index) for task in stream if not task_folder(run, task.index).is_dir()]:
        raise ValueError(f"{missing[0]} is missing. Give a run that is whole, with the checkpoints of all its tasks.")
    if differences := manifest_differences(load_manifest(run), stream.manifest()):
        raise ValueError(
            f"{run} has learned other tasks than these of --dataset {data.dataset}: {'; '.join(differences)}. Give "
            "the data set that it was trained on."
        )
    return stream


def features_of(run: Path, data, args, backbone: str | None, held_out: int, afresh: bool) -> Iterator[TaskFeatures]:
    """The features of a run, task by task; with `afresh` also those under the last prompts."""
    taken = FeaturePass(run, args, backbone)
    stream = stream_of(run, data, args, taken.accelerator)
    everything = replace(data, max_train_samples_per_class=None, imbalance_factor=1.0)
    whole = usable(load_stream(everything), run, args, taken.accelerator) if held_out else None
    last, before = taken.model_after(len(stream) - 1), None
    for task in tqdm(stream, desc=str(run), disable=not sys.stderr.isatty()):
        probes = {TEST: tuple(taken([last], task.test))}
        if whole is not None:
            probes[HELD_OUT] = tuple(taken([last], held_out_images(task.train, whole[task.index].train, held_out)))
        of_last = task.index == len(stream) - 1
        after = last if of_last else taken.model_after(task.index)
        models = [model for model in (before, after, last if afresh and not of_last else None) if model is not None]
        with ExitStack() as raw:  # as class statistics are taken
            for model in models:
                raw.enter_context(model.raw_routing())
            *features, labels = taken(models, task.train)
        earlier = None if before is None else features.pop(0)
        before = after
        yield TaskFeatures(earlier, features[0], features[-1] if afresh else None, labels, probes)


def statistics_of(tasks: list[TaskFeatures], args, afresh: bool) -> ClassStatistics:
    """Class statistics behind the last task, those of earlier tasks carried along as `args` says or taken afresh."""
    known = ClassStatistics.empty(tasks[0].after.shape[1])
    for task in tasks:
        first = int(task.labels.min())
        accumulator = StatisticsAccumulator(int(task.labels.max()) + 1 - first, task.after.shape[1])
        accumulator.update(task.last if afresh else task.after, task.labels - first)
        known = carried_along(known, accumulator.result(), task.before, task.after, args)
    return known


def measure(tasks: list[TaskFeatures], args, afresh: bool, thirds: bool) -> dict:
    """Final average accuracy on each kind of images, and recall by thirds of the classes where they are unequal."""
    statistics = statistics_of(tasks, args, afresh)
    head = torch.nn.Linear(statistics.mean.shape[1], len(statistics.count))
    align_classifier(head, statistics, 0, args, None)
    found: dict = {}
    for kind in tasks[0].probes:
        with torch.no_grad():
            predicted = [head(task.probes[kind][0]).argmax(dim=1) for task in tasks]
        truths = [task.probes[kind][1] for task in tasks]
        correct = [(p == t).double().mean().item() for p, t in zip(predicted, truths, strict=True)]
        found[kind] = sum(correct) / len(correct)
        if thirds and kind == TEST:
            recall = recall_of_classes(torch.cat(predicted), torch.cat(truths), range(len(statistics.count)))
            found |= recall_by_frequency(recall, statistics.count.tolist())
    return found


def arguments_of(combination: str, args, closed_form: str | None = None):
    """The run's settings with those of one combination of the grid, and whether its statistics are taken afresh.

    Args:
        combination: `name=value,name=value`.
        args: [`ContinualTrainingArguments`] of the run.
        closed_form: the alignment of a method that has one of its own.

    Raises:
        ValueError: for a setting that this script does not change, or a value that is not allowed.
    """
    kinds = {"alignment": str, "drift_compensation": str, "drift_shrinkage": float, "alignment_shrinkage": float}
    changed: dict = {} if closed_form is None else {"alignment": closed_form}
    for part in combination.split(","):
        name, _, value = part.partition("=")
        if name not in kinds or (name == "alignment" and value not in CLOSED_FORMS):
            raise ValueError(
                f"--grid with {part!r} is not allowed. Allowed: alignment=lda or ncm, and {', '.join(kinds)} with the "
                f"values that they have in training, {ESTIMATED} and {AFRESH}."
            )
        changed[name] = None if (name, value) == ("alignment_shrinkage", ESTIMATED) else kinds[name](value)
    if afresh := changed.get("drift_compensation") == AFRESH:
        changed["drift_compensation"] = "none"
    args = replace(args, **changed)
    if args.alignment not in CLOSED_FORMS:
        raise ValueError(
            f"alignment = {args.alignment!r}, the run's own, is none that statistics alone decide. Put alignment=lda "
            "or alignment=ncm into --grid."
        )
    return args, afresh


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", type=home_path, metavar="RUN", help="folder of a run of examples/benchmark.py"
    )
    parser.add_argument("--grid", required=True, help="name=value,value; several separated by spaces")
    parser.add_argument("--held_out", type=int, default=0, help="training images of each class to choose by")
    parser.add_argument("--dataset", type=expanded, required=True)
    parser.add_argument("--backbone", type=expanded, help="default: what the checkpoints name, or their own trained")
    parser.add_argument("--num_threads", type=int, help="default: torch's own choice")
    options = parser.parse_args()
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    settings = {}
    try:
        grid = read_grid(options.grid)
        for run in options.runs:
            try_file(run / "realigned.json", "the result")
            there = {"dataset": options.dataset, "output_dir": str(run)}
            given = {name: value for name, value in read_settings(run).items() if value is not None}
            model, data, args = build_arguments(given | there)
            closed_form = PROMPT_METHODS[model.method].closed_form if model.method in PROMPT_METHODS else None
            settings[run] = data, args, closed_form
            if data.joint or args.statistics != "eval":
                raise ValueError(f"{run}: only a run task after task with statistics = 'eval' can be aligned anew.")
            for combination in grid:
                arguments_of(combination, args, closed_form)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for run, (data, args, closed_form) in settings.items():
        try:
            wanted = [arguments_of(one, args, closed_form) for one in grid]
            afresh = any(of_one for _, of_one in wanted)
            tasks = list(features_of(run, data, args, options.backbone, options.held_out, afresh))
            thirds = data.imbalance_factor > 1
            rows = [
                {"settings": one, **measure(tasks, *given, thirds)} for one, given in zip(grid, wanted, strict=True)
            ]
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        write_json(run / "realigned.json", {"held_out_per_class": options.held_out, "rows": rows})
        say_lines(f"{run}\n{table(rows)}\n")


def table(rows: list[dict]) -> str:
    """The rows in Markdown, accuracies in percent."""
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    for row in rows:
        cells = [f"{100 * row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
