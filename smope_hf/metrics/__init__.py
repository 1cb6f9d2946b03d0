"""Accuracies of tasks, and what continual learning is measured by.

Numbers alone: nothing is printed or drawn here. Start with `summary`, whose names this package offers.
"""

import importlib

_OFFERED = "summary"


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_OFFERED}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module(f".{_OFFERED}", __name__).__all__})
