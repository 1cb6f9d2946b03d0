"""Methods without a prompt: what a prompt has to be worth, and the two bounds of what training can reach."""

from .base import PromptMethod


class Linear(PromptMethod):
    """Frozen backbone, the head alone is trained, task after task."""

    layers = ()


class NearestClassMean(PromptMethod):
    """Frozen backbone, nearest class mean in the Euclidean distance; nothing is trained."""

    layers = ()
    closed_form = "ncm"


class DiscriminantAnalysis(PromptMethod):
    """Frozen backbone, linear discriminant analysis with a shared covariance; nothing is trained."""

    layers = ()
    closed_form = "lda"


class Finetune(PromptMethod):
    """Every weight is trained, task after task: what forgetting is without any remedy."""

    layers = ()
    trains_backbone = True
