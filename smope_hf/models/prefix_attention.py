"""Attention with prefixes of each image: the plain prefix tuning that the rival prompt methods share."""

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from .cpu_attention import sdpa_attention
from .prefix_experts import at_least_float32
from .running_pass import Pass, running_pass

_COPY = "" if __package__ == "smope_hf.models" else f"_{zlib.crc32(__name__.encode()):08x}"
FUSED, PLAIN = f"prompted{_COPY}", f"prompted_eager{_COPY}"  # names in transformers' AttentionInterface
BINDING = "smope_prefix"  # where an attention module finds which prefix of a pass is its own


class PromptedPass(Pass):
    """A forward pass with prefixes.

    Args:
        chosen: what the method has chosen for the images; see `PromptMethod.choose`.
        prefixes: of each prompt layer, keys and values (B or 1, H, P, d), or None for no prefix.
    """

    def __init__(self, chosen, prefixes: list[tuple[Tensor, Tensor] | None]):
        super().__init__()
        self.chosen, self.prefixes = chosen, prefixes
        self.used = [False] * len(prefixes)  # whether the layer's attention has run with it

    def check_used(self):
        """Check that the pass went through its prefixes.

        Raises:
            RuntimeError: when the backbone's attention did not see one.
        """
        if not all(self.used):
            raise RuntimeError(
                "The backbone's attention ran without its prompts, so these results would be the bare backbone's. Its "
                "attention implementation was changed from outside: call `set_attn_implementation('sdpa')` or "
                "`set_attn_implementation('eager')` on the model, not on its backbone."
            )


def with_prefix(module, key: Tensor, value: Tensor, mask: Tensor | None):
    """Put the prefix before the tokens: keys and values (B, H, P + N, d), and a mask that lets every row see it."""
    running, position = running_pass(), module.__dict__.get(BINDING)
    if position is None or not isinstance(running, PromptedPass):
        return key, value, mask
    running.used[position] = True
    prefix = running.prefixes[position]
    if prefix is None:
        return key, value, mask
    batch = (key.shape[0], -1, -1, -1)
    key = torch.cat([prefix[0].to(key.dtype).expand(batch), key], dim=2)
    value = torch.cat([prefix[1].to(value.dtype).expand(batch), value], dim=2)
    return key, value, None if mask is None else F.pad(mask, (prefix[0].shape[2], 0))


def fused_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention of one layer, (B, H, N, d) each -> (B, N, H, d), in torch's fused form.

    In a pass that is to give the attention weights, the plain form runs.
    """
    running = running_pass()
    if running is not None and running.weights:
        return plain_attention(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    key, value, mask = with_prefix(module, key, value, attention_mask)
    return sdpa_attention(module, query, key, value, mask, scaling, dropout, **kwargs)


def plain_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """The same with all weights in memory.

    Returns:
        Output (B, N, H, d) and weights (B, H, N, P + N).
    """
    key, value, mask = with_prefix(module, key, value, attention_mask)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = at_least_float32(query @ key.mT * scaling)
    weights = (weights if mask is None else weights + mask).softmax(dim=-1).to(value.dtype)
    output = F.dropout(weights, p=dropout, training=module.training) @ value
    return output.transpose(1, 2).contiguous(), weights


AttentionInterface.register(FUSED, fused_attention)
AttentionInterface.register(PLAIN, plain_attention)
