"""Counts the FLOPs of what torch is asked to do, the CPU's fused attention kernel among it."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _forward(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(grad, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of a call, a multiplication and an addition counted as two; elementwise operations count nothing.

    torch's own counter knows the attention kernels of CUDA but not the CPU's: without it long prefixes cost nothing.
    """
    known = {_FORWARD: _forward, _BACKWARD: _backward}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        run()
    return counter.get_total_flops()
