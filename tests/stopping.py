"""Stopping a run where a test says so."""

from smope_hf.training.callbacks import ContinualCallback


class Stop(ContinualCallback):
    """Ends a run behind one of its tasks, as a lost machine would.

    Args:
        index: of the task.
    """

    def __init__(self, index: int = 1):
        self.index = index

    def on_task_end(self, trainer, task):
        if task.index == self.index:
            raise KeyboardInterrupt
