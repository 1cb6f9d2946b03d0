"""Attention with prefix experts: every form equals attention over explicit prefixes, in values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from attentions import BATCH, EXPERTS, HEADS, SCALING, SIZE, TOKENS, attention_module, extra_key, gated, plain
from torch.utils._python_dispatch import TorchDispatchMode

from smope_hf.models import prefix_experts
from smope_hf.models.cpu_attention import GatedAttention
from smope_hf.models.prefix_experts import PrefixExperts, fused_attention

LEAVES = ("query", "key", "value", "prefix keys", "prefix values")


def make_experts(num_experts=EXPERTS, top_k=2, dtype=torch.float64, seed=0, **fields):
    experts = PrefixExperts(HEADS, SIZE, num_experts, top_k, **fields).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    return experts


def make_tokens(layout="projections", dtype=torch.float64, seed=1):
    """Leaf tensors as a backbone's projections give them, and the (B, H, N, d) views that attention sees."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    if layout == "one projection":
        leaves = [draw(BATCH, TOKENS, 3, HEADS, SIZE)]
        views = [part.transpose(1, 2) for part in leaves[0].unbind(dim=2)]
    else:
        leaves = [draw(BATCH, TOKENS, HEADS, SIZE) for _ in range(3)]
        views = [leaf.transpose(1, 2) for leaf in leaves]
    assert not any(view.is_contiguous() for view in views)
    return leaves, views


def make_mask(kind, dtype=torch.float64):
    shapes = {
        "heads": (1, HEADS, TOKENS, TOKENS),
        "full": (BATCH, HEADS, TOKENS, TOKENS),
        "rows": (BATCH, 1, 1, TOKENS),
    }
    if kind is None:
        return None
    mask = torch.randn(shapes[kind], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return mask.masked_fill(mask > 1.5, float("-inf")).to(dtype)


FORMS = {"gated": gated, "extra key": extra_key, "plain": plain}


def written_out(experts, query, key, value, mask, count):
    """The definition, an image and a head at a time: softmax over the K best prefixes and the N tokens."""
    output = query.new_zeros(BATCH, TOKENS, HEADS, SIZE)
    mask = torch.zeros(BATCH, HEADS, TOKENS, TOKENS) if mask is None else mask.expand(BATCH, HEADS, TOKENS, TOKENS)
    for image in range(BATCH):
        for head in range(HEADS):
            rows = query[image, head]  # (N, d)
            mean_query = sum(rows) / TOKENS
            scores = [(mean_query * prefix_key).sum() for prefix_key in experts.keys[head]]
            best = sorted(range(len(scores)), key=lambda expert: -scores[expert].item())[:count]
            for token in range(TOKENS):
                own = [(rows[token] * key[image, head, other]).sum() for other in range(TOKENS)]
                logits = torch.stack([scores[expert] for expert in best] + own) / math.sqrt(SIZE)
                logits = logits + F.pad(mask[image, head, token], (count, 0))
                weights = logits.exp() / logits.exp().sum()
                values = torch.cat([experts.values[head, best], value[image, head]])
                output[image, token, head] = (weights[:, None] * values).sum(dim=0)
    return output


def value_and_gradients(output, leaves, experts):
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = [*leaves, experts.keys, experts.values]
    return [output, *torch.autograd.grad((output.double() * weights).sum(), wanted)]


@pytest.mark.parametrize("mask", [None, "heads", "full", "rows"])
@pytest.mark.parametrize("routing", ["sparse", "one", "all", "dense"])
def test_every_form_equals_attention_over_explicit_prefixes(routing, mask):
    count = {"sparse": 2, "one": 1, "all": EXPERTS, "dense": EXPERTS}[routing]
    experts = make_experts(top_k=2 if routing == "dense" else count)
    experts.dense = routing == "dense"
    leaves, tokens = make_tokens()
    expected = value_and_gradients(written_out(experts, *tokens, make_mask(mask), count), leaves, experts)
    assert all(tensor.abs().max() > 1e-3 for tensor in expected)
    for name, form in FORMS.items():
        found = value_and_gradients(form(experts, *tokens, make_mask(mask)), leaves, experts)
        for part, ours, theirs in zip(("output", *LEAVES), found, expected, strict=True):
            message = f"{name}: {part}"
            torch.testing.assert_close(
                ours, theirs, rtol=1e-10, atol=1e-10, msg=lambda text, m=message: f"{m}: {text}"
            )


@pytest.mark.parametrize("form", FORMS)
def test_one_projection_for_query_key_and_value(form):
    experts = make_experts()
    leaves, tokens = make_tokens("one projection")
    expected = value_and_gradients(written_out(experts, *tokens, None, 2), leaves, experts)
    found = value_and_gradients(FORMS[form](experts, *tokens, None), leaves, experts)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize("mask", [None, "full"])
def test_gated_attention_passes_gradcheck(mask, shift):
    _, tokens = make_tokens()
    tokens = [token.detach().requires_grad_() for token in tokens]
    generator = torch.Generator().manual_seed(4)
    bias = (torch.randn(BATCH, HEADS, generator=generator, dtype=torch.float64) + shift).requires_grad_()
    value = torch.randn(BATCH, HEADS, SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = make_mask(mask)

    def run(*inputs):
        return GatedAttention.apply(*inputs, mask, SCALING)

    assert torch.autograd.gradcheck(run, (*tokens, bias, value), fast_mode=False)


@pytest.mark.parametrize("form", FORMS)
def test_first_prompt_layer_gives_the_experts_their_gradients(form):
    """Nothing before the first prompt layer is trained, so its query, key and value need no gradient."""
    experts = make_experts()
    _, tokens = make_tokens()
    tokens = [token.detach() for token in tokens]
    expected = value_and_gradients(written_out(experts, *tokens, None, 2), [], experts)
    found = value_and_gradients(FORMS[form](experts, *tokens, None), [], experts)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        assert ours.abs().max() > 1e-3


def test_frozen_keys_and_values_with_a_trained_query():
    experts = make_experts()
    (leaf, *_), (query, key, value) = make_tokens()
    found, expected = (
        torch.autograd.grad(form(query, key.detach(), value.detach()).sum(), leaf)
        for form in (
            lambda *tokens: gated(experts, *tokens, None),
            lambda *tokens: written_out(experts, *tokens, None, 2),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_cpu_runs_the_kernel_that_needs_no_mask(monkeypatch):
    """Without dropout the fused form must not fall back to the slower one."""
    monkeypatch.setattr(prefix_experts, "extra_key_attention", None)
    gated(make_experts(), *make_tokens()[1], None)


@pytest.mark.parametrize("mask", [None, "full"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bound", [True, False], ids=["experts", "no experts"])
def test_half_precision_gives_the_gradients_of_full_precision(bound, dtype, mask):
    """In a layer with experts and in one without; the kernel itself goes back in float32, where it is fast."""

    class Watch(TorchDispatchMode):
        kinds = set()

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if "flash_attention_for_cpu_backward" in str(operation):
                self.kinds.add(args[0].dtype)
            return operation(*args, **(kwargs or {}))

    found = []
    for kind in (dtype, torch.float64):
        leaves, tokens = make_tokens(dtype=dtype)
        leaves = [leaf.detach().to(kind).requires_grad_() for leaf in leaves]
        tokens = [leaf.transpose(1, 2) for leaf in leaves]
        experts = make_experts(dtype=dtype).to(kind) if bound else None
        mask_of_kind = make_mask(mask)
        mask_of_kind = None if mask_of_kind is None else mask_of_kind.to(dtype).to(kind)
        output = gated(experts, *tokens, mask_of_kind)
        with Watch() as watch:
            gradients = torch.autograd.grad(output.double().square().sum(), leaves)
        found.append([output, *gradients])
        if kind == dtype:
            assert watch.kinds == {torch.float32}
    for half, full in zip(*found, strict=True):
        torch.testing.assert_close(half.double(), full, rtol=0.05, atol=0.03 * full.abs().max().item())


def test_dropout_falls_on_tokens_and_experts_alike():
    """The mean over many draws of dropout is attention without it, and single draws differ."""
    experts, (_, tokens) = make_experts(), make_tokens()
    module = attention_module(experts).train()
    torch.manual_seed(0)
    with torch.no_grad():
        expected = gated(experts, *tokens, None)
        draws = torch.stack(
            [fused_attention(module, *tokens, None, scaling=SCALING, dropout=0.2)[0] for _ in range(4000)]
        )
    assert draws.std(dim=0).min() > 0.01
    error = (draws.mean(dim=0) - expected).abs() / (draws.std(dim=0) / math.sqrt(len(draws)))
    assert error.max() < 5


@pytest.mark.parametrize("form", ["gated", "plain"])
def test_layers_without_experts_attend_to_their_tokens_alone(form):
    _, (query, key, value) = make_tokens()
    expected = F.scaled_dot_product_attention(query, key, value, scale=SCALING).transpose(1, 2)
    torch.testing.assert_close(FORMS[form](None, query, key, value, None), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_the_experts_does_not_matter(form):
    experts, (_, tokens) = make_experts(), make_tokens()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = make_experts()
    with torch.no_grad():
        moved.keys.copy_(experts.keys[:, order])
        moved.values.copy_(experts.values[:, order])
        scores, selected = experts(tokens[0])
        moved_scores, moved_selected = moved(tokens[0])
        torch.testing.assert_close(moved_scores, scores[..., order], rtol=1e-12, atol=1e-12)
        assert torch.equal(order[moved_selected].sort(dim=-1).values, selected.sort(dim=-1).values)
        found, expected = (FORMS[form](which, *tokens, None) for which in (moved, experts))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e4, 1e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_very_large_scores_stay_finite(form, dtype, size, sign):
    """An image is then all experts (the best one's value) or all tokens, and no gradient is lost to NaN."""
    experts = make_experts(dtype=dtype)
    leaves, tokens = make_tokens(dtype=dtype)
    with torch.no_grad():
        tokens[0].fill_(16)
        steps = torch.linspace(1, 2, EXPERTS)[None, :, None]
        experts.keys.copy_((sign * size / (16 * SIZE) * steps).expand_as(experts.keys))
    scores = experts.score(tokens[0])
    assert scores.isfinite().all() and 0.99 * size < scores.abs().min() < scores.abs().max() < 2.01 * size
    output = FORMS[form](experts, *tokens, None)
    found = value_and_gradients(output, leaves, experts)
    assert all(tensor.isfinite().all() for tensor in found)
    if sign > 0:
        best = experts.values[torch.arange(HEADS), scores.argmax(dim=-1)].detach()  # (B, H, d)
        torch.testing.assert_close(output.detach(), best[:, None].expand_as(output))
    else:
        own = F.scaled_dot_product_attention(*tokens, scale=SCALING).transpose(1, 2)
        torch.testing.assert_close(output, own, rtol=0.02, atol=0.02)
