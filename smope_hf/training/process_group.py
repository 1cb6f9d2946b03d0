"""The process group of several processes: open as long as their program, and ended before the interpreter is."""

import atexit
from collections.abc import Callable
from typing import TypeVar

import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

Result = TypeVar("Result")


def on_main_process(act: Callable[[], Result]) -> Result | None:
    """Have the main process do something before any goes on; called on every process.

    Args:
        act: what to do.

    Returns:
        What it gives, on the main process; None on the others.

    Raises:
        OSError, ValueError: as `act` does, on every process: none waits for one that has failed.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes > 1:
        end_group_at_exit()
    result = failure = None
    if state.is_main_process:
        try:
            result = act()
        except (OSError, ValueError) as error:
            failure = error
    if state.num_processes > 1:
        (failure,) = broadcast_object_list([failure])
    if failure is not None:
        raise failure
    return result


def end_group_at_exit():
    """End a gloo group when the program ends: its threads would abort the process, with another exit status.

    Until then the group stays open, so that a script may evaluate, or train once more, after a training. Other groups
    are left to the program, since ending one of NCCL waits for all processes, and some may have failed.
    """
    atexit.register(_end_gloo_group)


def _end_gloo_group():
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if torch.distributed.get_backend() == torch.distributed.Backend.GLOO:
            torch.distributed.destroy_process_group()
