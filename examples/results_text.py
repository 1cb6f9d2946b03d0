"""Cells and tables of `results_tables.py`."""

from collections.abc import Iterable

import numpy as np


def cell(numbers: np.ndarray, sign: str = "") -> str:
    """Mean and standard deviation."""
    mean = round(float(np.mean(numbers)), 1) + 0.0  # no -0.0
    return f"{mean:{sign}.1f}" + (f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else "")


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Markdown, the first column words and the others numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(header) - 1))
    return "\n".join(lines) + "\n"
