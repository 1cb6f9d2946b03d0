"""SMoPE for Hugging Face: frozen vision transformers that learn new classes through sparse prompt experts.

Every public name is loaded on first use, and transformers' Auto classes know the models from the first on.
"""

import importlib
from typing import TYPE_CHECKING

from .auto_classes import register_when_loaded
from .callbacks import DEFAULT_CALLBACKS
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .configuration_smope import SMoPEConfig
    from .modeling_outputs import SMoPEImageClassifierOutput
    from .modeling_prompted import PromptedForImageClassification
    from .modeling_smope import SMoPEForImageClassification
    from .tasks import TaskStream
    from .trainer import ContinualTrainer
    from .training_args import ContinualTrainingArguments

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
    "SMoPEConfig": "configuration_smope",
    "SMoPEForImageClassification": "modeling_smope",
    "SMoPEImageClassifierOutput": "modeling_outputs",
    "PromptedForImageClassification": "modeling_prompted",
    "TaskStream": "tasks",
    "ContinualTrainer": "trainer",
    "ContinualTrainingArguments": "training_args",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _results_report():
    from .results import ResultsReport

    return ResultsReport()


register_when_loaded()
DEFAULT_CALLBACKS["report"] = _results_report  # entered here, since training does not know the reports
