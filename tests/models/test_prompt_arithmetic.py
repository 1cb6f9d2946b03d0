"""What each method's prompts compute: which are used, what they add to the loss, and what they cost."""

import pytest
import torch
from prompted_models import tiny_prompted
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, ViTModel

from smope_hf.training.run_arguments import ModelArguments, method_config


def test_new_components_are_orthogonal_to_all_there_are():
    model = tiny_prompted("coda-prompt", num_tasks=3)
    for groups in (model.prompts.keys, model.prompts.attention, model.prompts.prompts):
        rows = torch.cat(list(groups), dim=1)  # (L, 9, W)
        torch.testing.assert_close(rows @ rows.mT, torch.eye(9).expand(len(rows), -1, -1), rtol=0, atol=1e-4)


def test_components_are_weighted_by_the_cosine_of_attended_query_and_key():
    model = tiny_prompted("coda-prompt")
    query = torch.randn(2, 32)
    keys, values = model.prompts.prefixes(1, query)
    attention, key, prompt = (
        torch.cat([group[1] for group in groups])
        for groups in (model.prompts.attention, model.prompts.keys, model.prompts.prompts)
    )
    weights = torch.nn.functional.cosine_similarity(query[:, None] * attention, key[None], dim=-1)  # (B, C)
    expected = torch.einsum("bc,cw->bw", weights, prompt).reshape(2, 2, 2, 2, 16)  # B, kind, P, H, d
    torch.testing.assert_close(keys, expected[:, 0].transpose(1, 2))
    torch.testing.assert_close(values, expected[:, 1].transpose(1, 2))


def test_l2p_uses_the_prompts_whose_keys_are_nearest():
    model = tiny_prompted("l2p")
    query = model.prompts.keys[torch.tensor([4, 1])].detach() * 3
    chosen = model.prompts.choose(query)
    keys, _ = model.prompts.prefixes(0, chosen)
    assert keys.shape == (2, 2, 2 * 4, 16) and chosen[0][:, 0].tolist() == [4, 1]
    first = model.prompts.prompts[0, 4, 0].view(4, 2, 16).transpose(0, 1)  # H, length, d
    torch.testing.assert_close(keys[0, :, :4], first)


def test_dualprompt_takes_the_nearest_tasks_prompt_in_evaluation_and_its_own_in_training():
    model = tiny_prompted("dualprompt", num_tasks=3)
    query = torch.stack([model.prompts.keys[1], model.prompts.keys[0]]).detach()
    chosen = model.prompts.choose(query)
    keys, _ = model.prompts.prefixes(2, chosen)
    expected = [model.prompts.experts[task][0, 0].view(3, 2, 16).transpose(0, 1) for task in (1, 0)]
    torch.testing.assert_close(keys, torch.stack(expected))
    model.train()
    keys, _ = model.prompts.prefixes(2, chosen)
    torch.testing.assert_close(keys[0], model.prompts.experts[2][0, 0].view(3, 2, 16).transpose(0, 1))


def test_outliers_lie_beyond_the_rim():
    model = tiny_prompted("ovor")
    features = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    found, apart = model.prompts.outliers(features, labels)
    assert bool((apart == 1).all())
    means = torch.stack([features[labels == index].mean(dim=0) for index in range(3)])
    assert found.shape == (3, 32)
    nearest = torch.cdist(found, means).amin(dim=1)
    assert bool((nearest > (features - means[labels]).norm(dim=-1).median()).all())


def head_over(classes, seed=7):
    torch.manual_seed(seed)
    return torch.nn.Linear(32, classes)


def test_l2p_pulls_the_chosen_keys_towards_the_query():
    prompts = tiny_prompted("l2p").prompts
    query = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity(query[:, None], prompts.keys[None], dim=-1)  # (B, S)
    expected = 0.1 * (1 - cosine.sort(descending=True).values[:, :2]).sum(dim=1).mean()
    torch.testing.assert_close(prompts.loss(query, torch.zeros(4), head_over(6), 3, prompts.choose(query)), expected)


def test_dualprompt_pulls_the_current_tasks_key_towards_the_query():
    prompts = tiny_prompted("dualprompt").prompts
    query = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    loss = prompts.loss(query, torch.zeros(4), head_over(6), 3, prompts.choose(query))
    torch.testing.assert_close(
        loss, (1 - torch.nn.functional.cosine_similarity(query, prompts.keys[1][None], dim=-1)).mean()
    )
    loss.backward()
    assert prompts.keys[0].grad is None and bool(prompts.keys[1].grad.any())


def test_coda_keeps_components_apart_where_it_is_told():
    prompts = tiny_prompted("coda-prompt").prompts
    with torch.no_grad():
        prompts.keys[1][0, 0] = prompts.keys[0][0, 0]  # in one layer two equal unit keys, across two tasks
    labels = torch.zeros(4)
    assert prompts.loss(torch.zeros(4, 32), labels, head_over(6), 3) == 0
    prompts.settings["ortho_coef"] = 0.5
    others = (
        torch.cat([*prompts.keys], dim=1)[0] @ prompts.keys[0][0, 0]
    )  # (6,) cosines to the one that is there twice
    off = 2 * (others.square().sum() - 1)  # both orders of each pair; its own 1 is on the diagonal
    expected = 0.5 * off / (len(prompts.prompt_layers) * 6 * 6)
    torch.testing.assert_close(
        prompts.loss(torch.zeros(4, 32), labels, head_over(6), 3), expected, atol=1e-6, rtol=1e-4
    )


def test_ovor_holds_the_new_rows_alone_up_on_images_and_down_on_outliers():
    prompts, head = tiny_prompted("ovor").prompts, head_over(6)
    features = torch.randn(12, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = 3 + torch.arange(12) % 3
    torch.manual_seed(1)
    loss = prompts.loss(features, labels, head, 3)
    loss.backward()
    assert features.grad is None  # nothing reaches the prompt
    assert not head.weight.grad[:3].any() and bool(head.weight.grad[3:].any())
    torch.manual_seed(1)
    outliers, _ = prompts.outliers(features.detach(), labels)
    best, best_virtual = ((x @ head.weight[3:].T + head.bias[3:]).amax(dim=1) for x in (features, outliers))
    expected = (1 - best).clamp(min=0).square().mean() + (1 + best_virtual).clamp(min=0).square().mean()
    torch.testing.assert_close(loss, 0.1 * expected)


def test_a_feature_alone_of_its_class_has_no_outlier():
    prompts, head = tiny_prompted("ovor").prompts, head_over(6)
    features = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    _, apart = prompts.outliers(features, torch.arange(3, 6))
    assert not apart.any()
    real = (features @ head.weight[3:].T + head.bias[3:]).amax(dim=1)
    loss = prompts.loss(features, torch.arange(3, 6), head, 3)
    torch.testing.assert_close(loss, 0.1 * (1 - real).clamp(min=0).square().mean())


VIT_B = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12}
PARAMETERS = {"one-prompt": 0.384, "smope": 0.384, "l2p": 4.78, "dualprompt": 1.10, "coda-prompt": 3.99, "ovor": 0.26}
FORWARD_PASSES = {"one-prompt": 1, "smope": 1, "l2p": 2, "dualprompt": 2, "coda-prompt": 2, "ovor": 1}


def of_published_size(method):
    """A method on a ViT-B/16 after 10 tasks with 200 classes, without memory for any weight."""
    kind, fields = method_config(ModelArguments(method=method))
    tasks = [list(range(20 * task, 20 * task + 20)) for task in range(10)]
    config = kind.config_class(backbone_config=CONFIG_MAPPING["vit"](**VIT_B), num_labels=200, tasks=tasks, **fields)
    with torch.device("meta"):
        return kind(config).eval()


def gflops(model):
    """Of one image's forward pass; the counter does not know the CPU's fused attention, so in the eager form."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("method", PARAMETERS)
def test_parameters_match_the_published_table(method):
    """Head and prompts in millions, within 2%; one-prompt has what SMoPE has."""
    model = of_published_size(method)
    own = sum(value.numel() for name, value in model.named_parameters() if not name.startswith("backbone."))
    assert own / 1e6 == pytest.approx(PARAMETERS[method], rel=0.02)


@pytest.mark.parametrize("method", FORWARD_PASSES)
def test_forward_passes_of_an_image_match_the_published_table(method):
    """In evaluation: of the published 33.72 GFLOPs for one pass, a method with a query takes twice as many."""
    with torch.device("meta"):
        backbone = ViTModel(CONFIG_MAPPING["vit"](**VIT_B), add_pooling_layer=False).eval()
    passes = gflops(of_published_size(method)) / gflops(backbone)
    assert passes == pytest.approx(FORWARD_PASSES[method], rel=0.03)
