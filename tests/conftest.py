"""What several test files share: tiny models of every family, and one thread so that results do not depend on load."""

import gc

import pytest
import torch
from transformers import CONFIG_MAPPING

from smope_hf import SMoPEConfig, SMoPEForImageClassification

torch.set_num_threads(1)

pytest_plugins = ["hub_fixtures"]

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
EXTRA = {
    "vit": {"intermediate_size": 64},
    "deit": {"intermediate_size": 64},
    "vit_msn": {"intermediate_size": 64},
    "beit": {"intermediate_size": 64, "use_relative_position_bias": True, "use_mean_pooling": False},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2},
    "dinov3_vit": {"intermediate_size": 64, "num_register_tokens": 2},
    "clip_vision_model": {"intermediate_size": 64},
    "siglip_vision_model": {"intermediate_size": 64},
    "ijepa": {"intermediate_size": 64},
}
THOROUGH = ("vit", "dinov2", "siglip_vision_model")


def tiny_config(model_type: str = "vit", num_labels: int | None = 6, **fields) -> SMoPEConfig:
    """A config with two prompt layers of 6 experts, 2 of which an image switches on."""
    backbone = CONFIG_MAPPING[model_type](**SIZES, **EXTRA[model_type])
    fields = {"num_experts": 6, "top_k": 2, "router_loss_coef": 0.01, "prototype_loss_coef": 0.02, **fields}
    return SMoPEConfig(backbone_config=backbone, num_labels=num_labels, **fields)


def tiny_model(model_type: str = "vit", seed: int = 0, **fields) -> SMoPEForImageClassification:
    """A model with random weights; keys are centred so that scores differ in sign and images in their experts."""
    torch.manual_seed(seed)
    model = SMoPEForImageClassification(tiny_config(model_type, **fields))
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # the usual initial spread of 0.02 leaves attention and routing all but uniform
        for experts in model.prefix_experts:
            experts.keys.sub_(0.5)
    return model.eval()


def tiny_images(count: int = 4, size: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def pytest_collection_finish():
    """A run collects garbage behind every phase; what was imported need not be looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def without_pictures(request):
    """Runs draw nothing, which takes most of the time of so small a run, but for files that set `WITH_PICTURES`."""
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "WITH_PICTURES", False):
            for plot in ("plot_accuracy_matrix", "plot_average_accuracy"):
                patch.setattr(f"smope_hf.reports.results.{plot}", lambda *_, **__: None)
        yield


@pytest.fixture(params=THOROUGH)
def model_type(request) -> str:
    return request.param
