"""What several commands need: a checkpoint's classes, quiet libraries, cells of tables."""

import sys
from pathlib import Path

from .printable import printable
from .printing import make_logs_printable

LONGEST_NAME = 200  # characters of a class's name


def class_tasks(config) -> list[list[str]]:
    """Names of the classes of each task, from a checkpoint's config."""
    return [[config.id2label[index] for index in task] for task in config.tasks]


def read_config(folder: Path):
    """The config of a SMoPE checkpoint with at least one task.

    Raises:
        ValueError: or StrictDataclassError, naming the file and the field.
    """
    from .registry import config_of

    config = config_of(folder)
    if not config.tasks:
        raise ValueError(
            f"{folder / 'config.json'} has no tasks: the model has learned nothing yet, and a SMoPE checkpoint with "
            "at least one task is needed"
        )
    return config


def be_quiet():
    """Keep progress bars to terminals, and the libraries' notes to those who ask for them."""
    import datasets
    import huggingface_hub
    import transformers

    make_logs_printable(("datasets", "huggingface_hub", "transformers"))
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()


def ranges(numbers: list[int]) -> str:
    """Numbers in short: 0-5 for 0 to 5, else one by one."""
    consecutive = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"{numbers[0]}-{numbers[-1]}" if consecutive else ", ".join(map(str, numbers))


def percent(fraction: float | None) -> str:
    """A fraction as a table shows it."""
    return "n/a" if fraction is None else f"{100 * fraction:.1f}"


def names_in_short(names: list[str], width: int = 40) -> str:
    """Class names as they can be shown in one cell of a table: as many as fit, and how many more there are."""
    names = [printable(name, LONGEST_NAME) for name in names]
    text = ", ".join(names)
    if len(text) <= width:
        return text
    shown: list[str] = []
    for name in names:
        more = f", ... ({len(names)})"
        if shown and len(", ".join([*shown, name]) + more) > width:
            break
        shown.append(name if len(name) <= width else name[: width - 3] + "...")
    return ", ".join(shown) + f", ... ({len(names)})"
