"""A model gets new classes, its loss looks at the current task alone, and wrong configs are refused by name."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config, tiny_images, tiny_model
from huggingface_hub.errors import StrictDataclassError

from smope_hf import SMoPEConfig

FIRST, SECOND = ["ant", "bee", "cat"], ["dog", "eel"]
NEW_LABELS = torch.tensor([3, 4, 4, 3])


@torch.no_grad()
def count_usage(model, seed=5):
    with model.raw_routing():
        model.update_usage(model(tiny_images(8, seed=seed), output_router_scores=True).router_scores)


def learned(*tasks, **fields):
    """A model that went through some tasks, with experts that moved on in the last one."""
    model = tiny_model(num_labels=None, **fields)
    for index, names in enumerate(tasks):
        if index:
            count_usage(model)
        model.begin_task(names)
    with torch.no_grad():
        for experts in model.prefix_experts:
            experts.keys.add_(0.2 * torch.randn(experts.keys.shape, generator=torch.Generator().manual_seed(3)))
    return model


# ---------------------------------------------------------------------- room for new classes


def test_a_fresh_model_knows_no_class():
    model = tiny_model(num_labels=None)
    with torch.no_grad():
        assert model(tiny_images()).logits.shape == (4, 0)
    with pytest.raises(ValueError, match="without classes.*begin_task"):
        model(tiny_images(), labels=NEW_LABELS)


def test_the_head_grows_and_old_rows_stay_bit_equal():
    model = learned(FIRST)
    torch.nn.init.normal_(model.classifier.bias)
    weight, bias = model.classifier.weight.detach().clone(), model.classifier.bias.detach().clone()
    with torch.no_grad():
        count_usage(model)
        before = model(tiny_images())
        model.begin_task(SECOND)
        after = model(tiny_images())
    assert model.classifier.weight.shape == (5, 32) and model.classifier.bias.shape == (5,)
    assert torch.equal(model.classifier.weight[:3], weight) and torch.equal(model.classifier.bias[:3], bias)
    assert torch.equal(after.pooled_output, before.pooled_output)
    torch.testing.assert_close(after.logits[:, :3], before.logits, rtol=1e-6, atol=1e-6)
    assert model.classifier.weight.requires_grad and model.classifier.bias.requires_grad
    assert model.classifier.weight[3:].std() > 0.01  # new rows are drawn, not left as memory was


def test_new_rows_follow_torchs_seed():
    model = learned(FIRST)
    count_usage(model)
    rows = []
    for seed in (0, 0, 1):
        twin = copy.deepcopy(model)
        torch.manual_seed(seed)
        twin.begin_task(SECOND)
        rows.append(twin.classifier.weight[3:])
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_the_config_lists_the_classes_in_the_order_learned():
    config = learned(FIRST, SECOND, ["fox"]).config
    names = [*FIRST, *SECOND, "fox"]
    assert config.id2label == dict(enumerate(names)) and config.num_labels == 6
    assert config.label2id == {name: index for index, name in enumerate(names)}
    assert config.tasks == [[0, 1, 2], [3, 4], [5]]
    assert SMoPEConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("training", [True, False])
def test_the_grown_head_keeps_dtype_and_mode(training):
    model = learned(FIRST)
    count_usage(model)
    model.double().train(training)
    model.begin_task(SECOND)
    assert model.classifier.weight.dtype == torch.float64 and model.classifier.training == training


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["eel", "bee"], r"'bee'"),
        (["dog", "eel", "dog"], r"'dog'"),
        ([], "no class"),
        ([f"new {number}" for number in range(10**5 - 2)], "100001 classes.*at most 100000"),
    ],
    ids=["known", "twice", "none", "more than a config may list"],
)
def test_wrong_classes_are_refused_by_name_and_change_nothing(names, message):
    model = learned(FIRST)
    count_usage(model)
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        model.begin_task(names)
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("names", ["dog", [7, 8], [None]])
def test_class_names_are_a_list_of_texts(names):
    """One text alone would become a class per letter, and numbers would not survive the config's JSON."""
    model = tiny_model(num_labels=None)
    with pytest.raises((ValueError, TypeError)):
        model.begin_task(names)


def test_two_classes_of_one_name_are_refused():
    """begin_task counts ids by name, so a name that stands for two ids would give a new class an old id."""
    with pytest.raises(StrictDataclassError, match="ant"):
        tiny_config(num_labels=None, id2label={0: "ant", 1: "ant"})


def test_the_second_task_needs_the_usage_of_the_first():
    model = learned(FIRST)
    with pytest.raises(RuntimeError, match="usage.*none was counted.*update_usage"):
        model.begin_task(SECOND)
    assert model.config.tasks == [[0, 1, 2]] and model.classifier.out_features == 3
    assert not any(experts.previous_keys.any() for experts in model.prefix_experts)
    count_usage(model)
    keys = [experts.keys.detach().clone() for experts in model.prefix_experts]
    model.begin_task(SECOND)
    for experts, before in zip(model.prefix_experts, keys, strict=True):
        assert torch.equal(experts.previous_keys, before) and experts.frequently_used.any()


def test_the_first_task_marks_nothing():
    model = learned(FIRST)
    for experts in model.prefix_experts:
        assert not experts.frequently_used.any() and not experts.previous_keys.any()


# ---------------------------------------------------------------------- losses of the current task


@pytest.mark.parametrize("labels", [[3, 4, 2, 3], [3, 4, 5, 3], [3, -100, 4, 3]])
def test_labels_outside_the_current_task_are_refused_with_their_value(labels):
    model = learned(FIRST, SECOND)
    wrong = next(label for label in labels if label not in (3, 4))
    with pytest.raises(ValueError, match=f"labels hold {wrong}.*3 to 4"):
        model(tiny_images(), labels=torch.tensor(labels))


def test_cross_entropy_is_over_the_current_tasks_classes_alone():
    model = learned(FIRST, SECOND).train()
    output = model(tiny_images(), labels=NEW_LABELS)
    torch.testing.assert_close(output.cross_entropy, F.cross_entropy(output.logits[:, 3:], NEW_LABELS - 3))
    output.loss.backward()
    head = model.classifier
    assert not head.weight.grad[:3].any() and not head.bias.grad[:3].any()
    assert head.weight.grad[3:].abs().sum() > 0 and head.bias.grad[3:].abs().sum() > 0
    with torch.no_grad():
        head.weight[:3] += 1
        head.bias[:3] -= 2
        changed = model(tiny_images(), labels=NEW_LABELS)
    assert not torch.allclose(changed.logits[:, :3], output.logits[:, :3])
    assert torch.equal(changed.loss, output.loss.detach())


@pytest.mark.parametrize("training", [True, False])
def test_the_total_is_the_weighted_sum(training):
    model = learned(FIRST, SECOND).train(training)
    output = model(tiny_images(), labels=NEW_LABELS, output_router_scores=True)
    assert output.router_loss > 0 and output.prototype_loss > 0
    total = output.cross_entropy + 0.01 * output.router_loss + 0.02 * output.prototype_loss
    torch.testing.assert_close(output.loss, total)
    layers = list(zip(model.prefix_experts, output.router_scores, output.selected_experts, strict=True))
    torch.testing.assert_close(output.router_loss, sum(e.router_loss(s, k) for e, s, k in layers))
    torch.testing.assert_close(output.prototype_loss, sum(e.prototype_loss() for e, _, _ in layers))


def test_the_first_task_has_no_prototype_loss():
    model = learned(FIRST).train()
    for experts in model.prefix_experts:
        experts.frequently_used[:] = True  # whatever the buffers hold
    output = model(tiny_images(), labels=torch.tensor([0, 1, 2, 0]))
    assert output.prototype_loss == 0 and output.router_loss > 0
    torch.testing.assert_close(output.loss, output.cross_entropy + 0.01 * output.router_loss)


def test_without_labels_there_is_no_loss():
    with torch.no_grad():
        output = learned(FIRST)(tiny_images())
    assert set(output) == {"logits", "pooled_output"}


# ---------------------------------------------------------------------- configs

NAN, INFINITE = float("nan"), float("inf")
WRONG = [
    ({"num_experts": 0}, "num_experts", "0"),
    ({"num_experts": -3}, "num_experts", "-3"),
    ({"num_experts": 2.5}, "num_experts", "2.5"),
    ({"num_experts": "six"}, "num_experts", "six"),
    ({"num_experts": True, "top_k": 1}, "num_experts", "True"),
    ({"top_k": 0}, "top_k", "0"),
    ({"top_k": 7}, "top_k", "7"),
    ({"top_k": -1}, "top_k", "-1"),
    ({"top_k": 1.5}, "top_k", "1.5"),
    ({"top_k": None}, "top_k", "None"),
    ({"num_experts_per_tok": 99}, "top_k", "99"),
    ({"noise_epsilon": -0.1}, "noise_epsilon", "-0.1"),
    ({"noise_epsilon": 1.5}, "noise_epsilon", "1.5"),
    ({"noise_epsilon": NAN}, "noise_epsilon", "nan"),
    ({"noise_epsilon": "much"}, "noise_epsilon", "much"),
    ({"router_loss_coef": -1.0}, "router_loss_coef", "-1.0"),
    ({"router_loss_coef": NAN}, "router_loss_coef", "nan"),
    ({"router_loss_coef": INFINITE}, "router_loss_coef", "inf"),
    ({"prototype_loss_coef": -1e-9}, "prototype_loss_coef", "-1e-09"),
    ({"prototype_loss_coef": NAN}, "prototype_loss_coef", "nan"),
    ({"prototype_loss_coef": INFINITE}, "prototype_loss_coef", "inf"),
    ({"routing": "soft"}, "routing", "soft"),
    ({"routing": None}, "routing", "None"),
    ({"pooling": "max"}, "pooling", "max"),
    ({"model_type": "siglip_vision_model", "pooling": "cls"}, "pooling", "cls"),
    ({"prompt_layers": []}, "prompt_layers", r"\[\]"),
    ({"prompt_layers": [0, 4]}, "prompt_layers", r"\[0, 4\].*0 to 3: the backbone has 4"),
    ({"prompt_layers": [-1]}, "prompt_layers", r"\[-1\]"),
    ({"prompt_layers": [2, 2]}, "prompt_layers", r"\[2, 2\]"),
    ({"prompt_layers": [0.5]}, "prompt_layers", "0.5"),
    ({"prompt_layers": "all"}, "prompt_layers", "all"),
    ({"tasks": [[0, 1, 2], [2, 3, 4, 5]]}, "tasks", r"\[\[0, 1, 2\], \[2, 3, 4, 5\]\]"),
    ({"tasks": [[0, 1, 2], [3, 4]]}, "tasks", r"\[\[0, 1, 2\], \[3, 4\]\]"),
    ({"tasks": [[3, 4, 5], [0, 1, 2]]}, "tasks", r"\[\[3, 4, 5\]"),
    ({"tasks": [[0, 1, 2, 3, 4, 5], []]}, "tasks", r"\[\]"),
    ({"tasks": [0, 1, 2, 3, 4, 5]}, "tasks", "0"),
    ({"output_router_scores": "yes"}, "output_router_scores", "yes"),
    ({"base_model_name_or_path": 5}, "base_model_name_or_path", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "value"), WRONG, ids=lambda item: str(item)[:40])
def test_wrong_config_values_are_refused_with_field_and_value(fields, field, value):
    with pytest.raises(StrictDataclassError, match=rf"(?s){field}.*{value}"):
        tiny_config(**fields)


@pytest.mark.parametrize(
    "fields", [{"top_k": 6}, {"noise_epsilon": 0}, {"noise_epsilon": 1}, {"prompt_layers": [3, 1]}]
)
def test_the_limits_themselves_are_allowed(fields):
    assert {name: getattr(tiny_config(**fields), name) for name in fields} == fields


def test_a_config_made_wrong_later_is_not_saved(tmp_path):
    config = tiny_config()
    config.top_k = 99
    with pytest.raises(StrictDataclassError, match="top_k.*99"):
        config.save_pretrained(tmp_path)
