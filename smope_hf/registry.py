"""Which model class a checkpoint needs."""

import os
from pathlib import Path

from transformers.utils import CONFIG_NAME

from .config_guard import read_config
from .configuration_incremental import IncrementalConfig
from .modeling_incremental import IncrementalClassifier
from .modeling_prompted import PromptedForImageClassification
from .modeling_smope import SMoPEForImageClassification
from .safe_json import read_json

MODEL_CLASSES: dict[str, type[IncrementalClassifier]] = {
    model.config_class.model_type: model for model in (SMoPEForImageClassification, PromptedForImageClassification)
}


def model_class_of(model_type: str | None) -> type[IncrementalClassifier]:
    """The class of a model type.

    Raises:
        ValueError: when it is not one of ours.
    """
    if model_type not in MODEL_CLASSES:
        raise ValueError(
            f"model_type = {model_type!r} is no model of smope_hf. There are: {', '.join(MODEL_CLASSES)}."
        )
    return MODEL_CLASSES[model_type]


def config_of(folder: str | os.PathLike) -> IncrementalConfig:
    """The config of a checkpoint's folder, of the class that it needs.

    Raises:
        ValueError: or StrictDataclassError, naming the file or the field.
    """
    path = Path(folder) / CONFIG_NAME
    return read_config(model_class_of(read_json(path).get("model_type")).config_class, path)
