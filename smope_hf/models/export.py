"""A trained model as one file that runs without smope_hf: torch.export or ONNX."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

FORMATS = {"onnx": "model.onnx", "torch": "model.pt2"}
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit where that is above 1: the closed-form head's are
ONE_FILE = 3 * 2**29  # bytes of weights up to which ONNX keeps them inside its file; its own limit is 2 GiB


class _Logits(nn.Module):
    """(B, 3, height, width) -> (B, C), and nothing else."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


def check_packages(kind: str):
    """Check that what a format needs is installed.

    Raises:
        ImportError: naming what is missing and how to install it.
    """
    missing = [name for name in NEEDED if kind == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Export to ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            "Install the extra: pip install 'smope_hf[export]'; or export to torch, which needs nothing more."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what exporters say to those who write exporters; the result is compared with the model anyway."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@torch.no_grad()
def export_model(model, size: tuple[int, int], path: str | Path, kind: str) -> float:
    """Write a model as a graph from pixel values to logits, for any number of images, and run it once.

    Args:
        model: an [`IncrementalClassifier`]; left in evaluation mode.
        size: (height, width) of the images.
        path: file to write.
        kind: "onnx" or "torch".

    Returns:
        The largest difference of its logits from the model's own on random images, over the largest of these where
        that is above 1.

    Raises:
        ImportError: when a package is missing.
        RuntimeError: when the logits are not the model's own up to 1e-4; the file is left for a look.
    """
    if kind not in FORMATS:
        raise ValueError(f"format = {kind!r} is not allowed. Allowed: {' or '.join(FORMATS)}.")
    check_packages(kind)
    logits = _Logits(model.eval()).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, model.config.backbone_config.num_channels, *size, generator=generator)
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.export.export(logits, (pixels[:2],), dynamic_shapes={"pixel_values": {0: batch}})
        run = (_write_onnx if kind == "onnx" else _write_torch)(program, path)
    difference, scale = 0.0, 1.0
    for count in (1, 3):  # neither is the number it was made with
        expected = logits(pixels[:count])
        difference = max(difference, (run(pixels[:count]) - expected).abs().max().item())
        scale = max(scale, expected.abs().max().item())
    difference /= scale
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"The logits of {path} differ from the model's by up to {difference:.3g} of the largest; at most "
            f"{TOLERANCE} is allowed. Do not use the file; please report the backbone and the versions of torch and "
            "onnxruntime."
        )
    return difference


def _write_torch(program, path: str | Path) -> Callable[[Tensor], Tensor]:
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _write_onnx(program, path: str | Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    weights = sum(value.nbytes for value in program.state_dict.values())
    torch.onnx.export(
        program, f=str(path), input_names=["pixel_values"], output_names=["logits"], dynamo=True, verbose=False,
        external_data=weights > ONE_FILE,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixel_values": pixels.numpy()})[0])
