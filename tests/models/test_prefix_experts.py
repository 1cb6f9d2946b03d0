"""Which experts an image switches on, how their use is counted, and which of them are marked (steps 1, 2, 5, 6)."""

import copy

import pytest
import torch
from conftest import tiny_images, tiny_model

from smope_hf.models.prefix_experts import PrefixExperts
from smope_hf.models.running_pass import running_pass

HEADS, SIZE, EXPERTS, TOP_K, TOKENS = 2, 4, 7, 3, 5


def make_experts(seed=0, top_k=TOP_K, **fields):
    experts = PrefixExperts(HEADS, SIZE, EXPERTS, top_k, **fields).eval()
    with torch.no_grad():
        experts.keys.copy_(torch.randn(experts.keys.shape, generator=torch.Generator().manual_seed(seed)))
        experts.values.zero_()
    return experts


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sets(selected):
    return selected.sort(dim=-1).values


# ---------------------------------------------------------------------- scores and selection


def test_scores_are_unscaled_dot_products_with_the_mean_query():
    experts, query = make_experts(), draw(3, HEADS, TOKENS, SIZE)
    scores = experts.score(query)
    assert scores.shape == (3, HEADS, EXPERTS)
    for image in range(3):
        for head in range(HEADS):
            mean_query = sum(query[image, head]) / TOKENS
            for expert in range(EXPERTS):
                expected = sum(a * b for a, b in zip(mean_query, experts.keys[head, expert], strict=True))
                torch.testing.assert_close(scores[image, head, expert], expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("routing", ["masked", "unmasked"])
@pytest.mark.parametrize("scores", ["random", "equal", "two values"])
@pytest.mark.parametrize("top_k", [1, TOP_K, EXPERTS])
def test_exactly_k_different_experts(top_k, scores, routing, training):
    experts = make_experts(top_k=top_k, routing=routing).train(training)
    experts.usage_counts[:, :2] = 5
    experts.frequently_used[:, 1:4] = True
    values = draw(8, HEADS, EXPERTS)
    values = {"random": values, "equal": torch.full_like(values, 3.0), "two values": values.sign()}[scores]
    selected = experts.select(values)
    assert selected.shape == (8, HEADS, top_k)
    assert all(len(set(ids)) == top_k for ids in selected.flatten(0, 1).tolist())


def test_never_used_experts_stay_out_of_masked_evaluation_only():
    scores = draw(200, HEADS, EXPERTS)
    masked, unmasked = make_experts(), make_experts(routing="unmasked")
    for experts in (masked, unmasked):
        experts.usage_counts[0] = torch.tensor([4, 0, 1, 0, 9, 0, 2])
        experts.usage_counts[1] = torch.tensor([0, 0, 0, 1, 1, 1, 0])
    assert set(masked.select(scores)[:, 0].flatten().tolist()) == {0, 2, 4, 6}
    assert set(masked.select(scores)[:, 1].flatten().tolist()) == {3, 4, 5}
    assert set(unmasked.select(scores).flatten().tolist()) == set(range(EXPERTS))
    best = scores.topk(TOP_K).indices
    assert torch.equal(sets(unmasked.select(scores)), sets(best))
    assert torch.equal(sets(masked.train().select(scores)), sets(best))  # the mask is for evaluation alone


def test_with_fewer_used_experts_than_k_the_best_others_fill_up():
    experts, scores = make_experts(), draw(50, HEADS, EXPERTS)
    experts.usage_counts[:, 5] = 1
    selected = experts.select(scores)
    assert bool((selected == 5).any(dim=-1).all())
    others = scores.clone()
    others[..., 5] = float("-inf")
    expected = torch.cat([torch.full((50, HEADS, 1), 5), others.topk(TOP_K - 1).indices], dim=-1)
    assert torch.equal(sets(selected), sets(expected))


def test_frequently_used_experts_lose_their_share_of_the_range_in_training_only():
    """Scores 0 to 10: the marked expert at 9 falls to 9 - epsilon * 10, below the one at 6 if epsilon is above 0.3."""
    scores = torch.tensor([10.0, 9.0, 6.0, 5.0, 4.0, 1.0, 0.0]).expand(1, HEADS, EXPERTS)
    for epsilon, expected in ((0.29, 1), (0.31, 2)):
        experts = make_experts(top_k=2, noise_epsilon=epsilon, routing="unmasked")
        experts.frequently_used[:, 1] = True
        assert experts.train().select(scores)[0].tolist() == [[0, expected]] * HEADS
        assert experts.eval().select(scores)[0].tolist() == [[0, 1]] * HEADS


def test_the_penalty_of_training_ignores_usage_and_that_of_evaluation_ignores_marks():
    experts = make_experts(noise_epsilon=0.4)
    experts.usage_counts[0, :3] = 1
    experts.frequently_used[1, 2:] = True
    torch.testing.assert_close(experts.train().penalty(), 0.4 * experts.frequently_used)
    assert torch.equal(experts.eval().penalty(), 2.0 * (experts.usage_counts == 0))


def test_permuting_the_experts_permutes_the_selection():
    experts, scores = make_experts(noise_epsilon=0.4), draw(30, HEADS, EXPERTS)
    experts.usage_counts[:] = torch.tensor([3, 0, 1, 5, 0, 2, 8])
    experts.frequently_used[:] = torch.tensor([0, 0, 0, 1, 0, 0, 1]).bool()
    order = torch.tensor([6, 2, 0, 5, 1, 3, 4])
    moved = copy.deepcopy(experts)
    for name, buffer in experts.named_buffers():
        moved.get_buffer(name).copy_(buffer[:, order])
    for training in (True, False):
        found = moved.train(training).select(scores[..., order])
        assert torch.equal(sets(order[found]), sets(experts.train(training).select(scores)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e4, 1e6])
def test_selection_among_very_large_scores(dtype, size):
    experts = make_experts(noise_epsilon=0.6).to(dtype)
    with torch.no_grad():
        experts.keys.copy_(size / SIZE / 64 * torch.linspace(1, 3, EXPERTS)[:, None].expand(EXPERTS, SIZE))
    scores, selected = experts.train()(torch.full((2, HEADS, TOKENS, SIZE), 64, dtype=dtype))
    assert scores.dtype == torch.float32 and scores.isfinite().all() and scores.min() > 0.99 * size
    assert torch.equal(sets(selected), torch.tensor([4, 5, 6]).expand(2, HEADS, TOP_K))
    experts.frequently_used[:, 6] = True  # 0.6 of six steps takes the last below the fourth
    assert torch.equal(sets(experts.select(scores)), torch.tensor([3, 4, 5]).expand(2, HEADS, TOP_K))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_float32_scores_select(dtype):
    """Keys so close together that half precision cannot tell them apart."""
    experts = make_experts()
    with torch.no_grad():
        experts.keys.copy_((1 + 1e-5 * torch.arange(EXPERTS))[:, None].expand(EXPERTS, SIZE))
    query = draw(4, HEADS, TOKENS, SIZE).abs().to(dtype)
    expected = experts.score(query.float())
    with torch.autocast("cpu", dtype=dtype):
        rounded = torch.einsum("bhd,hed->bhe", query.mean(dim=2), experts.keys)
        scores, selected = experts(query)
    assert scores.dtype == torch.float32 and torch.equal(scores, expected)
    assert torch.equal(sets(selected), torch.tensor([4, 5, 6]).expand(4, HEADS, TOP_K))
    assert not torch.equal(sets(rounded.topk(TOP_K).indices), sets(selected))


def test_a_model_under_autocast_scores_in_float32():
    model = tiny_model()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(tiny_images(), output_router_scores=True)
    for scores, selected in zip(output.router_scores, output.selected_experts, strict=True):
        assert scores.dtype == torch.float32
        assert not torch.equal(scores, scores.bfloat16().float())
        assert torch.equal(sets(scores.topk(2).indices), sets(selected))


# ---------------------------------------------------------------------- usage and marks


def test_usage_counts_the_top_k_of_the_raw_scores():
    experts, scores = make_experts(), draw(40, HEADS, EXPERTS)
    experts.frequently_used[:, :3] = True
    experts.usage_counts[:, 0] = 100
    expected = experts.usage_counts.clone()
    for image in scores:
        for head, values in enumerate(image.tolist()):
            for expert in sorted(range(EXPERTS), key=lambda index: -values[index])[:TOP_K]:
                expected[head, expert] += 1
    experts.train().update_usage(scores)
    assert torch.equal(experts.usage_counts, expected)
    assert experts.usage_counts.sum(dim=-1).tolist() == [100 + 40 * TOP_K] * HEADS
    experts.eval().update_usage(scores[:1])
    assert experts.usage_counts.sum(dim=-1).tolist() == [100 + 41 * TOP_K] * HEADS


def test_usage_of_any_batch_split_is_the_same():
    whole, parts, scores = make_experts(), make_experts(), draw(20, HEADS, EXPERTS)
    whole.update_usage(scores)
    for part in scores.split([1, 7, 12]):
        parts.update_usage(part)
    assert torch.equal(whole.usage_counts, parts.usage_counts)


@pytest.mark.parametrize(
    ("counts", "marked"),
    [
        ([8, 4, 2, 1, 1, 0, 0], [0, 1]),  # 16 / 5 = 3.2 takes 8 and 4
        ([4, 4, 4, 0, 0, 0, 0], [0, 1, 2]),  # equal to the threshold of 4
        ([6, 3, 3, 0, 0, 0, 0], [0]),  # 12 / 3 = 4
        ([3, 2, 1, 0, 0, 0, 0], [0, 1]),  # 6 / 3 = 2, equal again
        ([1, 0, 0, 0, 0, 0, 0], [0]),
        ([0, 0, 0, 0, 0, 0, 0], []),
        ([10**9, 10**9 - 1, 0, 0, 0, 0, 0], [0]),  # half a count apart from the threshold
        ([1] * 7, list(range(7))),
    ],
)
def test_marks_of_hand_made_counts(counts, marked):
    experts = make_experts()
    experts.usage_counts[1] = torch.tensor(counts)
    experts.begin_task()
    assert experts.frequently_used[1].nonzero().flatten().tolist() == marked
    assert not experts.frequently_used[0].any()  # the other head counted nothing


def test_a_mark_is_never_taken_away():
    experts = make_experts()
    experts.usage_counts[0] = torch.tensor([9, 1, 1, 1, 0, 0, 0])
    experts.begin_task()
    assert experts.frequently_used[0].tolist() == [True, *[False] * 6]
    experts.usage_counts[0] += torch.tensor([0, 0, 0, 100, 0, 0, 0])
    experts.begin_task()
    assert experts.frequently_used[0].nonzero().flatten().tolist() == [0, 3]


def test_previous_keys_are_a_copy():
    experts = make_experts()
    experts.begin_task()
    before = experts.keys.detach().clone()
    assert torch.equal(experts.previous_keys, before) and not experts.previous_keys.requires_grad
    with torch.no_grad():
        experts.keys.add_(1)
    assert torch.equal(experts.previous_keys, before)


# ---------------------------------------------------------------------- routing modes of a model


def settings(model):
    return (model.mode.dense, model.mode.routing), [(each.dense, each.routing) for each in model.prefix_experts]


@pytest.mark.parametrize("mode", ["raw_routing", "dense_routing"])
def test_routing_modes_end_with_their_block_also_after_an_exception(mode):
    model = tiny_model()
    model.prefix_experts[1].routing = "unmasked"
    before = settings(model)
    with getattr(model, mode)():
        assert settings(model) != before
    assert settings(model) == before
    with pytest.raises(KeyboardInterrupt), getattr(model, mode)():
        raise KeyboardInterrupt
    assert settings(model) == before


def test_dense_routing_switches_every_expert_on():
    model = tiny_model().train()
    images, labels = tiny_images(), torch.tensor([0, 1, 2, 3])
    with model.dense_routing():
        output = model(images, labels=labels, output_router_scores=True, output_attentions=True)
    assert output.selected_experts is None and output.router_loss == 0
    tokens = output.attentions[-1].shape[-1]
    assert [weights.shape[-1] for weights in output.attentions] == [tokens + 6, tokens + 6, tokens, tokens]
    assert all((weights[..., :6] > 0).all() for weights in output.attentions[:2])
    output.loss.backward()
    assert all((experts.values.grad.abs().sum(dim=-1) > 0).all() for experts in model.prefix_experts)


@torch.no_grad()
def test_one_pass_counts_usage_and_gives_the_features_of_masked_routing():
    """The pass by raw scores equals masked routing once its own images are counted, so it serves both."""
    model, images = tiny_model(num_experts=25, top_k=3), tiny_images(24)
    with model.raw_routing():
        model.update_usage(model(tiny_images(2, seed=8), output_router_scores=True).router_scores)  # a task before
        raw = model(images, output_router_scores=True)
    uncounted = model(images)
    model.update_usage(raw.router_scores)
    counted = model(images, output_router_scores=True)
    assert all((experts.usage_counts == 0).any() for experts in model.prefix_experts)  # so there is a mask
    assert torch.equal(raw.logits, counted.logits) and torch.equal(raw.pooled_output, counted.pooled_output)
    for ours, theirs in zip(raw.selected_experts, counted.selected_experts, strict=True):
        assert torch.equal(sets(ours), sets(theirs))
    assert not torch.allclose(raw.logits, uncounted.logits, atol=1e-4)  # masked routing keeps new experts out


@torch.no_grad()
def test_a_model_that_counted_nothing_masks_nothing():
    model, images = tiny_model(num_experts=25, top_k=3), tiny_images()
    masked = model(images).logits
    with model.raw_routing():
        assert torch.equal(model(images).logits, masked)


def test_nothing_of_a_training_step_stays_on_the_experts():
    """Left-over scores would hold the graph in memory and keep the model from being copied."""
    model = tiny_model().train()
    model.activation_checkpointing_enable()
    model(tiny_images(), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    assert running_pass() is None
    kept = [value for module in model.modules() for value in vars(module).values()]
    assert not any(isinstance(value, torch.Tensor) and value.grad_fn is not None for value in kept)
    copy.deepcopy(model)
