"""A callback that writes down, task after task, how a run's experts are used: routing_patterns.json."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ..data.batches import GlobalBatches, gather_rows
from ..data.image_store import DecodedImages
from ..data.split import Task, TaskSplit
from ..models.configuration_incremental import IncrementalConfig
from ..routing.patterns import balance, routing_survival, select_experts, task_overlap
from ..routing.record import FORMAT_VERSION, PATTERNS_FILE, load_patterns
from ..storage.checkpoint_guard import read_exactly
from ..storage.files import atomic_path, write_json
from ..storage.safe_json import ADVICE
from .callbacks import ContinualCallback
from .passes import ImagePasses

SELECTIONS_FOLDER = "routing_selections"


class RoutingRecorder(ContinualCallback):
    """Records the patterns of a run's routing after each task, in `routing_patterns.json`.

    For each task learned so far the file tells, from the usage counted on its training images:
    `balance`, of all counts up to then, and `own_balance`, of the task's alone, each (L, H) of entropy, Gini and dead
    share; `overlap` with each task before it, (L, tasks before). And, from passes over test images:
    `survival`, for each task before it the share of an image's experts that are still those selected right after
    that task was learned, a mean over images and heads for each layer; null where there are no test images or nobody
    recorded that task when it was learned. `frequently_used_share`, (L, H), are the marks in force while the task was
    learned, null where nobody recorded.

    Usage is counted once, at the end of a task; the steps between are for [`TrainingRoutingRecorder`].

    What was selected is kept in `routing_selections/` for a run that is resumed. A task that was saved but not yet
    recorded when a run was killed is recorded before the next one begins, when the model is still the same.

    Args:
        images_per_task: most test images of a task that are followed, spread evenly over its test split; each costs
            a forward pass after every task. Default: 256.
    """

    def __init__(self, images_per_task: int = 256):
        if images_per_task < 1:
            raise ValueError(f"images_per_task = {images_per_task} is not allowed. Allowed: an integer from 1.")
        self.images_per_task = images_per_task
        self._recorded: dict[int, dict] | None = None  # by the task's number, from 1
        self._selected: dict[int, np.ndarray] = {}  # (images, L, H, K) right after the task was learned

    def on_task_begin(self, trainer, task):
        if not trainer.model.records_usage:
            raise ValueError(
                f"RoutingRecorder records the experts of SMoPE, and {type(trainer.model).__name__} has none. Leave it "
                "out of the callbacks."
            )
        history = trainer.state.usage_history
        self._record_what_is_missing(trainer.model, history, trainer.stream, trainer.decoded, trainer.passes)

    def on_task_end(self, trainer, task):
        history = trainer.state.usage_history
        self._record_what_is_missing(trainer.model, history, trainer.stream, trainer.decoded, trainer.passes)

    def on_train_end(self, trainer, content):
        history = trainer.state.usage_history
        self._record_what_is_missing(trainer.model, history, trainer.stream, trainer.decoded, trainer.passes)

    def _record_what_is_missing(
        self,
        model,
        usage_history: list[Tensor],
        stream: Sequence[Task],
        decoded: Callable[[TaskSplit], DecodedImages],
        passes: ImagePasses,
    ):
        folder = Path(passes.args.output_dir)
        if self._recorded is None:
            self._go_on(folder, model.config, usage_history)
        learned = len(model.config.tasks)
        if learned == 0 or learned in self._recorded:
            return
        tests = [task.test for task in stream[:learned]]
        survival: list[list[float] | None] = [None] * (learned - 1)
        for number, test in enumerate(tests[:-1], start=1):
            if test is not None and number in self._selected:
                now = self._select(model, decoded(test), passes)
                kept = routing_survival(self._selected[number], now)  # (images, L, H)
                survival[number - 1] = _rounded(kept.mean(axis=(0, 2)))
        marked = torch.stack([experts.frequently_used for experts in model.prefix_experts])
        images = 0
        if tests[-1] is not None:
            self._selected[learned] = self._select(model, decoded(tests[-1]), passes)
            images = len(self._selected[learned])
        self._recorded[learned] = {
            "test_images": images,
            "survival": survival,
            "frequently_used_share": _rounded(marked.double().mean(dim=-1).cpu().numpy()),
        }
        if passes.accelerator.is_main_process:
            self._write(folder, model.config, usage_history)

    def _select(self, model, test: DecodedImages, passes: ImagePasses) -> np.ndarray:
        """Experts that the model selects for the followed test images of a task, (images, L, H, K)."""
        count = min(len(test), self.images_per_task)
        rows = torch.from_numpy(np.linspace(0, len(test) - 1, count).round().astype(np.int64))
        args, accelerator = passes.args, passes.accelerator
        batches = GlobalBatches(test, args.eval_batch_size, accelerator, args.dataloader_num_workers)
        parts = []
        for pixels, _, _, size in batches(rows):
            with accelerator.autocast():
                selected = select_experts(model, passes.normalize(pixels.to(accelerator.device)))
            parts.append(gather_rows(accelerator, selected, size).cpu())
        return torch.cat(parts).numpy()

    # ------------------------------------------------------------------ files

    def _write(self, folder: Path, config: IncrementalConfig, usage_history: list[Tensor]):
        """The selections of the last task, and then the numbers of all tasks."""
        learned = len(config.tasks)
        if learned in self._selected:
            tensor = torch.from_numpy(self._selected[learned]).to(torch.int32)
            with atomic_path(_selections_file(folder, learned)) as temporary:
                temporary.write_bytes(save({"selected": tensor}))  # save_file would make it readable by nobody else
        content = {
            "format_version": FORMAT_VERSION,
            "layers": list(config.prompt_layers),
            "num_experts": config.num_experts,
            "top_k": config.top_k,
            "routing": config.routing,
            "images_per_task": self.images_per_task,
            "chance_survival": round(config.top_k / config.num_experts, 6),
            "tasks": _entries(usage_history, self._recorded),
        }
        write_json(folder / PATTERNS_FILE, content)

    def _go_on(self, folder: Path, config: IncrementalConfig, usage_history: list[Tensor]):
        """Take up what an earlier part of the same run recorded; what another run left in the folder is replaced."""
        self._recorded = {}
        if not (folder / PATTERNS_FILE).is_file():
            return
        before = load_patterns(folder)
        for entry, usage in zip(before["tasks"], usage_history):
            if entry["survival"] is None or entry["usage_sha256"] != _digest(usage):
                continue
            if before["images_per_task"] != self.images_per_task:
                raise ValueError(
                    f"RoutingRecorder.images_per_task = {self.images_per_task}, but {folder / PATTERNS_FILE} was "
                    f"recorded with {before['images_per_task']}. Give that number, or move the file away."
                )
            number = entry["task"]
            self._recorded[number] = {
                name: entry[name] for name in ("test_images", "survival", "frequently_used_share")
            }
            if entry["test_images"]:
                shape = (entry["test_images"], *usage.shape[:2], config.top_k)  # (images, L, H, K)
                self._selected[number] = _read_selections(_selections_file(folder, number), shape, config.num_experts)


def _selections_file(folder: Path, number: int) -> Path:
    return folder / SELECTIONS_FOLDER / f"task-{number:02d}.safetensors"


def _read_selections(file: Path, shape: tuple[int, ...], num_experts: int) -> np.ndarray:
    """What was selected for a task's images when it was learned, checked against what the record tells of them.

    Raises:
        ValueError: naming the file, and what does not fit.
        OSError: when it is missing or cannot be read.
    """
    selected = read_exactly(file, {"selected": (("I32",), shape)}, PATTERNS_FILE)["selected"]
    if selected.numel() and not 0 <= int(selected.min()) <= int(selected.max()) < num_experts:
        raise ValueError(f"{file}: selected holds other numbers than those of {num_experts} experts. {ADVICE}")
    return selected.numpy()


def _entries(usage_history: list[Tensor], recorded: dict[int, dict]) -> list[dict]:
    """What the file tells of each task."""
    usage = torch.stack(usage_history).cpu().numpy()  # (T, L, H, E)
    overlap, together, alone = task_overlap(usage), balance(usage.cumsum(axis=0)), balance(usage)
    not_recorded = {"test_images": 0, "survival": None, "frequently_used_share": None}
    return [
        {
            "task": index + 1,
            "usage_sha256": _digest(usage_history[index]),
            "balance": {name: _rounded(values[index]) for name, values in together._asdict().items()},
            "own_balance": {name: _rounded(values[index]) for name, values in alone._asdict().items()},
            "overlap": {name: _rounded(values[:, index, :index]) for name, values in overlap._asdict().items()},
            **recorded.get(index + 1, not_recorded),
        }
        for index in range(len(usage))
    ]


def _digest(usage: Tensor) -> str:
    """Tells the runs apart whose records may lie in one folder."""
    return hashlib.sha256(usage.cpu().to(torch.int64).contiguous().numpy().tobytes()).hexdigest()


def _rounded(values: np.ndarray) -> list:
    return np.round(values.astype(np.float64), 4).tolist()
