"""SMoPE for Hugging Face: frozen vision transformers that learn new classes through sparse prompt experts."""

import importlib

from transformers import AutoConfig, AutoModelForImageClassification

from .configuration_smope import SMoPEConfig
from .modeling_outputs import SMoPEImageClassifierOutput
from .modeling_prompted import PromptedForImageClassification
from .modeling_smope import SMoPEForImageClassification
from .version import __version__ as __version__

for _model in (SMoPEForImageClassification, PromptedForImageClassification):
    AutoConfig.register(_model.config_class.model_type, _model.config_class)
    AutoModelForImageClassification.register(_model.config_class, _model)

_TRAINING = {  # loaded on first use: who only loads a model does not wait for datasets and accelerate
    "TaskStream": "tasks",
    "ContinualTrainer": "trainer",
    "ContinualTrainingArguments": "training_args",
}
__all__ = ["SMoPEConfig", "SMoPEForImageClassification", "SMoPEImageClassifierOutput", *_TRAINING]


def __getattr__(name: str):
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_TRAINING[name]}", __name__), name)
