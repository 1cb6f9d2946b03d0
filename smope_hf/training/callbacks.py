"""What a callback of the trainer can hear, and which ones every trainer has."""

from collections.abc import Callable, Sequence


class ContinualCallback:
    """Told by a [`ContinualTrainer`] what happens, on every process; override what you need.

    `trainer.accelerator.is_main_process` tells who should write or print.
    """

    wants_routing = False  # whether `on_forward` needs the selected experts; for models that have some

    def on_task_begin(self, trainer, task):
        """Before a task's classes are added to the model."""

    def on_forward(self, trainer, task, output, counts: bool):
        """After every forward pass of training, with its output and whether its images count.

        They do not where this process has no share of a small batch, and computes an image of another's in its place.
        """

    def on_log(self, trainer, task, losses: dict[str, float]):
        """Every `logging_steps` steps, with the mean losses since the last time."""

    def on_training_end(self, trainer, task):
        """After the last step of a task, before its statistics are taken and it is saved."""

    def on_save(self, trainer, task, folder):
        """While a task is saved, on the main process alone: `folder` is to become its checkpoint.

        It holds all but its card and its checksums. A file that is added goes with it; nothing in it may be changed.
        """

    def on_task_end(self, trainer, task):
        """After a task was learned, evaluated and saved."""

    def on_train_end(self, trainer, content: dict):
        """After the last task, with the content of metrics.json (on the main process; the metrics alone elsewhere)."""

    def saved_state(self, trainer) -> dict | None:
        """What the callback needs of the task in training when a run goes on in the middle of it, as JSON.

        Asked on every process when `state/` is written; what the main process answers is kept. Default: nothing.
        """
        return None

    def restore_state(self, trainer, state: dict | None):
        """Behind `on_task_begin`, on every process, where a run goes on in the middle of a task.

        Args:
            state: what `saved_state` gave; None when the callback was not there, or gave nothing.
        """


DEFAULT_CALLBACKS: dict[str, Callable[[], ContinualCallback]] = {}
"""What makes the callbacks that every trainer has, by name. They are told first, in this order.

Training knows none of them. Who adds to the package what a run does beside training, as the reports are, enters it
here in `smope_hf/__init__.py`. A factory imports what it needs when it is called, as a trainer is made. These
callbacks keep no state within a task: `saved_state` and `restore_state` are not called.
"""


class TellsCallbacks:
    """Tells callbacks what happens; for [`ContinualTrainer`]."""

    default_callbacks: list[ContinualCallback]
    callbacks: list[ContinualCallback]  # those that the trainer was given

    def _take_callbacks(self, given: Sequence[ContinualCallback]):
        self.default_callbacks = [make() for make in DEFAULT_CALLBACKS.values()]
        self.callbacks = list(given)

    def notify(self, event: str, *what):
        """Call a method of every callback."""
        for callback in (*self.default_callbacks, *self.callbacks):
            self._tell(callback, event, *what)

    @property
    def wants_routing(self) -> bool:
        """Whether a callback needs the selected experts."""
        return any(callback.wants_routing for callback in (*self.default_callbacks, *self.callbacks))

    def _tell(self, callback: ContinualCallback, event: str, *what):
        return getattr(callback, event)(self, *what)

    def _callback_states(self) -> dict[str, dict | None]:
        """What the callbacks keep of a task in training, by name."""
        return {type(callback).__name__: self._tell(callback, "saved_state") for callback in self.callbacks}

    def _restore_callbacks(self, states: dict[str, dict | None]):
        for callback in self.callbacks:
            self._tell(callback, "restore_state", states.get(type(callback).__name__))
