"""The process group of several processes: open as long as their program, and ended before the interpreter is."""

import atexit

import torch.distributed


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
