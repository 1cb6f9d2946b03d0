"""What the passes of a run over images share, in training, for its statistics and in its evaluation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import tqdm

from ..data.augmentation import BatchAugmentation, Normalization
from ..settings.training_args import ContinualTrainingArguments

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProgressBars:
    """Progress bars of a run, on the main process only.

    Args:
        num_tasks: of the run, for the titles.
        disable: show none.
    """

    num_tasks: int
    disable: bool = False

    def bar(self, total: int, task: int, stage: str):
        """A bar of so many steps for a stage of the task with this index."""
        title = f"task {task + 1}/{self.num_tasks} {stage}"
        return tqdm(total=total, desc=title, disable=self.disable, leave=False)

    def over(self, items: Iterable[Item], total: int, task: int, stage: str) -> Iterator[Item]:
        """Go through items under a bar."""
        bar = self.bar(total, task, stage)
        for item in items:
            yield item
            bar.update()
        bar.close()


@dataclass(frozen=True)
class ImagePasses:
    """How a run has a model look at images.

    Args:
        accelerator: of the run: its devices, processes and precision.
        args: settings: batch sizes, threads, seed, and what is drawn.
        normalize: from 8-bit pixels to what the backbone takes.
        augment: random crops and flips of training.
        bars: progress bars.
    """

    accelerator: Accelerator
    args: ContinualTrainingArguments
    normalize: Normalization
    augment: BatchAugmentation
    bars: ProgressBars
