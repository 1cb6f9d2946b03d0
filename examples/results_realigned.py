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
    """Held-out FAA for each penalty on the drift's map, the best in bold; test FAA for the short protocol's and 3."""
    lines = []
    for entry, name in names.items():
        if rows := rows_of(folder / entry):
            of = {p: rows[frozenset({f"drift_shrinkage={p}", "alignment_shrinkage=0.001"})] for p in PENALTIES}
            best = max(of, key=lambda penalty: of[penalty]["held_out"])
            cells = [percent(row, "held_out") for row in of.values()]
            cells = [f"**{text}**" if p == best else text for p, text in zip(PENALTIES, cells, strict=True)]
            lines.append([name, *cells, percent(of[SHORT_PENALTY], "test"), percent(of["3"], "test")])
    return table(["method", *PENALTIES, f"test, {SHORT_PENALTY}", "test, 3"], lines)


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
                    row = rows.get(frozenset({setting})) or rows.get(
                        frozenset({setting, f"drift_shrinkage={SHORT_PENALTY}"})
                    )
                    cells.append(f"{percent(row, 'held_out')}, {percent(row, 'test')}" if row else "")
                lines.append([images, name, *cells])
    return table(["images per class", "method", *SHRINKAGES], lines)
