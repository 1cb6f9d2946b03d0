"""What a callback of the trainer can hear."""


class ContinualCallback:
    """Told by a [`ContinualTrainer`] what happens, on every process; override what you need.

    `trainer.accelerator.is_main_process` tells who should write or print.
    """

    def on_task_begin(self, trainer, task):
        """Before a task's classes are added to the model."""

    def on_log(self, trainer, task, losses: dict[str, float]):
        """Every `logging_steps` steps, with the mean losses since the last time."""

    def on_task_end(self, trainer, task):
        """After a task was learned, evaluated and saved."""

    def on_train_end(self, trainer, content: dict):
        """After the last task, with the content of metrics.json (on the main process; the metrics alone elsewhere)."""
