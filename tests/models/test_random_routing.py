"""The ablation that selects experts at random: by the image alone, whatever the keys have learned."""

import pytest
import torch
from conftest import tiny_config, tiny_images, tiny_model
from runs import NUM_TASKS, assert_same_tensors, save_backbone, tiny_trainer
from safetensors.torch import load_file
from stopping import Stop
from transformers import AutoModelForImageClassification

from smope_hf import SMoPEForImageClassification
from smope_hf.data.batches import GlobalBatches
from smope_hf.models.prefix_experts import membership
from smope_hf.routing.patterns import balance, select_experts
from smope_hf.routing.record import load_patterns
from smope_hf.sharing.statistics_file import load_routing
from smope_hf.training.routing_recorder import RoutingRecorder

LABELS = torch.tensor([0, 1, 2, 5])


def random_model(**fields):
    return tiny_model(routing="random", **fields)


def selected(model, images=None):
    return select_experts(model, tiny_images(8) if images is None else images).sort(dim=-1).values


def mark_everything(model):
    for experts in model.prefix_experts:
        experts.frequently_used[:, ::2] = True
        experts.usage_counts[:, 1:3] = 9
        experts.previous_keys.copy_(experts.keys * 2)
    model.begin_task(["g", "h"])
    return model.eval()


# ---------------------------------------------------------------------- what is selected


def test_learned_keys_do_not_select():
    model = random_model(prompt_layers=[0])
    before, logits = selected(model), model(tiny_images(8)).logits
    learned = selected(tiny_model(prompt_layers=[0]))
    with torch.no_grad():
        model.prefix_experts[0].keys.neg_().add_(torch.randn(model.prefix_experts[0].keys.shape))
    assert torch.equal(selected(model), before) and not torch.equal(before, learned)
    assert (model(tiny_images(8)).logits - logits).abs().max() > 1e-3  # but they weigh


def test_selection_is_the_top_of_the_mean_query_on_fixed_directions():
    experts = random_model().prefix_experts[1]
    query = torch.randn(5, 2, 17, 16, generator=torch.Generator().manual_seed(0))
    expected = (query.mean(dim=2).unsqueeze(2) * experts.directions).sum(dim=-1)  # (B, H, E)
    scores, chosen = experts(query)
    assert torch.equal(chosen.sort(dim=-1).values, expected.topk(2, dim=-1).indices.sort(dim=-1).values)
    torch.testing.assert_close(scores, experts.score(query))
    assert set(experts.directions.flatten().tolist()) == {-1, 1}


@pytest.mark.parametrize("training", [True, False])
def test_every_image_for_itself_without_penalty_in_both_modes(training):
    model = mark_everything(random_model()).train(training)
    with torch.no_grad():
        together = model(tiny_images(8), output_router_scores=True)
        for index, image in enumerate(tiny_images(8)):
            alone = model(image[None], output_router_scores=True)
            for one, all_of_them in zip(alone.selected_experts, together.selected_experts, strict=True):
                assert torch.equal(one[0].sort().values, all_of_them[index].sort().values)
            torch.testing.assert_close(alone.logits[0], together.logits[index])
    fresh = random_model()
    assert torch.equal(torch.stack(together.selected_experts, dim=1).sort(dim=-1).values, selected(fresh))


def test_layers_choose_differently_and_images_too():
    model = random_model(prompt_layers=[0, 1, 2, 3])
    directions = [experts.directions for experts in model.prefix_experts]
    assert not any(torch.equal(directions[i], directions[j]) for i in range(4) for j in range(i))
    assert torch.equal(random_model(prompt_layers=[2], seed=5).prefix_experts[0].directions, directions[2])
    assert len({tuple(image.flatten().tolist()) for image in selected(model)}) > 1


# ---------------------------------------------------------------------- the rest is SMoPE's


def same_weights(model):
    twin = tiny_model()
    twin.load_state_dict(model.state_dict())  # strict: the same names
    return twin


def test_the_dense_warm_up_is_smopes():
    model = random_model()
    twin = same_weights(model)
    with model.dense_routing(), twin.dense_routing():
        mine, other = (each(tiny_images(), labels=LABELS) for each in (model, twin))
    assert torch.equal(mine.logits, other.logits) and torch.equal(mine.loss, other.loss)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_chosen_experts_attend_as_smopes_do(attention):
    model = random_model()
    twin = same_weights(model)
    for each in (model, twin):
        each.set_attn_implementation(attention)
    choices = iter(model(tiny_images(), output_router_scores=True).selected_experts)
    for experts in twin.prefix_experts:
        experts.select = lambda scores: next(choices)
    assert torch.equal(twin(tiny_images()).logits, model(tiny_images()).logits)


def test_no_loss_teaches_the_keys_to_select():
    model = mark_everything(random_model(router_loss_coef=10.0, prototype_loss_coef=10.0)).train()
    output = model(tiny_images(), labels=torch.tensor([6, 7, 6, 7]))
    assert output.router_loss == output.prototype_loss == 0 and torch.equal(output.loss, output.cross_entropy)
    output.loss.backward()
    for experts in model.prefix_experts:
        assert experts.keys.grad.abs().sum() > 0 and experts.values.grad.abs().sum() > 0


def test_usage_counts_what_was_selected():
    model = random_model()
    with torch.no_grad(), model.raw_routing():
        output = model(tiny_images(8), output_router_scores=True)
    model.update_usage(output.router_scores)
    for experts, chosen in zip(model.prefix_experts, output.selected_experts, strict=True):
        assert torch.equal(experts.usage_counts, membership(chosen, 6).sum(dim=0))


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_selects_the_same_when_loaded(tmp_path, dtype):
    model = random_model()
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "directions" in name]
    loaded = SMoPEForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    for mine, other in zip(model.prefix_experts, loaded.prefix_experts, strict=True):
        assert other.directions.dtype == torch.int8 and torch.equal(mine.directions, other.directions)
    if dtype == torch.float32:
        auto = AutoModelForImageClassification.from_pretrained(tmp_path)
        for each in (loaded, auto):
            assert torch.equal(each(tiny_images()).logits, model(tiny_images()).logits)


def test_directions_survive_a_cast_and_a_model_without_memory():
    model = random_model()
    before = [experts.directions.clone() for experts in model.prefix_experts]
    model.to(torch.bfloat16)
    assert all(torch.equal(e.directions, old) for e, old in zip(model.prefix_experts, before, strict=True))
    with torch.device("meta"):
        empty = SMoPEForImageClassification(tiny_config(routing="random"))
    assert empty.prefix_experts[0].directions.is_meta


def test_a_trained_model_can_be_asked_to_choose_at_random(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded = SMoPEForImageClassification.from_pretrained(tmp_path, routing="random")
    assert torch.equal(selected(loaded), selected(random_model()))


# ---------------------------------------------------------------------- a run


def test_a_run_counts_and_keeps_what_it_selects(tmp_path):
    backbone = save_backbone(tmp_path / "vit")
    settings = {"model_fields": {"routing": "random"}, "learning_rate": 0.05}
    trainer = tiny_trainer(backbone, tmp_path / "run", callbacks=[RoutingRecorder()], **settings)
    trainer.train()
    usage = load_file(tmp_path / "run" / "task-03" / "class_statistics.safetensors")["usage_by_task"]
    images = trainer.decoded(trainer.stream[-1].train)
    (batch,) = GlobalBatches(images, len(images), trainer.accelerator)()
    pixels = trainer.normalize(batch[0])
    chosen = select_experts(trainer.model, pixels)  # (B, L, H, K)
    assert torch.equal(usage[-1], membership(chosen, 6).sum(dim=0))
    assert load_routing(tmp_path / "run" / "task-03")["routing"] == "random"
    survival = load_patterns(tmp_path / "run")["tasks"][-1]["survival"]
    assert [layers[0] for layers in survival] == [1.0] * (NUM_TASKS - 1)  # nothing before layer 0 is trained
    assert (balance(usage.sum(dim=0)).dead_share < 1).all()

    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(backbone, tmp_path / "again", callbacks=[Stop()], **settings).train()
    tiny_trainer(backbone, tmp_path / "again", resume=True, **settings).train()
    assert_same_tensors(tmp_path / "again" / "task-03", tmp_path / "run" / "task-03")
