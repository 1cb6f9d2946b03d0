"""A callback that writes down how a run's experts are selected while it trains: routing_training.json."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from ..models.prefix_experts import membership
from ..routing.patterns import balance
from ..routing.record import Checker
from ..routing.training_record import FORMAT_VERSION, TRAINING_FILE, check_entry, load_training_record
from ..storage.field_checks import MAX_COUNT, is_count
from ..storage.files import write_json
from ..storage.state_folder import INDEX_FILE
from .callbacks import ContinualCallback


class TrainingRoutingRecorder(ContinualCallback):
    """Records how evenly each task's training steps select the experts, in `routing_training.json`.

    At every reading of the losses (`logging_steps`) the file gets the `step`, counted over all tasks as in the
    trackers, the number of `images` since the last reading, and of their selections in training mode, with the noise
    that holds then, `entropy`, `gini` and `dead_share` of [`smope_hf.routing.patterns.balance`], (L, H) each. Dense
    steps select nothing and are left out. Counts are summed on the device, and read where the losses are.

    The file is written before a task is saved, and what it is to hold of a task in training is kept in the run's
    `state/`: a resumed run goes on with all that was recorded.
    """

    wants_routing = True

    def __init__(self):
        self._tasks: list[dict] | None = None
        self._counts: torch.Tensor | None = None  # (L, H, E), of this process since the last reading

    def on_task_begin(self, trainer, task):
        model = trainer.model
        if not model.records_usage:
            raise ValueError(
                f"TrainingRoutingRecorder records the experts of SMoPE, and {type(model).__name__} has none. Leave it "
                "out of the callbacks."
            )
        if self._tasks is None:
            self._tasks = self._earlier(model, Path(trainer.args.output_dir))
        self._tasks.append({"task": task.index + 1, "first_step": trainer.logged_steps, "readings": []})
        shape = (len(model.prefix_experts), *model.prefix_experts[0].usage_counts.shape)
        self._counts = torch.zeros(shape, dtype=torch.long, device=trainer.accelerator.device)

    def on_forward(self, trainer, task, output, counts):
        if counts and output.selected_experts is not None:
            chosen = [membership(selected, self._counts.shape[-1]).sum(dim=0) for selected in output.selected_experts]
            self._counts += torch.stack(chosen)

    def on_log(self, trainer, task, losses):
        counts = trainer.accelerator.reduce(self._counts, reduction="sum").cpu().numpy()
        self._counts = torch.zeros_like(self._counts)
        images = int(counts[0, 0].sum()) // trainer.model.config.top_k
        if images:
            parts = {name: np.round(values, 4).tolist() for name, values in balance(counts)._asdict().items()}
            self._tasks[-1]["readings"].append({"step": trainer.logged_steps, "images": images, **parts})

    def saved_state(self, trainer):
        counts = trainer.accelerator.reduce(self._counts, reduction="sum")
        return {"task": self._tasks[-1], "counts": counts.tolist()}

    def restore_state(self, trainer, state):
        if state is None:
            raise ValueError(
                f"The first steps of the task in {trainer.mid_task.folder} were not recorded. Leave record_routing "
                "out, or remove that folder to begin the task again."
            )
        place = trainer.mid_task.folder / INDEX_FILE
        check, begun, layers = Checker(place), self._tasks[-1], len(self._counts)
        task, counts = state.get("task"), state.get("counts")
        where = f"callbacks.{type(self).__name__}"
        check(f"{where}.task", task, isinstance(task, dict), "an object")
        check_entry(check, f"{where}.task", task, {"task": begun["task"] - 1, "step": begun["first_step"]}, layers)
        check(f"{where}.task.task", task["task"], task["task"] == begun["task"], str(begun["task"]))
        shape = tuple(self._counts.shape)
        check(f"{where}.counts", counts, are_counts(counts, shape), f"integers from 0, in lists of {shape}")
        self._tasks[-1] = task
        if trainer.accelerator.is_main_process:  # the counts are those of all processes
            self._counts = torch.tensor(counts, device=self._counts.device)

    def on_training_end(self, trainer, task):
        self._tasks[-1]["keys_sha256"] = _digest(trainer.model)
        if trainer.accelerator.is_main_process:
            config = trainer.model.config
            content = {
                "format_version": FORMAT_VERSION,
                "layers": list(config.prompt_layers),
                "num_experts": config.num_experts,
                "top_k": config.top_k,
                "tasks": self._tasks,
            }
            write_json(Path(trainer.args.output_dir) / TRAINING_FILE, content)

    def _earlier(self, model, folder: Path) -> list[dict]:
        """What an earlier part of the same run recorded; what another run left in the folder is replaced."""
        learned = len(model.config.tasks)
        if learned == 0 or not (folder / TRAINING_FILE).is_file():
            return []
        tasks = [entry for entry in load_training_record(folder)["tasks"] if entry["task"] <= learned]
        # the keys stay as training left them until the next task begins: they tell that the newest record is its own
        same = tasks and tasks[-1]["task"] == learned and tasks[-1]["keys_sha256"] == _digest(model)
        return tasks if same else []


def are_counts(value, shape: tuple[int, ...]) -> bool:
    """Whether this is a list of lists of a shape, with an integer from 0 in each place."""
    if not shape:
        return is_count(value) and value <= MAX_COUNT
    return isinstance(value, list) and len(value) == shape[0] and all(are_counts(part, shape[1:]) for part in value)


def _digest(model) -> str:
    """Tells the runs apart whose records may lie in one folder."""
    keys = torch.stack([experts.keys.detach() for experts in model.prefix_experts])
    return hashlib.sha256(keys.float().cpu().contiguous().numpy().tobytes()).hexdigest()
