"""Which model class a checkpoint needs."""

import os
from pathlib import Path

from transformers.utils import CONFIG_NAME

from ..storage.config_guard import config_from, read_config_content
from ..storage.safe_json import shown
from .configuration_incremental import IncrementalConfig
from .modeling_incremental import IncrementalClassifier
from .modeling_prompted import PromptedForImageClassification
from .modeling_smope import SMoPEForImageClassification

MODEL_CLASSES: dict[str, type[IncrementalClassifier]] = {
    model.config_class.model_type: model for model in (SMoPEForImageClassification, PromptedForImageClassification)
}


def model_class_of(model_type: str | None) -> type[IncrementalClassifier]:
    """The class of a model type.

    Raises:
        ValueError: when it is not one of ours.
    """
    if not isinstance(model_type, str) or model_type not in MODEL_CLASSES:
        raise ValueError(
            f"model_type = {shown(model_type)} is no model of smope_hf. There are: {', '.join(MODEL_CLASSES)}."
        )
    return MODEL_CLASSES[model_type]


def config_of(folder: str | os.PathLike) -> IncrementalConfig:
    """The config of a checkpoint's folder, of the class that it needs.

    Raises:
        ValueError: or StrictDataclassError, naming the file or the field.
    """
    path = Path(folder) / CONFIG_NAME
    content = read_config_content(path)
    try:
        model_class = model_class_of(content.get("model_type"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config_from(content, model_class.config_class, path)
