"""The rivals of SMoPE by name: every `PromptMethod` that a [`PromptedConfig`] can choose."""

from .method_coda import CodaPrompt
from .method_dualprompt import DualPrompt
from .method_l2p import DeepL2P
from .method_ovor import OnePromptWithOutliers
from .method_plain import DiscriminantAnalysis, Finetune, Linear, NearestClassMean
from .prompt_method import PromptMethod

PROMPT_METHODS: dict[str, type[PromptMethod]] = {
    "ncm": NearestClassMean,
    "lda": DiscriminantAnalysis,
    "linear": Linear,
    "finetune": Finetune,
    "ovor": OnePromptWithOutliers,
    "l2p": DeepL2P,
    "dualprompt": DualPrompt,
    "coda-prompt": CodaPrompt,
}
