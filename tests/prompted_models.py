"""Tiny models with each method's prompts."""

import torch
from conftest import EXTRA, SIZES
from transformers import CONFIG_MAPPING

from smope_hf import PromptedForImageClassification
from smope_hf.models.configuration_prompted import PromptedConfig
from smope_hf.models.methods.rivals import PROMPT_METHODS

SETTINGS = {
    "l2p": {"pool_size": 6, "length": 4, "top_k": 2},
    "dualprompt": {"general_length": 2, "expert_length": 3},
    "coda-prompt": {"components_per_task": 3, "length": 4},
    "ovor": {"general_length": 2, "expert_length": 3},
}
METHODS = list(PROMPT_METHODS)
PROMPTED = list(SETTINGS)


def tiny_prompted(method, model_type="vit", num_tasks=2, seed=0, **fields):
    torch.manual_seed(seed)
    backbone = CONFIG_MAPPING[model_type](**SIZES, **EXTRA[model_type])
    config = PromptedConfig(
        backbone_config=backbone, method=method, settings=SETTINGS.get(method), num_labels=0, **fields
    )
    model = PromptedForImageClassification(config)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    for task in range(num_tasks):
        model.begin_task([f"class {task}{letter}" for letter in "abc"])
    return model.eval()
