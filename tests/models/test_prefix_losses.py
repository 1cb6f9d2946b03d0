"""The two routing losses, against loops that follow docs/method.md, steps 7 and 8 word by word."""

import copy
import math

import pytest
import torch

from smope_hf.models.prefix_experts import PrefixExperts, membership

HEADS, SIZE, EXPERTS, TOP_K, BATCH, EPSILON = 3, 4, 6, 2, 5, 0.4


def make_experts(dtype=torch.float64, seed=0, top_k=TOP_K):
    experts = PrefixExperts(HEADS, SIZE, EXPERTS, top_k, noise_epsilon=EPSILON).to(dtype).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (experts.keys, experts.values, experts.previous_keys):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return experts


def draw_scores(size=1.0, dtype=torch.float64):
    scores = torch.randn(BATCH, HEADS, EXPERTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (size * scores).to(dtype).requires_grad_()


def cross_entropy(logits, target):
    """Of a list of scalars, with the largest taken out so that exp stays finite."""
    largest = max(value.item() for value in logits)
    return largest + torch.stack([(value - largest).exp() for value in logits]).sum().log() - logits[target]


def router_loss(scores, selected):
    total = 0
    for head in range(HEADS):
        for choice in range(selected.shape[-1]):
            losses = []
            for image in range(BATCH):
                values, chosen = scores[image, head], selected[image, head].tolist()
                spread = values.max().item() - values.min().item()  # a number: no gradient goes through it
                noisy = [v if e in chosen else v + EPSILON * spread for e, v in enumerate(values)]
                losses.append(cross_entropy(noisy, chosen[choice]))
            total += sum(losses) / BATCH
    return total


def prototype_loss(experts, marked):
    total = 0
    for head in range(HEADS):
        stored, current = experts.previous_keys[head], experts.keys[head]
        losses = []
        for expert in marked[head]:
            query = stored[expert]
            similarity = [float(query @ other) for other in stored]
            targets = sorted(range(EXPERTS), key=lambda index: -similarity[index])[: experts.top_k]
            logits = [query @ key for key in current]
            losses.append(sum(cross_entropy(logits, target) for target in targets))
        if losses:
            total += sum(losses) / len(losses)
    return total


@pytest.mark.parametrize("top_k", [1, TOP_K, EXPERTS])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_router_loss_and_its_gradient(size, top_k):
    experts, scores = make_experts(top_k=top_k), draw_scores(size)
    selected = experts.select(scores)
    found, expected = experts.router_loss(scores, selected), router_loss(scores, selected)
    assert found.shape == ()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(loss, scores)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert ours.abs().max() > 1e-3 or top_k == EXPERTS


def test_no_gradient_goes_through_the_range():
    """Moving all scores of an image changes nothing, so a gradient that leaves the range alone sums to 0 per head."""
    experts, scores = make_experts(), draw_scores()
    selected = torch.tensor([4, 5]).expand(BATCH, HEADS, TOP_K)
    (gradient,) = torch.autograd.grad(experts.router_loss(scores, selected), scores)
    chosen = torch.zeros(EXPERTS, dtype=torch.bool)
    chosen[4:] = True
    spread = (scores.amax(dim=-1, keepdim=True) - scores.amin(dim=-1, keepdim=True)).detach()
    share = torch.softmax(scores.detach() + EPSILON * spread * ~chosen, dim=-1)
    torch.testing.assert_close(gradient, (TOP_K * share - chosen.double()) / BATCH, rtol=1e-10, atol=1e-12)


def test_router_loss_is_a_mean_over_the_batch():
    experts, scores = make_experts(), draw_scores()
    selected = experts.select(scores)
    whole = experts.router_loss(scores, selected)
    each = torch.stack([experts.router_loss(scores[i : i + 1], selected[i : i + 1]) for i in range(BATCH)])
    torch.testing.assert_close(whole, each.mean(), rtol=1e-12, atol=0)


def test_router_loss_of_equal_scores():
    scores = torch.full((BATCH, HEADS, EXPERTS), 7.0)
    experts = make_experts(torch.float32)
    expected = torch.tensor(HEADS * TOP_K * math.log(EXPERTS))
    torch.testing.assert_close(experts.router_loss(scores, experts.select(scores)), expected)


@pytest.mark.parametrize("size", [1e4, 1e6])
def test_routing_losses_of_very_large_scores_are_finite(size):
    experts, scores = make_experts(torch.float32), draw_scores(size, torch.float32)
    with torch.no_grad():
        experts.previous_keys.mul_(size)
    experts.frequently_used[:] = True
    loss = experts.router_loss(scores, experts.select(scores)) + experts.prototype_loss()
    gradients = torch.autograd.grad(loss, [scores, experts.keys])
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


MARKS = [[0, 3], [], [1, 2, 5]]


def mark(experts, marks):
    for head, ids in enumerate(marks):
        experts.frequently_used[head, ids] = True
    return experts


@pytest.mark.parametrize("top_k", [1, TOP_K, EXPERTS])
@pytest.mark.parametrize("marks", [MARKS, [[4], [4], [4]], [list(range(EXPERTS))] * HEADS])
def test_prototype_loss_and_its_gradient(marks, top_k):
    """A mean over each head's marked experts alone; a head without any adds nothing."""
    experts = mark(make_experts(top_k=top_k), marks)
    found, expected = experts.prototype_loss(), prototype_loss(experts, marks)
    assert found.shape == ()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(loss, experts.keys)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for head, ids in enumerate(marks):
        assert bool(ours[head].any()) == bool(ids)


def test_prototype_loss_without_marks_is_zero_with_a_zero_gradient():
    experts = make_experts()
    loss = experts.prototype_loss()
    (gradient,) = torch.autograd.grad(loss, experts.keys)
    assert loss.item() == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def test_prototype_targets_are_those_of_the_stored_keys():
    """The current keys may have changed places meanwhile; what an expert attracted before is in the stored ones."""
    experts = mark(make_experts(), MARKS)
    before = experts.prototype_loss()
    with torch.no_grad():
        experts.keys.copy_(experts.previous_keys)
    kept = experts.prototype_loss()
    assert kept < before
    torch.testing.assert_close(kept, prototype_loss(experts, MARKS), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_round_the_losses(dtype):
    experts = mark(make_experts(torch.float32), MARKS)
    scores = draw_scores(dtype=torch.float32)
    selected = experts.select(scores)
    expected = experts.router_loss(scores, selected), experts.prototype_loss()
    with torch.autocast("cpu", dtype=dtype):
        found = experts.router_loss(scores, selected), experts.prototype_loss()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_prototype_targets_are_computed_once_for_a_task(monkeypatch):
    experts = make_experts()
    experts.frequently_used[:] = True
    counted = []
    monkeypatch.setattr(
        "smope_hf.models.prefix_experts.membership", lambda *given: counted.append(1) or membership(*given)
    )
    first = experts.prototype_targets()
    for _ in range(3):
        experts.prototype_loss()
        with torch.no_grad():
            experts.keys.add_(1)  # a step
    assert len(counted) == 1 and experts.prototype_targets() is first


@pytest.mark.parametrize("how", ["a new task", "written to", "replaced", "loaded", "copied"])
def test_prototype_targets_follow_the_stored_queries(how):
    experts = make_experts()
    before = experts.prototype_targets()
    assert experts.previous_keys._version == 1
    other = torch.randn(experts.keys.shape, generator=torch.Generator().manual_seed(9), dtype=experts.keys.dtype)
    if how == "a new task":
        with torch.no_grad():
            experts.keys.copy_(other)
        experts.begin_task()
    elif how == "written to":
        experts.previous_keys.copy_(other)
    elif how == "replaced":
        experts.previous_keys = other.mul_(1)  # written to as often as the one before
        assert other._version == 1
    elif how == "loaded":
        experts.load_state_dict({**experts.state_dict(), "previous_keys": other})
    else:
        experts = copy.deepcopy(experts)
        experts.previous_keys.copy_(other)
    expected = membership((other @ other.mT).topk(experts.top_k, dim=-1).indices, other.shape[1])
    assert torch.equal(experts.prototype_targets(), expected) and not torch.equal(before, expected)


def test_prototype_loss_of_a_model_made_in_inference_mode():
    with torch.inference_mode():
        experts = copy.deepcopy(make_experts())
        experts.frequently_used[:] = True
        first = experts.prototype_loss()
        experts.previous_keys.neg_().add_(torch.arange(EXPERTS)[:, None])
        assert experts.prototype_loss() != first
