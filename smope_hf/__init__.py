"""SMoPE for Hugging Face: frozen vision transformers that learn new classes through sparse prompt experts.

Every public name is loaded on first use, and transformers' Auto classes know the models from the first on.
"""

import importlib
from typing import TYPE_CHECKING

from .base.moved_modules import find_moved
from .models.auto_classes import register_when_loaded
from .training.callbacks import DEFAULT_CALLBACKS
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .data.tasks import TaskStream
    from .models.configuration_smope import SMoPEConfig
    from .models.modeling_outputs import SMoPEImageClassifierOutput
    from .models.modeling_prompted import PromptedForImageClassification
    from .models.modeling_smope import SMoPEForImageClassification
    from .settings.training_args import ContinualTrainingArguments
    from .training.trainer import ContinualTrainer

__all__ = [
    "SMoPEConfig",
    "SMoPEForImageClassification",
    "SMoPEImageClassifierOutput",
    "PromptedForImageClassification",
    "TaskStream",
    "ContinualTrainer",
    "ContinualTrainingArguments",
]
_MODULES = {
    "SMoPEConfig": "models.configuration_smope",
    "SMoPEForImageClassification": "models.modeling_smope",
    "SMoPEImageClassifierOutput": "models.modeling_outputs",
    "PromptedForImageClassification": "models.modeling_prompted",
    "TaskStream": "data.tasks",
    "ContinualTrainer": "training.trainer",
    "ContinualTrainingArguments": "settings.training_args",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _results_report():
    from .reports.results import ResultsReport

    return ResultsReport()


find_moved(__name__)
register_when_loaded()
DEFAULT_CALLBACKS["report"] = _results_report  # entered here, since training does not know the reports
