"""Every method by name: what `--method` takes, what tables and model cards call it, and where its class is.

Without torch, so that the command line can list the names: a class is imported when it is asked for. The imports are
relative and written out, since that is how transformers finds the files of a model whose code is pushed along.
"""

from collections.abc import Callable
from typing import NamedTuple


class Method(NamedTuple):
    """A method that can be chosen by name.

    Args:
        title: its name in tables and model cards.
        load: gives its class, a [`PromptMethod`]; None for what [`SMoPEForImageClassification`] does itself.
    """

    title: str
    load: Callable[[], type] | None = None


METHODS: dict[str, Method] = {"smope": Method("SMoPE"), "one-prompt": Method("One prompt")}


def register(name: str, title: str) -> Callable:
    """Decorator: enter a method under its name.

    Args:
        name: what `--method` and a config's `method` take.
        title: its name in tables and model cards.

    Raises:
        ValueError: when the name is another method's.
    """
    if name in METHODS:
        raise ValueError(f"{name!r} is the name of a method already. Taken are: {', '.join(METHODS)}.")

    def enter(load: Callable[[], type]) -> Callable[[], type]:
        METHODS[name] = Method(title, load)
        return load

    return enter


@register("ncm", "Nearest class mean")
def _():
    from .plain import NearestClassMean

    return NearestClassMean


@register("lda", "LDA")
def _():
    from .plain import DiscriminantAnalysis

    return DiscriminantAnalysis


@register("linear", "Linear head")
def _():
    from .plain import Linear

    return Linear


@register("finetune", "Fine-tuning")
def _():
    from .plain import Finetune

    return Finetune


@register("ovor", "OVOR")
def _():
    from .ovor import OnePromptWithOutliers

    return OnePromptWithOutliers


@register("l2p", "Deep L2P++")
def _():
    from .l2p import DeepL2P

    return DeepL2P


@register("dualprompt", "DualPrompt")
def _():
    from .dualprompt import DualPrompt

    return DualPrompt


@register("coda-prompt", "CODA-Prompt")
def _():
    from .coda import CodaPrompt

    return CodaPrompt
