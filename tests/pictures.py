"""What a picture has to be, and accuracies to draw."""

import os
from itertools import combinations

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

TASKS = (1, 2, 10, 20, 100)


def matrix(num_tasks: int, seed: int = 0, first: float = 1.0) -> np.ndarray:
    a = np.random.default_rng(seed).uniform(0.6, 0.9, size=(num_tasks, num_tasks))
    a[0, 0] = first
    a[np.triu_indices(num_tasks, 1)] = np.nan
    return a


def visible_texts(figure: Figure) -> list:
    """Every text that is drawn: titles, axis labels, ticks within the view, numbers in cells, labels of lines."""
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in [*figure.axes, *(child for axes in figure.axes for child in axes.child_axes)]:
        texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            places = axis.get_majorticklocs()
            ticks = zip(places, axis.get_major_ticks(len(places)), strict=True)
            texts += [tick.label1 for place, tick in ticks if low <= place <= high]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def check_labels(figure: Figure) -> None:
    drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height
    boxes = [(text.get_text(), matplotlib.text.Text.get_window_extent(text)) for text in visible_texts(figure)]
    frame = figure.bbox
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= frame.x1 and box.y1 <= frame.y1, f"{text!r} is cut"
    for (one, first), (other, second) in combinations(boxes, 2):
        shared_x = min(first.x1, second.x1) - max(first.x0, second.x0)
        shared_y = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(shared_x, shared_y) <= 0.5, f"{one!r} covers {other!r}"


def check_png(path, width: int) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == width
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 15
    assert os.listdir(path.parent) == [path.name]
