"""Attention with prefixes, written out plainly."""

from torch import nn

from smope_hf.models import prefix_experts
from smope_hf.models.prefix_experts import BINDING, extra_key_attention, fused_attention

BATCH, HEADS, TOKENS, SIZE, EXPERTS = 3, 2, 7, 5, 6


SCALING = SIZE**-0.5


def attention_module(experts):
    module = nn.Module().eval()
    if experts is not None:
        module.__dict__[BINDING] = experts
    return module


def gated(experts, query, key, value, mask):
    return fused_attention(attention_module(experts), query, key, value, mask, scaling=SCALING)[0]


def extra_key(experts, query, key, value, mask):
    bias, prefix_value = experts.virtual_token(*experts(query), SCALING)
    return extra_key_attention(query, key, value, bias, prefix_value.to(value.dtype), mask, SCALING, 0.0).transpose(
        1, 2
    )


def plain(experts, query, key, value, mask):
    return prefix_experts.plain_attention(attention_module(experts), query, key, value, mask, scaling=SCALING)[0]
