"""Configuration of a rival of SMoPE."""

import math

from huggingface_hub.dataclasses import strict

from ..base.named_settings import nearest_name
from .configuration_incremental import IncrementalConfig
from .methods.rivals import PROMPT_METHODS

MAX_SETTING = 2**16
MAX_SIZE = 2**17  # prompts' size grows with the product of the whole numbers; in a ViT-B this is 4 GB


@strict
class PromptedConfig(IncrementalConfig):
    r"""Configuration of [`PromptedForImageClassification`]: a frozen ViT and a prompt method from the literature.

    Args:
        method: a name in `smope_hf.models.methods.rivals.PROMPT_METHODS`.
        settings: the method's own, such as its prompts' length; those not given are as published.

    The other fields are those of [`IncrementalConfig`]; `prompt_layers` are by default the method's own.

    Raises:
        ValueError: for a value outside what is allowed; the message names the field, the value and what is allowed.
    """

    model_type = "smope_prompted"
    keys_to_ignore_at_inference = ["cross_entropy", "method_loss", "pooled_output", "hidden_states", "attentions"]

    method: str = "linear"
    settings: dict[str, float | int] | None = None

    def default_layers(self) -> list[int]:
        layers = PROMPT_METHODS[self.method].layers if self.method in PROMPT_METHODS else ()
        return [layer for layer in layers if layer < self.backbone_config.num_hidden_layers]

    def validate_method(self):
        """Check that the method exists and has the settings given."""
        self.check("method", self.method, self.method in PROMPT_METHODS, f"one of {', '.join(PROMPT_METHODS)}")
        chosen = PROMPT_METHODS[self.method]
        known = chosen.defaults
        for name, value in (self.settings or {}).items():
            those = f"of {self.method}: {', '.join(known) or 'none'}. {nearest_name(name, known)}".rstrip(". ")
            self.check(f"settings[{name!r}]", value, name in known, those)
            whole = isinstance(known[name], int)
            fits = type(value) in (int, float) and 0 <= value <= MAX_SETTING
            fits = fits and (not whole or (isinstance(value, int) and value >= 1))
            allowed = f"{'a whole number from 1' if whole else 'a number from 0'} to {MAX_SETTING}"
            self.check(f"settings[{name!r}]", value, fits, allowed)
        settings = {**known, **(self.settings or {})}
        size = math.prod(value for value in settings.values() if isinstance(value, int))
        self.check("settings", self.settings, size <= MAX_SIZE, f"whole numbers whose product is at most {MAX_SIZE}")
        for name, fits, allowed in chosen.checks(settings):
            self.check(f"settings[{name!r}]", settings[name], fits, allowed)

    def validate_prompt_layers(self):
        """Check that every prompt layer exists once; a method without prompts has none."""
        if self.prompt_layers or PROMPT_METHODS[self.method].layers:
            super().validate_prompt_layers()
