"""What a model says of one image, and which of its experts the image switches on."""

import base64
import html
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from checkpoints import Loaded
from PIL import Image

from smope_hf.reports.plots import DARK, LIGHT, plot_image_experts


@dataclass(frozen=True)
class Look:
    """What came of one image. L prompt layers of H heads with E experts, K of them selected.

    Args:
        classes: probability of every class.
        selected: L arrays (H, K); None for a method without experts.
        usage: L arrays (H, E), how often training selected each.
        layers: the backbone's numbers of the layers.
    """

    classes: dict[str, float]
    selected: list[np.ndarray] | None
    usage: list[np.ndarray] | None
    layers: list[int]


@torch.inference_mode()
def look_at(loaded: Loaded, image: Image.Image) -> Look:
    """Classify an image, and read which experts it switches on."""
    model = loaded.model
    pixels = loaded.processor(images=image, return_tensors="pt")["pixel_values"]
    has_experts = model.records_usage
    output = model(pixels, **({"output_router_scores": True} if has_experts else {}))
    probabilities = output.logits[0].softmax(dim=-1).tolist()
    classes = dict(zip(loaded.class_names, probabilities, strict=True))
    if not has_experts:
        return Look(classes, None, None, [])
    selected = [layer[0].numpy() for layer in output.selected_experts]
    usage = [experts.usage_counts.numpy().copy() for experts in model.prefix_experts]
    return Look(classes, selected, usage, list(model.config.prompt_layers))


def chosen_shares(look: Look) -> tuple[float, float]:
    """Of the experts switched on: the share that training used more than evenly, and that it never used."""
    counts = np.concatenate([np.take_along_axis(u, s, axis=1) for u, s in zip(look.usage, look.selected)])
    even = np.concatenate([u.sum(axis=1, keepdims=True) / u.shape[1] for u in look.usage])
    return float((counts > even).mean()), float((counts == 0).mean())


def in_common(one: Look, other: Look) -> float | None:
    """Share of the experts switched on that two revisions have in common; None where they cannot be paired."""
    if one.selected is None or other.selected is None:
        return None
    shapes = [[u.shape for u in look.usage] for look in (one, other)]
    if shapes[0] != shapes[1] or one.layers != other.layers:
        return None
    rows = zip(np.concatenate(one.selected), np.concatenate(other.selected), strict=True)
    return float(np.mean([len(np.intersect1d(first, second)) / len(first) for first, second in rows]))


def experts_html(look: Look) -> str:
    """The picture of the experts for light and for dark pages, with the same in words."""
    if look.selected is None:
        return "<p>This method has prompts without experts: there is nothing to switch on.</p>"
    often, never = chosen_shares(look)
    heads, most = len(look.selected[0]), len(look.selected[0][0])
    text = (
        f"In each of {len(look.layers)} layers, each of {heads} heads switches on {most} of its "
        f"{look.usage[0].shape[1]} experts. Training used {100 * often:.0f}% of those switched on here more often "
        f"than average, and {100 * never:.0f}% never."
    )
    pictures = "".join(
        f'<img class="experts on-{name}" alt="{html.escape(text)}" src="data:image/png;base64,{_png(look, theme)}">'
        for name, theme in (("light", LIGHT), ("dark", DARK))
    )
    return f"<figure>{pictures}<figcaption>{html.escape(text)}</figcaption></figure>"


def _png(look: Look, theme) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts.png"
        plot_image_experts(look.usage, look.selected, path, layers=look.layers, theme=theme, dpi=170)
        return base64.b64encode(path.read_bytes()).decode()
