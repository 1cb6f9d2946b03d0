"""Prefix experts: routing, attention with prefixes, and the two routing losses (docs/method.md, steps 1 to 8).

Shapes: B images, H heads, N tokens, d head size, E experts, K selected experts.
"""

import contextlib
import zlib
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers import initialization as init

from .cpu_attention import GatedAttention, kernel_applies, sdpa_attention
from .running_pass import Pass, running_pass

# Names in transformers' AttentionInterface. Code that came with a repository beside an installed smope_hf has its own.
_COPY = "" if __package__ == "smope_hf.models" else f"_{zlib.crc32(__name__.encode()):08x}"
FUSED, PLAIN = f"smope{_COPY}", f"smope_eager{_COPY}"
BINDING = "smope_prefix_experts"  # where an attention module finds its experts


class RoutedPass(Pass):
    """A forward pass through prefix experts.

    Args:
        dense: whether all experts are on in this pass; None for what they say themselves.
        routing: "masked" or "unmasked" in this pass; None for what they say themselves.
    """

    def __init__(self, dense: bool | None = None, routing: str | None = None):
        super().__init__()
        self.dense, self.routing = dense, routing
        self.routes: dict | None = {}  # experts -> scores, selected; None once they have been collected

    def note(self, experts: nn.Module, scores: Tensor, selected: Tensor | None):
        """Keep what one layer's experts decide, but not when gradient checkpointing runs the layer again."""
        if self.routes is not None:
            self.routes[experts] = scores, selected

    def collect(self, layers: Iterable[nn.Module]) -> list[tuple[Tensor, Tensor | None]]:
        """The scores (B, H, E) and selected experts (B, H, K; None in dense mode) of each layer, kept no longer.

        Raises:
            RuntimeError: when the backbone's attention did not call a layer's experts at all.
        """
        routes, self.routes = self.routes, None
        if not all(experts in routes for experts in layers):
            raise RuntimeError(
                "The backbone's attention ran without its prefix experts, so these results would not be SMoPE's. Its "
                "attention implementation was changed from outside: call `set_attn_implementation('sdpa')` or "
                "`set_attn_implementation('eager')` on the SMoPE model, not on its backbone."
            )
        return [routes[experts] for experts in layers]


class PrefixExperts(nn.Module):
    """The shared prompt of one attention layer: per head, E prefix keys and values of which an image uses K.

    Args:
        num_heads: attention heads H of the layer.
        head_dim: size d of one head.
        num_experts: prefix key/value pairs E per head.
        top_k: experts K that each image switches on per head, 1 to E.
        noise_epsilon: share of the score range taken off frequently used experts in training, 0 to 1.
        routing: "masked" keeps experts that were never used out of evaluation; "unmasked" does not.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_experts: int = 25,
        top_k: int = 5,
        noise_epsilon: float = 0.4,
        routing: str = "masked",
    ):
        super().__init__()
        shape = (num_heads, num_experts, head_dim)
        self.top_k, self.noise_epsilon, self.routing = top_k, noise_epsilon, routing
        self.dense = False
        self.keys = nn.Parameter(torch.empty(shape))  # (H, E, d)
        self.values = nn.Parameter(torch.empty(shape))  # (H, E, d)
        self.register_buffer("usage_counts", torch.zeros(shape[:2], dtype=torch.long))  # (H, E)
        self.register_buffer("frequently_used", torch.zeros(shape[:2], dtype=torch.bool))  # (H, E)
        self.register_buffer("previous_keys", torch.zeros(shape))  # (H, E, d)
        self._targets = None  # see `prototype_targets`

    def reset_parameters(self):
        """Start keys and values uniform in [0, 1), as published, with nothing used, marked or remembered."""
        init.uniform_(self.keys)
        init.uniform_(self.values)
        for buffer in (self.usage_counts, self.frequently_used, self.previous_keys):
            init.zeros_(buffer)

    def extra_repr(self) -> str:
        heads, experts, size = self.keys.shape
        return f"heads={heads}, experts={experts}, head_dim={size}, top_k={self.top_k}, routing={self.routing}"

    def score(self, query: Tensor) -> Tensor:
        """Step 1: one unscaled score per expert for the whole image, in float32: (B, H, N, d) -> (B, H, E)."""
        with without_autocast(query):
            mean_query = at_least_float32(query).mean(dim=2)  # (B, H, d)
            return torch.einsum("bhd,hed->bhe", mean_query, at_least_float32(self.keys))

    def in_pass(self, setting: str) -> bool | str:
        """`dense` or `routing`, as the running pass wants it, or else as these experts are set."""
        wanted = getattr(running_pass(), setting, None)
        return getattr(self, setting) if wanted is None else wanted

    def penalty(self) -> Tensor | None:
        """Step 2: the share of the score range that each expert loses at selection, (H, E), or None for none."""
        if self.training:
            return self.noise_epsilon * self.frequently_used
        return 2.0 * (self.usage_counts == 0) if self.in_pass("routing") == "masked" else None

    def select(self, scores: Tensor) -> Tensor:
        """Step 2: ids of the K best experts of each image and head after the penalty: (B, H, E) -> (B, H, K)."""
        scores, penalty = scores.detach(), self.penalty()
        if penalty is not None:
            scores = scores - penalty * score_range(scores)
        return scores.topk(self.top_k, dim=-1).indices

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """Score and select for one batch, and let the pass note both: (B, H, N, d) -> scores, selected."""
        scores = self.score(query)
        selected = None if self.in_pass("dense") else self.select(scores)
        self.note(scores, selected)
        return scores, selected

    def note(self, scores: Tensor, selected: Tensor | None):
        """Keep both for the losses, where the model's forward pass runs."""
        running = running_pass()
        if isinstance(running, RoutedPass):
            running.note(self, scores, selected)

    def router_loss(self, scores: Tensor, selected: Tensor) -> Tensor:
        """Step 7: cross-entropy towards the selected experts, summed over heads and K, mean over the batch."""
        chosen = membership(selected, scores.shape[-1])  # (B, H, E)
        noisy = scores + self.noise_epsilon * score_range(scores).detach() * ~chosen
        return cross_entropy_towards(noisy, chosen).sum(dim=1).mean()

    def prototype_targets(self) -> Tensor:
        """Step 8: the K experts that each stored query attracted before, bool (H, E, E).

        The stored queries stay as they are for a whole task, and so do these: computed once, and anew when
        `previous_keys` is another tensor or was written to. A compiled graph cannot ask that, and computes them anew.
        """
        stored = self.previous_keys
        if torch.compiler.is_compiling() or stored.is_inference():  # no writes are counted
            return self._prototype_targets()
        kept = self._targets
        if kept is None or kept[0] is not stored or kept[1] != stored._version:
            kept = self._targets = stored, stored._version, self._prototype_targets()
        return kept[2]

    def _prototype_targets(self) -> Tensor:
        previous = at_least_float32(self.previous_keys)
        return membership((previous @ previous.mT).topk(self.top_k, dim=-1).indices, previous.shape[1])

    def prototype_loss(self) -> Tensor:
        """Step 8: marked experts keep attracting what they attracted before; 0 while none is marked."""
        previous = at_least_float32(self.previous_keys)  # (H, E, d), each row a stored query
        with without_autocast(previous):
            loss = cross_entropy_towards(previous @ at_least_float32(self.keys).mT, self.prototype_targets())  # (H, E)
        marked = self.frequently_used
        return ((loss * marked).sum(dim=-1) / marked.sum(dim=-1).clamp(min=1)).sum()

    @torch.no_grad()
    def update_usage(self, scores: Tensor):
        """Step 5: count the top K of the raw scores (B, H, E), before any penalty."""
        self.usage_counts += membership(scores.topk(self.top_k, dim=-1).indices, scores.shape[-1]).sum(dim=0)

    @torch.no_grad()
    def begin_task(self):
        """Step 6: remember the keys, and mark experts counted at least as often as the mean used expert."""
        self.previous_keys.copy_(self.keys)
        used = (self.usage_counts > 0).sum(dim=-1, keepdim=True)  # (H, 1)
        total = self.usage_counts.sum(dim=-1, keepdim=True)
        self.frequently_used |= (self.usage_counts * used >= total) & (used > 0)

    def virtual_token(self, scores: Tensor, selected: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
        """Step 3, collapsed: all rows see the same K scores, so K experts act as one key with a fixed score.

        Returns:
            Its score b = logsumexp(s / sqrt(d)) over the selected experts, (B, H), and its value
            u = softmax(s / sqrt(d)) . values, (B, H, d), both float32.
        """
        scores = scores * scaling
        if selected is not None:
            scores = scores.masked_fill(~membership(selected, scores.shape[-1]), float("-inf"))
        with without_autocast(scores):
            value = torch.einsum("bhe,hed->bhd", scores.softmax(dim=-1), at_least_float32(self.values))
        return scores.logsumexp(dim=-1), value


def at_least_float32(tensor: Tensor) -> Tensor:
    """Routing runs in float32 also under half precision, so that rounding does not pick the experts."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Keep autocast from lowering the precision of the routing; devices without autocast need nothing."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def score_range(scores: Tensor) -> Tensor:
    """max - min over the experts: (B, H, E) -> (B, H, 1)."""
    return scores.amax(dim=-1, keepdim=True) - scores.amin(dim=-1, keepdim=True)


def membership(indices: Tensor, size: int) -> Tensor:
    """Which of `size` entries are listed: (..., K) -> bool (..., size)."""
    empty = torch.zeros(*indices.shape[:-1], size, dtype=torch.bool, device=indices.device)
    return empty.scatter(-1, indices, True)


def cross_entropy_towards(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over a set of target classes: logits and bool targets (..., E) -> (...)."""
    return -(F.log_softmax(logits, dim=-1) * targets).sum(dim=-1)


def extra_key_attention(query, key, value, bias, prefix_value, mask, scaling, dropout):
    """The same through the public fused attention: one zero key with an additive bias. For any device and mask."""
    batch, heads, tokens, size = query.shape
    key = torch.cat([key, key.new_zeros(batch, heads, 1, size)], dim=2)  # (B, H, N + 1, d)
    value = torch.cat([value, prefix_value.unsqueeze(2)], dim=2)
    limit = torch.finfo(query.dtype).max
    column = bias.clamp(-limit, limit)[:, :, None, None].to(query.dtype)  # (B, H, 1, 1)
    if mask is None:
        mask = F.pad(column, (tokens, 0)).expand(-1, -1, tokens, -1)  # a stride of 0 over the rows: no (N, N + 1)
    else:
        mask = torch.cat([mask.expand(batch, heads, tokens, tokens), column.expand(-1, -1, tokens, -1)], dim=-1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)


def experts_of(module: nn.Module) -> PrefixExperts | None:
    """The experts of an attention module; None for a layer that has none, and in a pass of the backbone alone."""
    running = running_pass()
    return None if running is not None and running.bare else module.__dict__.get(BINDING)


def fused_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention of one layer, (B, H, N, d) each -> (B, N, H, d); layers without experts use plain sdpa.

    In a pass that is to give the attention weights, the plain form runs.
    """
    running = running_pass()
    if running is not None and running.weights:
        return plain_attention(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    experts = experts_of(module)
    if experts is None:
        return sdpa_attention(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias, prefix_value = experts.virtual_token(*experts(query), scaling)
    prefix_value = prefix_value.to(value.dtype)
    if kernel_applies(query, attention_mask, dropout):
        output = GatedAttention.apply(query, key, value, bias, prefix_value, attention_mask, scaling)
    else:
        output = extra_key_attention(query, key, value, bias, prefix_value, attention_mask, scaling, dropout)
    return output.transpose(1, 2), None  # (B, N, H, d)


def plain_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Step 3 word for word: K prefix columns before the N token columns, one softmax, all weights in memory.

    Returns:
        Output (B, N, H, d) and weights (B, H, N, K + N); without experts (B, H, N, N), in dense mode (B, H, N, E + N).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = at_least_float32(query @ key.mT * scaling)  # (B, H, N, N)
    if attention_mask is not None:
        weights = weights + attention_mask
    experts = experts_of(module)
    if experts is not None:
        scores, selected = experts(query)
        batch, heads, tokens, size = query.shape
        prefix_values = experts.values.to(value.dtype).expand(batch, -1, -1, -1)  # (B, H, E, d)
        if selected is not None:
            scores = scores.gather(-1, selected)  # (B, H, K)
            prefix_values = prefix_values.gather(2, selected.unsqueeze(-1).expand(-1, -1, -1, size))  # (B, H, K, d)
        columns = (scores * scaling).unsqueeze(2).expand(-1, -1, tokens, -1)  # (B, H, N, K)
        weights = torch.cat([columns, weights], dim=-1)  # (B, H, N, K + N)
        value = torch.cat([prefix_values, value], dim=2)  # (B, H, K + N, d)
    weights = weights.softmax(dim=-1).to(value.dtype)
    output = F.dropout(weights, p=dropout, training=module.training) @ value
    return output.transpose(1, 2).contiguous(), weights


AttentionInterface.register(FUSED, fused_attention)
AttentionInterface.register(PLAIN, plain_attention)
