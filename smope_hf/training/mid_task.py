"""Where the training of a task stands, kept on disk so that a run goes on in the middle of it.

Under the versions that wrote it, it goes on bit for bit.

The data's order and crops follow from seeds, and the features before the task from the last whole task's folder: what
is kept is what neither gives.
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from torch import Tensor

from ..base.printing import say_once
from ..metrics.stopwatch import as_measured, seconds_since
from ..settings.training_args import ContinualTrainingArguments
from ..sharing.checkpoint import saved_tasks, task_folder
from ..storage.safe_json import short_name
from ..storage.state_folder import STATE_FOLDER, advice, read_content, read_tensors, remove_state, write_state
from .run_state import RunState, check_same_run, comparable_fields, versions

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


class MidTask:
    """The state of a run within a task.

    Args:
        args: settings of the run.
        accelerator: of the run.
        num_known: tasks that the model knew before the run.
        callback_states: gives what the run's callbacks keep of a task in training, by name.
        restore_callbacks: gives it back to them.
    """

    def __init__(
        self,
        args: ContinualTrainingArguments,
        accelerator: Accelerator,
        num_known: int = 0,
        callback_states: Callable[[], dict[str, dict | None]] = dict,
        restore_callbacks: Callable[[dict[str, dict | None]], None] = lambda states: None,
    ):
        self.args, self.accelerator, self.num_known = args, accelerator, num_known
        self.callback_states, self.restore_callbacks = callback_states, restore_callbacks
        self.folder = Path(args.output_dir) / STATE_FOLDER
        self.content: dict | None = None  # found, and not yet gone on from
        self.tensors: dict[str, Tensor] = {}
        self.seconds: dict[str, float] = {}
        self.since, self.protocol_hash = time.perf_counter(), ""

    # ------------------------------------------------------------------ going on

    def find(self, model, state: RunState, protocol_hash: str):
        """Read the state of the task that comes next, and remove one of a task that is whole by now.

        Args:
            model: of the run.
            state: what the run has reached.
            protocol_hash: of the run's tasks.

        Raises:
            RuntimeError: when the model is in the middle of a task, since `train()` was left there.
            ValueError: when the state is broken or belongs to another run; the message says what to do.
        """
        self.protocol_hash = protocol_hash
        learned = len(model.config.tasks)
        self._check_begun(learned, state)
        content = read_content(self.folder)
        if content is not None and content["task"] >= learned:
            saved = SimpleNamespace(**content["model"])
            check_same_run(self.folder, content, self.args.recipe(), protocol_hash, saved, model.config)
            self._check_place(content, learned, state.follows)
            self.content, self.tensors = content, read_tensors(self.folder, content)
            say_once(
                self.accelerator,
                f"Resuming in task {learned + 1}, behind step {content['step']} of {content['steps']} of its "
                f"{content['phase']} phase.",
            )
        elif content is not None and not task_folder(self.args.output_dir, content["task"]).is_dir():
            raise ValueError(
                f"{self.folder} holds a state of task {content['task'] + 1}, whose folder is not there; the model "
                f"knows {learned} tasks. Put the folders of the run's tasks back, or give another output_dir."
            )
        self.accelerator.wait_for_everyone()
        if self.content is None:
            self.remove()

    def _check_begun(self, learned: int, state: RunState):
        """Refuse a model that was left within a task and that no saved task has replaced."""
        nothing_saved = self.args.save_checkpoints and not saved_tasks(self.args.output_dir, self.num_known)
        whole = self.num_known if nothing_saved else len(state.matrix)
        if learned > whole:
            raise RuntimeError(
                f"The model of this trainer has begun task {learned}, and only {whole} tasks are whole: train() was "
                "left in the middle of it. Make a new trainer, as this one was made but with resume=True, to go on "
                "from what is saved."
            )

    def _check_place(self, content: dict, learned: int, follows: str | None):
        if content["task"] > learned or content["follows"] != follows:
            raise ValueError(
                f"{self.folder} holds a state of task {content['task'] + 1}, which does not follow the last whole "
                f"task there is, task {learned}. Put the folder of the task before it back. {advice(self.folder)}"
            )
        if content["num_processes"] != self.accelerator.num_processes:
            raise ValueError(
                f"The state in {self.folder} is one of {content['num_processes']} processes, not of "
                f"{self.accelerator.num_processes}. Start as many. {advice(self.folder)}"
            )

    def begin(self, seconds: dict[str, float]):
        """Say that the training of a task begins.

        Args:
            seconds: the task's record of them; what an earlier part of the run took is added to it.
        """
        if self.content is not None:
            for stage, spent in as_measured(self.content["seconds"]).items():
                seconds[stage] = round(seconds.get(stage, 0.0) + spent, 3)
        self.seconds, self.since = seconds, time.perf_counter()

    @property
    def phase(self) -> str | None:
        """Name of the phase that the state found is of; None when there is none to go on from."""
        return None if self.content is None else self.content["phase"]

    def restore(self, model, state: RunState, name: str, optimizer, history: Tensor) -> tuple[int, int]:
        """Put model, optimizer, losses and torch's generators back where the state has them in this phase.

        Args:
            model: of the run.
            state: of the run; it gets the steps that were logged.
            name: of the phase.
            optimizer: fresh.
            history: losses of each step of the phase, (steps, losses).

        Returns:
            Steps that are done, and how many of them had their losses read; 0 and 0 for a phase to begin.

        Raises:
            ValueError: when tensors are missing or do not fit the model.
        """
        content, tensors = self.content, self.tensors
        if self.phase != name:
            return 0, 0
        done, read = content["step"], content["read"]
        self._check_tensors(content, model, history)
        with torch.no_grad():
            for key, value in _weights(model).items():
                value.copy_(tensors[f"model.{key}"])
        parameters = dict(model.named_parameters())
        for key, steps in content["optimizer_steps"].items():
            parameter = parameters[key]
            moments = {moment: tensors[f"{moment}.{key}"].to(parameter.device) for moment in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
        if content["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        history[read:done] = tensors["losses"].to(history.device)
        self._set_generators(tensors)
        state.logged_steps = content["logged_steps"]
        self.restore_callbacks(content["callbacks"])
        self.content, self.tensors = None, {}
        return done, read

    def _check_tensors(self, content: dict, model, history: Tensor):
        parameters = dict(model.named_parameters())
        wanted = {f"model.{key}": _form(value) for key, value in _weights(model).items()}
        wanted |= {
            f"{moment}.{key}": _form(parameters[key]) if key in parameters else None
            for key in content["optimizer_steps"]
            for moment in MOMENTS
        }
        wanted["losses"] = ((content["step"] - content["read"], history.shape[1]), history.dtype)
        world, device = self.accelerator.num_processes, self.accelerator.device
        wanted |= {key: ((world, len(state)), state.dtype) for key, state in _generator_states(device).items()}
        found = {key: _form(value) for key, value in self.tensors.items()}
        different = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
        if (content["scaler"] is None) != (self.accelerator.scaler is None):
            what = "has no scaler" if content["scaler"] is None else "has a scaler"
            raise ValueError(f"The state in {self.folder} {what}, unlike the run. {advice(self.folder)}")
        if different or content["steps"] != len(history):
            what = short_name(different[0]) if different else f"a phase of {content['steps']} steps"
            raise ValueError(f"The state in {self.folder} does not fit the run: {what}. {advice(self.folder)}")

    # ------------------------------------------------------------------ saving

    def save(self, model, state: RunState, optimizer, history: Tensor, *, task: int, phase: str, done: int, read: int):
        """Write where a phase stands; called on every process.

        Args:
            model: of the run, without what training puts around it.
            state: what the run has reached.
            optimizer: of the phase.
            history: losses of each step of the phase, (steps, losses), of this process's share.
            task: index of the task.
            phase: name of the phase.
            done: steps that are done.
            read: how many of them had their losses read.
        """
        accelerator = self.accelerator
        tensors = {f"model.{key}": value for key, value in _weights(model).items()}
        tensors["losses"] = accelerator.reduce(history[read:done], reduction="mean")
        tensors |= self._generators()
        steps = {}
        if done < len(history):  # the next phase has an optimizer of its own
            steps, moments = _optimizer_state(model, optimizer)
            tensors |= moments
        training = self.seconds.get("training", 0.0) + seconds_since(self.since)
        content = {
            "task": task,
            "phase": phase,
            "step": done,
            "steps": len(history),
            "read": read,
            "logged_steps": state.logged_steps,
            "optimizer_steps": steps,
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
            "seconds": {**self.seconds, "training": round(training, 3)},
            "num_processes": accelerator.num_processes,
            "recipe": self.args.recipe(),
            "model": comparable_fields(model.config),
            "protocol_hash": self.protocol_hash,
            "follows": state.follows,
            "versions": versions(),
            "version_changes": state.version_changes,
            "callbacks": self.callback_states(),
        }
        if accelerator.is_main_process:
            write_state(self.folder, content, tensors)
        accelerator.wait_for_everyone()

    def remove(self):
        """Remove the state; the main process does."""
        if self.accelerator.is_main_process:
            remove_state(self.folder)

    # ------------------------------------------------------------------ parts of a state

    def _generators(self) -> dict[str, Tensor]:
        """States of torch's generators, (processes, n) each: a method may draw in its steps."""
        accelerator = self.accelerator
        own = _generator_states(accelerator.device)
        return {key: accelerator.gather(state.to(accelerator.device)[None]).cpu() for key, state in own.items()}

    def _set_generators(self, tensors: dict[str, Tensor]):
        accelerator = self.accelerator
        rank = accelerator.process_index
        try:
            torch.set_rng_state(tensors["generator.cpu"][rank].clone())  # taken from the start of its storage
            if accelerator.device.type != "cpu":
                state = tensors["generator.device"][rank].clone()
                torch.get_device_module(accelerator.device).set_rng_state(state)
        except RuntimeError as error:  # a state that no generator can be in
            raise ValueError(
                f"The state in {self.folder} is broken: generator of process {rank}: {error}. {advice(self.folder)}"
            ) from error


def _weights(model) -> dict[str, Tensor]:
    """Parameters and buffers that training changes, in place: all but a frozen backbone's."""
    named = model.state_dict()
    return {key: named[key] for key in named if model.trains_backbone or not key.startswith("backbone.")}


def _optimizer_state(model, optimizer) -> tuple[dict[str, int], dict[str, Tensor]]:
    """What an optimizer has of a model's parameters: by their names the steps, and the moments as a state has them."""
    steps, tensors = {}, {}
    for key, parameter in model.named_parameters():
        if parameter in optimizer.state:
            kept = optimizer.state[parameter]
            steps[key] = int(kept["step"])
            tensors |= {f"{moment}.{key}": kept[moment] for moment in MOMENTS}
    return steps, tensors


def _generator_states(device: torch.device) -> dict[str, Tensor]:
    """States of this process's generators, by the names of their tensors."""
    own = {"generator.cpu": torch.get_rng_state()}
    if device.type != "cpu":
        own["generator.device"] = torch.get_device_module(device).get_rng_state()
    return own


def _form(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.dtype
