"""The rivals of SMoPE by name: every `PromptMethod` that a [`PromptedConfig`] can choose."""

from .base import PromptMethod
from .table import METHODS

PROMPT_METHODS: dict[str, type[PromptMethod]] = {
    name: method.load() for name, method in METHODS.items() if method.load is not None
}
