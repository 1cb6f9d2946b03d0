"""Being told to stop: SIGTERM and Ctrl-C let the running step end, save where training stands, and leave."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..base.printing import say
from ..sharing.checkpoint import saved_tasks
from ..storage.state_folder import STATE_FOLDER, has_state

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 2.0  # seconds; launchers pass a Ctrl-C on that the terminal has sent to every process already


class TrainingInterrupted(SystemExit):
    """A signal ended the training. As exit status it gives 128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class StopSignals:
    """Hears SIGINT and SIGTERM. Between steps they end the training at once, within steps when a step is done.

    A second signal, two seconds or more after the first, no longer waits for the step. Where Python drops what a
    handler raises (in `__del__` and in callbacks of weak references), the training ends at the next step or stage.
    """

    def __init__(self):
        self.received: int | None = None
        self._waits, self._when = False, 0.0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Take the signals over for a block; in threads other than the main one Python does not allow that."""
        self.received = None
        before = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            # what the parent process wants ignored, as nohup does, stays ignored
            before = {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}
        try:
            for number in before:
                signal.signal(number, self._hear)
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    @contextmanager
    def wait_for_steps(self, accelerator) -> Iterator[None]:
        """A block that asks `agreed` after each step; a signal behind the last one is left to `stop_if_told`."""
        self.stop_if_told(accelerator)
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def stop_if_told(self, accelerator):
        """End the training between two stages, on every process, for a signal that did not end it when it came.

        Args:
            accelerator: of the run; all its processes are at this point.
        """
        stop = self.agreed(accelerator, together=True)
        if stop is not None:
            raise TrainingInterrupted(stop)

    def _hear(self, number: int, frame):
        again = self.received is not None and time.monotonic() - self._when >= PATIENCE
        if self.received is None:
            self.received, self._when = number, time.monotonic()
        if not self._waits or again:
            raise TrainingInterrupted(number)

    def agreed(self, accelerator, together: bool) -> int | None:
        """The signal to stop for after this step, the same on every process.

        Args:
            accelerator: of the run.
            together: whether all processes are at a point where they wait for each other anyway; between such points
                several processes do not stop.
        """
        if accelerator.num_processes == 1:
            return self.received
        if not together:
            return None
        mine = torch.tensor([self.received or 0], device=accelerator.device)
        return int(accelerator.gather(mine).max()) or None


@contextmanager
def interruptible(signals: StopSignals, accelerator, output_dir: str | Path, num_known: int = 0) -> Iterator[None]:
    """A block of a run that signals end cleanly, with a message how to go on.

    Trackers are finished, as behind a whole training.

    Args:
        signals: heard within the block.
        accelerator: of the run.
        output_dir: of the run.
        num_known: tasks that the model knew before the run.
    """
    with signals.heard():
        try:
            yield
        except TrainingInterrupted as stop:
            if accelerator.is_main_process:
                say(f"Stopped by {stop.signal.name}. {how_to_go_on(output_dir, num_known)}", err=True)
            finish_trackers(accelerator)
            raise


def finish_trackers(accelerator):
    """Have the trackers write what they hold; several processes stay connected."""
    while accelerator.trackers:  # not once more in `Accelerator.end_training()`, which some do not take
        accelerator.trackers.pop().finish()


def how_to_go_on(output_dir: str | Path, num_known: int = 0) -> str:
    """What is saved of a run that stops now, and what to do to go on from it; arguments as for `interruptible`."""
    saved = saved_tasks(output_dir, num_known)
    if has_state(output_dir):
        state = Path(output_dir) / STATE_FOLDER
        return f"The training stands in {state}; the same command with --resume goes on from there."
    if saved:
        return f"The last whole task is {saved[-1]}; the same command with --resume goes on behind it."
    return "Nothing was saved yet; the same command begins anew."
