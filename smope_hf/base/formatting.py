"""How tables and reports show numbers and names in short."""

from .printable import printable

LONGEST_NAME = 200  # characters of a class's name


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
