"""Reading class_statistics.safetensors, checked against the checkpoint's config."""

from pathlib import Path

from torch import Tensor

from ..base.named_settings import MAX_WHOLE
from ..routing.usage import ROUTING_FILE as ROUTING_FILE
from ..routing.usage import load_routing as load_routing
from ..storage.checkpoint_guard import FLOATING, INTEGER, check_shapes, inside, read_header, read_tensors
from ..storage.field_checks import require


def read_statistics(folder: Path, name: str, config, heads: int) -> dict[str, Tensor]:
    """The tensors of a checkpoint's class statistics, checked against its config.

    Args:
        folder: of the checkpoint.
        name: of the file in it.
        config: the checkpoint's [`SMoPEConfig`].
        heads: attention heads of its backbone.

    Raises:
        ValueError: naming the tensor, and the config's field where it does not fit.
    """
    file = inside(folder, folder / name)
    header = read_header(file)
    classes, features = ("the number of classes", config.num_labels), ("hidden_size", config.hidden_size)
    expected = {
        "mean": (FLOATING, (classes, features)),
        "variance": (FLOATING, (classes, features)),
        "count": (INTEGER, (classes,)),
        "scatter": (FLOATING, (features, features)),
    }
    lowest, highest = {"variance": 0, "count": 1}, {"count": MAX_WHOLE, "usage_by_task": MAX_WHOLE}
    if config.model_type == "smope":
        layers, experts = (
            ("the number of prompt_layers", len(config.prompt_layers)),
            ("num_experts", config.num_experts),
        )
        usage = (("the number of tasks", len(config.tasks)), layers, ("num_attention_heads", heads), experts)
        expected["usage_by_task"], lowest["usage_by_task"] = (INTEGER, usage), 0
    check_shapes(header, expected, file)
    tensors = read_tensors([file])
    for tensor in ("mean", "variance", "scatter"):
        require(file, tensor, "NaN or infinity", bool(tensors[tensor].isfinite().all()), "finite numbers")
    for tensor, least in lowest.items():
        smallest = tensors[tensor].min().item() if tensors[tensor].numel() else least
        require(file, tensor, smallest, smallest >= least, f"at least {least}")
    for tensor in highest.keys() & tensors.keys():  # sums over all tasks, heads and experts stay within 64 bits
        largest = tensors[tensor].max().item() if tensors[tensor].numel() else 0
        require(file, tensor, largest, largest <= highest[tensor], f"at most {highest[tensor]}")
    _check_diagonal(tensors, file)
    return tensors


def _check_diagonal(tensors: dict[str, Tensor], file: Path):
    """A scatter's diagonal holds sums of squares; taken as a difference of sums, it may be below 0 by rounding."""
    diagonal = tensors["scatter"].diagonal().double()
    sums = (tensors["count"].unsqueeze(1) * tensors["mean"].double().square()).sum(dim=0)  # (D,)
    wrong = diagonal < -1e-4 * sums
    smallest = diagonal[wrong].min().item() if bool(wrong.any()) else 0
    require(file, "scatter's diagonal", smallest, smallest >= 0, "at least 0")
