"""What a callback of the trainer can hear."""


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
