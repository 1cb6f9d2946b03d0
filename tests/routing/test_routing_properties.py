"""What holds of the routing for any sizes, scores, usage and marks; hypothesis draws the same ones every time."""

import copy
import math

import pytest
import torch
from attentions import extra_key, gated, plain
from conftest import tiny_images, tiny_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smope_hf.models import prefix_experts
from smope_hf.models.prefix_experts import PrefixExperts, membership

bounded = settings(derandomize=True, deadline=None, database=None, max_examples=60)
few = settings(bounded, max_examples=12)
FORMS = (gated, extra_key, plain)  # the last is the definition, word for word


class Case:
    """A layer with a history and a batch for it, drawn by one seed."""

    def __init__(self, sizes, seed, epsilon, routing, training, dtype=torch.float64):
        self.batch, self.heads, self.tokens, self.size, self.count, self.top_k = sizes
        self.random = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        experts = PrefixExperts(self.heads, self.size, self.count, self.top_k, epsilon, routing).to(dtype)
        with torch.no_grad():
            for tensor in (experts.keys, experts.values, experts.previous_keys):
                tensor.copy_(self.draw(*tensor.shape))
        shape = (self.heads, self.count)
        experts.usage_counts.copy_(torch.randint(-2, 5, shape, generator=self.random).clamp(min=0))
        experts.frequently_used.copy_(torch.rand(shape, generator=self.random) < 0.4)
        self.experts = experts.train(training)
        shape = (self.batch, self.heads, self.tokens, self.size)
        self.qkv = [self.draw(*shape) for _ in range(3)]

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.random, dtype=torch.float64).to(self.dtype)

    def scores(self, kind):
        shape = (self.batch, self.heads, self.count)
        if kind == "ties":
            return torch.randint(0, 3, shape, generator=self.random).to(self.dtype)
        return torch.full(shape, -2.5, dtype=self.dtype) if kind == "equal" else self.draw(*shape)


@st.composite
def cases(draw, top_k=None, **fixed):
    experts = draw(st.integers(1, 9))
    chosen = experts if top_k == "all" else draw(st.integers(1, experts))
    sizes = (*(draw(st.integers(1, most)) for most in (4, 3, 6, 6)), experts, chosen)
    drawn = {
        "seed": st.integers(0, 2**31),
        "epsilon": st.sampled_from([0.0, 0.3, 0.4, 1.0]),
        "routing": st.sampled_from(["masked", "unmasked"]),
        "training": st.booleans(),
    }
    return Case(sizes, **{name: fixed[name] if name in fixed else draw(strategy) for name, strategy in drawn.items()})


kinds = st.sampled_from(["random", "ties", "equal"])


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------- selection


@bounded
@given(cases(), kinds)
def test_exactly_k_experts_and_none_of_the_others_is_better(case, kind):
    scores = case.scores(kind)
    selected = case.experts.select(scores)
    chosen = membership(selected, case.count)
    assert selected.shape == (case.batch, case.heads, case.top_k)
    assert (chosen.sum(dim=-1) == case.top_k).all()
    penalty = case.experts.penalty()
    spread = scores.max(dim=-1, keepdim=True).values - scores.min(dim=-1, keepdim=True).values
    after = scores if penalty is None else scores - penalty * spread
    worst_chosen = after.masked_fill(~chosen, math.inf).min(dim=-1).values
    assert (worst_chosen >= after.masked_fill(chosen, -math.inf).max(dim=-1).values).all()


@bounded
@given(cases(), st.integers(-3, 3), st.integers(-8, 8))
def test_the_choice_depends_on_neither_scale_nor_offset_of_the_scores(case, power, offset):
    scores = case.scores("random")
    moved = case.experts.select(scores * 2.0**power + offset)
    assert torch.equal(membership(moved, case.count), membership(case.experts.select(scores), case.count))


@bounded
@given(cases(routing="masked", training=False), kinds)
def test_with_no_expert_ever_used_masked_is_unmasked(case, kind):
    """In evaluation after the first begin_task, or with a checkpoint that counted nothing, all are penalised alike."""
    scores = case.scores(kind)
    case.experts.usage_counts.zero_()
    masked = membership(case.experts.select(scores), case.count)
    case.experts.routing = "unmasked"
    assert kind == "ties" or torch.equal(masked, membership(case.experts.select(scores), case.count))
    best = scores.topk(case.top_k, dim=-1).values.sum(dim=-1)
    close((scores * masked).sum(dim=-1), best)  # among equals any will do, but the best they are


@bounded
@given(cases(routing="masked", training=False))
def test_used_experts_come_first_in_masked_evaluation(case):
    assume(case.count > 1)
    chosen = membership(case.experts.select(case.scores("random")), case.count)
    used = case.experts.usage_counts > 0
    expected = used.sum(dim=-1).clamp(max=case.top_k).expand(case.batch, -1)
    assert torch.equal((chosen & used).sum(dim=-1), expected)


@bounded
@given(cases(training=True, epsilon=0.0))
def test_without_noise_training_selects_the_best(case):
    scores = case.scores("random")
    expected = membership(scores.topk(case.top_k, dim=-1).indices, case.count)
    assert torch.equal(membership(case.experts.select(scores), case.count), expected)


# ---------------------------------------------------------------------- usage and marks


@bounded
@given(cases(), st.lists(st.tuples(st.integers(1, 5), kinds), min_size=1, max_size=4))
def test_usage_grows_by_images_times_k_in_every_head(case, batches):
    before = case.experts.usage_counts.clone()
    for images, kind in batches:
        case.batch = images
        case.experts.update_usage(case.scores(kind))
    added = case.experts.usage_counts - before
    images = sum(images for images, _ in batches)
    assert (added.sum(dim=-1) == images * case.top_k).all()
    assert added.min() >= 0 and added.max() <= images  # an image counts an expert once at most


@bounded
@given(cases(), st.lists(st.tuples(st.integers(0, 5), kinds), min_size=1, max_size=5))
def test_marks_only_grow_and_a_used_head_always_has_one(case, tasks):
    experts = case.experts
    experts.frequently_used.zero_()
    for images, kind in tasks:
        case.batch = images
        experts.update_usage(case.scores(kind))
        before = experts.frequently_used.clone()
        experts.begin_task()
        assert not (before & ~experts.frequently_used).any()
        counts, new = experts.usage_counts, experts.frequently_used & ~before
        assert (counts[new] > 0).all()
        used = counts.sum(dim=-1) > 0
        favourite = counts.argmax(dim=-1, keepdim=True)
        assert experts.frequently_used.gather(-1, favourite).squeeze(-1)[used].all()  # the most is not below the mean


# ---------------------------------------------------------------------- permutation and batches


@bounded
@given(cases())
def test_renaming_the_experts_renames_everything_about_them(case):
    experts, twin = case.experts, copy.deepcopy(case.experts)
    order = torch.randperm(case.count, generator=case.random)
    with torch.no_grad():
        for name, tensor in experts.state_dict().items():
            twin.state_dict()[name].copy_(tensor[:, order])
    (scores, selected), (moved, moved_selected) = experts(case.qkv[0]), twin(case.qkv[0])
    close(moved, scores[..., order])
    assert torch.equal(membership(moved_selected, case.count), membership(selected, case.count)[..., order])
    for form in FORMS:
        close(form(twin, *case.qkv, None), form(experts, *case.qkv, None))
    close(twin.router_loss(moved, moved_selected), experts.router_loss(scores, selected))
    close(twin.prototype_loss(), experts.prototype_loss())
    for each, own in ((experts, scores), (twin, moved)):
        each.update_usage(own)
        each.begin_task()
    assert torch.equal(twin.usage_counts, experts.usage_counts[:, order])
    assert torch.equal(twin.frequently_used, experts.frequently_used[:, order])


@bounded
@given(cases())
def test_an_image_does_not_see_its_batch(case):
    order = torch.randperm(case.batch, generator=case.random)
    for form in FORMS:
        together = form(case.experts, *case.qkv, None)
        close(form(case.experts, *(tensor[order] for tensor in case.qkv), None), together[order])
        alone = [form(case.experts, *(tensor[i : i + 1] for tensor in case.qkv), None) for i in range(case.batch)]
        close(torch.cat(alone), together)
    selected = case.experts(case.qkv[0])[1]
    alone = torch.cat([case.experts(image[None])[1] for image in case.qkv[0]])
    assert torch.equal(membership(alone, case.count), membership(selected, case.count))


# ---------------------------------------------------------------------- the forms of the attention


def outputs_and_gradients(form, case, mask=None):
    leaves = [tensor.clone().requires_grad_() for tensor in case.qkv]
    output = form(case.experts, *leaves, mask)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = [*leaves, case.experts.keys, case.experts.values]
    return [output.detach(), *torch.autograd.grad((output * weights.to(output.dtype)).sum(), wanted)]


def assert_forms_agree(case, mask=None):
    for form in FORMS[:-1]:
        for found, expected in zip(
            outputs_and_gradients(form, case, mask), outputs_and_gradients(plain, case, mask), strict=True
        ):
            close(found, expected)


@bounded
@given(cases(), st.booleans(), st.booleans())
def test_the_fused_forms_equal_the_plain_one(case, dense, masked):
    """For any sizes down to one token, one expert and heads of size 1, with what usage and marks do to the choice."""
    case.experts.dense = dense
    mask = None
    if masked:
        shape = (case.batch, case.heads, case.tokens, case.tokens)
        mask = torch.zeros(shape, dtype=case.dtype)
        mask[torch.rand(shape, generator=case.random) < 0.3] = -math.inf
        mask[..., 0] = 0.5  # a row that sees no token at all is no attention
    assert_forms_agree(case, mask)


@bounded
@given(cases(top_k="all"))
def test_with_k_equal_to_e_sparse_is_dense(case):
    """No penalty can put an expert out, and the router loss has nobody to put noise on."""
    for form in FORMS:
        case.experts.dense = False
        sparse = outputs_and_gradients(form, case)
        case.experts.dense = True
        for found, expected in zip(sparse, outputs_and_gradients(form, case), strict=True):
            close(found, expected)
    scores = case.scores("random")
    selected = torch.arange(case.count).expand(case.batch, case.heads, -1)
    expected = -scores.log_softmax(dim=-1).sum(dim=(1, 2)).mean()
    close(case.experts.router_loss(scores, selected), expected)


@bounded
@given(cases())
def test_equal_scores_still_choose_k_and_lose_log_e(case):
    with torch.no_grad():
        case.experts.keys.copy_(case.experts.keys[:, :1].expand_as(case.experts.keys))
    scores, selected = case.experts(case.qkv[0])
    close(scores, scores[..., :1].expand_as(scores))
    assert (membership(selected, case.count).sum(dim=-1) == case.top_k).all()
    even = torch.tensor(case.heads * case.top_k * math.log(case.count), dtype=case.dtype)
    close(case.experts.router_loss(scores, selected), even, 1e-6)
    case.experts.dense = True
    close(case.experts(case.qkv[0])[0], scores)
    outcome = outputs_and_gradients(gated, case)
    assert all(tensor.isfinite().all() for tensor in outcome)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@bounded
@given(cases(), st.floats(0, 1), st.booleans())
def test_scores_of_any_size_never_overflow_in_half_precision(dtype, case, share, together):
    """Keys up to float16's largest number, and in bfloat16 up to 1e18."""
    largest = min(torch.finfo(dtype).max, 1e18) ** share
    experts = case.experts.to(dtype)
    case.qkv = [tensor.to(dtype) for tensor in case.qkv]
    with torch.no_grad():
        keys = case.draw(*experts.keys.shape).clamp(-1, 1).abs() if together else case.draw(*experts.keys.shape)
        for tensor in (experts.keys, experts.previous_keys):
            tensor.copy_((keys.clamp(-1, 1) * largest).to(dtype))
    scores, selected = experts(case.qkv[0])
    assert scores.dtype == torch.float32 and scores.isfinite().all()
    assert (membership(selected, case.count).sum(dim=-1) == case.top_k).all()
    loss = experts.router_loss(scores, selected) + experts.prototype_loss()
    assert loss.isfinite() and torch.autograd.grad(loss, scores)[0].isfinite().all()
    with torch.no_grad():
        for form in FORMS:
            assert form(experts, *case.qkv, None).isfinite().all()


# ---------------------------------------------------------------------- gradients against finite differences


def clear_choice(case, scores):
    """Whether no small step changes which experts are chosen: the choice is a constant between two ties."""
    penalty = case.experts.penalty()
    spread = prefix_experts.score_range(scores)
    after = (scores if penalty is None else scores - penalty * spread).sort(dim=-1, descending=True).values
    return case.top_k == case.count or (after[..., case.top_k - 1] - after[..., case.top_k]).min() > 1e-3


@few
@given(cases(), st.booleans())
def test_gradients_of_a_layer_are_those_of_finite_differences(case, dense):
    case.experts.dense = dense
    assume(dense or clear_choice(case, case.experts.score(case.qkv[0]).detach()))
    case.experts.requires_grad_(True)

    def layer(form):
        def run(query, key, value, keys, values):
            parameters = {"keys": keys, "values": values}
            with torch.nn.utils.stateless._reparametrize_module(case.experts, parameters):
                return form(case.experts, query, key, value, None)

        return run

    inputs = [*case.qkv, case.experts.keys.detach(), case.experts.values.detach()]
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    for form in FORMS:
        assert torch.autograd.gradcheck(layer(form), inputs, fast_mode=True)


class Held:
    """The ranges of scores as they are at one point: design.md takes no gradient through them."""

    def __init__(self, monkeypatch):
        self.ranges, self.next, self.real = [], None, prefix_experts.score_range
        monkeypatch.setattr(prefix_experts, "score_range", self)

    def __call__(self, scores):
        if self.next is None:
            self.ranges.append(self.real(scores).detach())
            return self.ranges[-1]
        self.next += 1
        return self.ranges[(self.next - 1) % len(self.ranges)]

    def hold(self):
        self.next = 0


@few
@given(cases())
def test_gradients_of_both_routing_losses_are_those_of_finite_differences(case):
    experts = case.experts
    scores = experts.score(case.qkv[0]).detach()
    assume(clear_choice(case, scores))
    selected = experts.select(scores)
    previous = experts.previous_keys

    def router(scores):
        return experts.router_loss(scores, selected)

    def prototype(keys):
        with torch.nn.utils.stateless._reparametrize_module(experts, {"keys": keys}):
            return experts.prototype_loss()

    with pytest.MonkeyPatch.context() as monkeypatch:
        held = Held(monkeypatch)
        router(scores)
        held.hold()
        assert torch.autograd.gradcheck(router, [scores.requires_grad_()])
    assert torch.autograd.gradcheck(prototype, [previous.clone().requires_grad_()])
    assert torch.autograd.gradcheck(prototype, [experts.keys.detach().clone().requires_grad_()])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["dense", "sparse", "second task"])
def test_the_gradient_of_the_whole_loss_is_that_of_finite_differences(mode, attention, monkeypatch):
    """Cross-entropy, router and prototype loss together, of all that is trained, through both prompt layers."""
    model = tiny_model(router_loss_coef=0.5, prototype_loss_coef=0.3)
    images, labels = tiny_images().double(), torch.tensor([0, 1, 2, 3])
    if mode == "second task":
        model.update_usage(model(tiny_images(24), output_router_scores=True).router_scores)
        model.begin_task(["g", "h"])
        labels = torch.tensor([6, 7, 7, 6])
        assert all(experts.frequently_used.any() for experts in model.prefix_experts)
    model.double().train().set_attn_implementation(attention)
    for experts in model.prefix_experts:
        experts.dense = mode == "dense"
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert any("prefix_experts" in name for name in trained) and any("classifier" in name for name in trained)
    start = {name: value.detach().clone().requires_grad_() for name, value in trained.items()}

    def loss(*values):
        given = dict(zip(start, values, strict=True))
        return torch.func.functional_call(model, given, (images,), {"labels": labels}).loss

    held = Held(monkeypatch)
    loss(*start.values())
    held.hold()
    assert torch.autograd.gradcheck(loss, tuple(start.values()), fast_mode=True, eps=1e-7, atol=1e-6, rtol=1e-4)
