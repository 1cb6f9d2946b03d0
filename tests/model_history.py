"""A model that has learned a task, and how two models are compared."""

import torch
from conftest import tiny_images

LABELS = torch.tensor([4, 5, 4, 5])


def with_history(model):
    """A second task, with usage, marks and stored keys that are not all alike."""
    with torch.no_grad(), model.raw_routing():
        model.update_usage(model(tiny_images(8, seed=5), output_router_scores=True).router_scores)
    model.begin_task(["seventh", "eighth"])
    with torch.no_grad():
        for experts in model.prefix_experts:
            experts.keys.add_(0.1 * torch.randn_like(experts.keys))
    return model


def gradients(model, **kwargs):
    model.zero_grad()
    model(tiny_images(), labels=LABELS, **kwargs).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


def assert_equal_states(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
