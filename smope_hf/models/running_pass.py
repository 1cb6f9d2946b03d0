"""What a forward pass knows while it runs. It belongs to the pass, so that several threads can ask one model."""

import contextlib
import threading
from collections.abc import Callable, Iterator


class Pass:
    """One forward pass through a backbone; a kind of model adds what its parts in the attention want to know.

    Args:
        bare: whether the backbone runs alone, without the parts in its attention.
    """

    def __init__(self, bare: bool = False):
        self.bare = bare
        self.weights = False  # whether the attention weights are asked for


class _OfThread(threading.local):
    def __init__(self):  # for each thread anew: torch.compile cannot watch a default of the class
        self.running: Pass | None = None


# torch.compile can trace a thread's own object, but no ContextVar. Not an argument: not every family of
# transformers hands what it does not know on to its attention function.
_THREAD = _OfThread()


def running_pass() -> Pass | None:
    """The pass that this thread runs."""
    return _THREAD.running


@contextlib.contextmanager
def begun(running: Pass | None) -> Iterator[None]:
    """Run a pass within; the one that ran before goes on behind it."""
    before = _THREAD.running
    _THREAD.running = running
    try:
        yield
    finally:
        _THREAD.running = before


def checkpoint_in_pass(checkpoint: Callable, layer: Callable, *args):
    """Gradient checkpointing of a layer that knows its pass again when the backward pass runs it in any thread."""
    running = _THREAD.running

    def layer_in_pass(*args):
        with begun(running):
            return layer(*args)

    return checkpoint(layer_in_pass, *args)
