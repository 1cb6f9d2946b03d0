"""The CPU's fused attention kernel as autograd functions: alone, and joined with one virtual token.

The kernel's backward pass is several times slower in half precision than in float32 at the lengths of a ViT, so it
always runs in float32, which is also the more exact.
"""

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_HALF = (torch.bfloat16, torch.float16)


def _attend(query, key, value, mask, scaling) -> tuple[Tensor, Tensor]:
    """Output (B, H, N, d) and the rows' log-sum-exp (B, H, N)."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, 0.0, False, attn_mask=mask, scale=scaling)


def _gradients(grad, query, key, value, output, lse, mask, scaling) -> tuple[Tensor, Tensor, Tensor]:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    tensors = [tensor.float() if tensor.dtype in _HALF else tensor for tensor in (grad, query, key, value, output)]
    mask = mask.to(tensors[0].dtype) if mask is not None and mask.is_floating_point() else mask
    gradients = kernel(*tensors, lse, 0.0, False, attn_mask=mask, scale=scaling)
    return tuple(gradient.to(grad.dtype) for gradient in gradients)


class TokenAttention(torch.autograd.Function):
    """Attention of N rows over M tokens: (B, H, N, d), twice (B, H, M, d) -> (B, H, N, d)."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        output, lse = _attend(query, key, value, mask, scaling)
        ctx.save_for_backward(query, key, value, mask, output, lse)
        ctx.scaling = scaling
        return output

    @staticmethod
    def backward(ctx, grad):
        query, key, value, mask, output, lse = ctx.saved_tensors
        return *_gradients(grad, query, key, value, output, lse, mask, ctx.scaling), None, None


class GatedAttention(torch.autograd.Function):
    """Attention over N tokens and one virtual token, from the fused kernel and its log-sum-exp.

    With lse the log-sum-exp of a row's own scores, the virtual token takes the share g = sigmoid(b - lse). The output
    and lse' = logaddexp(lse, b) of the joint attention are all that the fused backward needs to be exact for it.
    """

    @staticmethod
    def forward(ctx, query, key, value, bias, prefix_value, mask, scaling):
        output, lse = _attend(query, key, value, mask, scaling)
        gate = torch.sigmoid(bias.unsqueeze(-1) - lse)  # (B, H, N)
        output = torch.lerp(output, prefix_value.unsqueeze(2), gate.unsqueeze(-1).to(output.dtype))
        joint_lse = torch.logaddexp(lse, bias.unsqueeze(-1).to(lse.dtype))
        ctx.save_for_backward(query, key, value, prefix_value, mask, output, joint_lse, gate)
        ctx.scaling = scaling
        return output

    @staticmethod
    def backward(ctx, grad):
        query, key, value, prefix_value, mask, output, joint_lse, gate = ctx.saved_tensors
        grad_query = grad_key = grad_value = None
        if any(ctx.needs_input_grad[:3]):  # nothing before the first prompt layer is trained
            grad_query, grad_key, grad_value = _gradients(
                grad, query, key, value, output, joint_lse, mask, ctx.scaling
            )
        grad_prefix = torch.einsum("bhn,bhnd->bhd", gate.to(grad.dtype), grad)
        along_output = torch.einsum("bhnd,bhnd->bhn", grad, output)  # (B, H, N)
        grad_bias = (grad_prefix * prefix_value).sum(dim=-1) - (gate * along_output).sum(dim=-1)
        return grad_query, grad_key, grad_value, grad_bias.to(gate.dtype), grad_prefix, None, None


def kernel_applies(query: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether the functions here can be used; they drop nothing and give a mask no gradient."""
    on_cpu = query.device.type == "cpu" and not torch.compiler.is_exporting()  # an exported model runs anywhere
    return on_cpu and dropout == 0.0 and not (mask is not None and mask.requires_grad)


def sdpa_attention(module, query, key, value, mask, scaling=None, dropout=0.0, **kwargs):
    """transformers' sdpa attention, (B, H, N, d) -> (B, N, H, d), with a fast backward pass in half precision."""
    if query.dtype in _HALF and torch.is_grad_enabled() and kernel_applies(query, mask, dropout):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return TokenAttention.apply(query, key, value, mask, scaling).transpose(1, 2), None
    kwargs |= {"is_causal": False, "output_attentions": False}
    return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
