"""The tables of what `examples/realign.py` found on finished runs, made from their realigned.json."""

from pathlib import Path

from results_text import table

from smope_hf.safe_json import read_json

FILE = "realigned.json"
PENALTIES = ("0.3", "1", "3", "10", "30")
SHRINKAGES = ("0.001", "0.01", "0.1", "estimated")
SHORT_PENALTY = "10"  # with which the short protocol's runs were trained


def rows_of(folder: Path) -> dict[frozenset, dict]:
    """The rows of the one training seed in a method's folder, by their settings; empty where it has none."""
    files = sorted(folder.glob(f"seed-*/{FILE}"))
    content = read_json(files[0])["rows"] if files else []
    return {frozenset(row["settings"].split(",")): row for row in content}


def percent(row: dict, kind: str) -> str:
    """An accuracy of a row in percent."""
    return f"{100 * row[kind]:.1f}"


def drift_penalties(folder: Path, names: dict[str, str]) -> str:
    """Held-out FAA for each drift compensation, the best in bold; test FAA for the short protocol's penalty and 3."""
    compensations = {f"linear, {penalty}": settings(penalty=penalty) for penalty in PENALTIES}
    compensations = {kind: settings(kind=kind) for kind in ("none", "shift")} | compensations
    lines = []
    for entry, name in names.items():
        if rows := rows_of(folder / entry):
            of = {what: rows[one] for what, one in compensations.items()}
            best = max(of, key=lambda what: of[what]["held_out"])
            cells = [f"**{percent(row, 'held_out')}**" if what == best else percent(row, "held_out")
                     for what, row in of.items()]  # fmt: skip
            tests = [percent(of[f"linear, {penalty}"], "test") for penalty in (SHORT_PENALTY, "3")]
            lines.append([name, *cells, *tests])
    return table(["method", *compensations, f"test, {SHORT_PENALTY}", "test, 3"], lines)


def settings(kind: str = "linear", penalty: str = SHORT_PENALTY, shrinkage: str = "0.001") -> frozenset:
    """A row's settings in a grid over all three."""
    return frozenset({f"drift_compensation={kind}", f"drift_shrinkage={penalty}", f"alignment_shrinkage={shrinkage}"})


def shrinkages(places: dict[str, Path], names: dict[str, str]) -> str:
    """Held-out and test FAA for each shrinkage of lda's covariance.

    Args:
        places: folders of runs, by what their training images are.
        names: methods in words, by the folder of their runs.
    """
    lines = []
    for images, folder in places.items():
        for entry, name in names.items():
            if rows := rows_of(folder / entry):
                cells = []
                for shrinkage in SHRINKAGES:
                    setting = f"alignment_shrinkage={shrinkage}"
                    row = rows.get(frozenset({setting})) or rows.get(settings(shrinkage=shrinkage))
                    cells.append(f"{percent(row, 'held_out')}, {percent(row, 'test')}" if row else "")
                lines.append([images, name, *cells])
    return table(["images per class", "method", *SHRINKAGES], lines)
