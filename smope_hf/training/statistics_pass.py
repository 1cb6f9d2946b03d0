"""Passes over a task's training images: what its statistics are taken from, before and after its training."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..data.batches import GlobalBatches, gather_rows
from ..data.image_store import DecodedImages
from ..data.seeding import derive_generator
from ..data.tasks import Task
from ..heads.alignment import ClassStatistics, StatisticsAccumulator
from ..heads.drift import FeatureDrift
from .passes import ImagePasses
from .run_state import RunState


@torch.no_grad()
def take_statistics(model, task: Task, images: DecodedImages, passes: ImagePasses, keep_features: bool = False):
    """Count usage and take class statistics in one pass at the end of a task (docs/method.md, steps 5 and 11).

    Args:
        model: of the run; it counts the usage.
        task: the task, just trained.
        images: its training images.
        passes: how the run looks at them.
        keep_features: also return the features.

    Returns:
        The [`ClassStatistics`] of the task's classes, and the features (N, D) on the CPU or None.
    """
    model.eval()
    accumulator = StatisticsAccumulator(len(task.class_names), model.config.hidden_size, passes.accelerator.device)
    kept = []
    with model.raw_routing():
        for features, labels, scores in _passed(model, task, images, passes, "statistics"):
            accumulator.update(features, labels - task.class_ids.start)
            if scores:
                model.update_usage(scores)
            if keep_features:
                kept.append(features.cpu())
    return accumulator.result(), torch.cat(kept) if keep_features else None


@torch.no_grad()
def features_before(model, task: Task, images: DecodedImages, passes: ImagePasses) -> Tensor:
    """Features of a task's training images before its training, (N, D) on the CPU, in the order of the images."""
    model.eval()
    with model.raw_routing():  # as after the training: what moves is then the prompts' doing alone
        return torch.cat([features.cpu() for features, _, _ in _passed(model, task, images, passes, "drift")])


def _passed(
    model, task: Task, images: DecodedImages, passes: ImagePasses, name: str
) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """Features (B, D), class ids (B,) and router scores of each global batch, under the statistics' transform."""
    args, accelerator = passes.args, passes.accelerator
    crops = None
    if args.statistics == "train":
        crops = passes.augment.draw(len(images), derive_generator(args.seed, "statistics", task.index))
    wanted = {"output_router_scores": True} if model.records_usage else {}
    batches = GlobalBatches(images, args.eval_batch_size, accelerator, args.dataloader_num_workers)
    for pixels, labels, rows, batch_size in passes.bars.over(batches(), len(batches), task.index, name):
        pixels = pixels.to(accelerator.device)
        pixels = passes.normalize(pixels if crops is None else passes.augment(pixels, crops[rows]))
        with accelerator.autocast():
            output = model(pixels, **wanted)
        scores = output.router_scores if model.records_usage else ()
        together = [output.pooled_output.float(), labels.to(accelerator.device), *scores]
        features, labels, *scores = (gather_rows(accelerator, rows, batch_size) for rows in together)
        yield features, labels, scores


def usage_counts(model) -> Tensor:
    """Usage of every expert so far, (L, H, E), on the CPU."""
    return torch.stack([experts.usage_counts.cpu() for experts in model.prefix_experts])


def carried_along(
    known: ClassStatistics, new: ClassStatistics, before: Tensor | None, after: Tensor | None, args
) -> ClassStatistics:
    """Statistics of old classes as a task has moved their features, followed by those of its own classes.

    Args:
        known: of the classes before the task.
        new: of the task's classes.
        before: features (N, D) of the task's training images before its training; None for no drift compensation.
        after: of the same images after it.
        args: [`ContinualTrainingArguments`], whose `drift_*` are used.
    """
    if before is not None and args.drift_compensation != "none":
        known = FeatureDrift.between(before, after, args.drift_compensation, args.drift_shrinkage).applied(known)
    return known.joined(new)


class StatisticsStage:
    """A task's class statistics, and what its training has done to those of the tasks before it.

    Args:
        model: of the run; it does not know the task yet.
        task: the task, about to begin.
        images: its training images.
        passes: how the run looks at them.
    """

    def __init__(self, model, task: Task, images: DecodedImages, passes: ImagePasses):
        self.task, self.images, self.passes = task, images, passes
        drifts = task.index > 0 and passes.args.drift_compensation != "none" and model.prompt_parameters()
        self.before = features_before(model, task, images, passes) if drifts else None

    def finish(self, model, state: RunState) -> ClassStatistics:
        """After the training: bring the run's statistics and usage up to date.

        Args:
            model: of the run, trained on the task.
            state: of the run.

        Returns:
            The statistics of the task's own classes.
        """
        usage, keep = usage_counts(model) if model.records_usage else None, self.before is not None
        new, after = take_statistics(model, self.task, self.images, self.passes, keep_features=keep)
        state.statistics = carried_along(state.statistics, new, self.before, after, self.passes.args)
        if usage is not None:
            state.usage_history.append(usage_counts(model) - usage)
        return new
