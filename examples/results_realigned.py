"""The tables of what `examples/realign.py` found on finished runs, made from their realigned.json."""

from pathlib import Path

import numpy as np
from benchmark_records import REALIGNED_FILE, read_realigned
from results_text import cell, table

PENALTIES = ("0.3", "1", "3", "10", "30")
SHRINKAGES = ("0.001", "0.01", "0.1", "estimated")
SHORT_PENALTY = "10"  # with which the short protocol's runs were trained
DEFAULT_PENALTY, DEFAULT_SHRINKAGE = "3", "estimated"  # the package's own


def seeds_of(folder: Path) -> list[dict[frozenset, dict]]:
    """For each training seed in a method's folder its rows, by their settings; none where it has no such file."""
    contents = [read_realigned(path) for path in sorted(folder.glob(f"seed-*/{REALIGNED_FILE}"))]
    return [{frozenset(row["settings"].split(",")): row for row in rows} for rows in contents]


def percent(seeds: list[dict[frozenset, dict]], setting: frozenset, kind: str) -> np.ndarray:
    """Each seed's accuracy with a setting, in percent; none where a seed has not been set anew with it."""
    found = [100 * rows[setting][kind] for rows in seeds if setting in rows]
    return np.array(found if len(found) == len(seeds) else [])


def drift_penalties(folder: Path, names: dict[str, str]) -> str:
    """Held-out FAA for each drift compensation, the best in bold; test FAA as recorded, with 3, and as by default."""
    compensations = {f"linear, {penalty}": settings(penalty=penalty) for penalty in PENALTIES}
    compensations = {kind: settings(kind=kind) for kind in ("none", "shift")} | compensations
    tested = {f"test, {penalty}": settings(penalty=penalty) for penalty in (SHORT_PENALTY, DEFAULT_PENALTY)}
    tested["test, defaults"] = settings(penalty=DEFAULT_PENALTY, shrinkage=DEFAULT_SHRINKAGE)
    lines = []
    for entry, name in names.items():
        if seeds := seeds_of(folder / entry):
            of = {what: percent(seeds, one, "held_out").mean() for what, one in compensations.items()}
            best = max(of, key=of.get)
            cells = [f"**{mean:.1f}**" if what == best else f"{mean:.1f}" for what, mean in of.items()]
            lines.append(
                [name, str(len(seeds)), *cells, *(cell(percent(seeds, one, "test")) for one in tested.values())]
            )
    return table(["method", "seeds", *compensations, *tested], lines)


def drift_ceiling(folder: Path, names: dict[str, str]) -> str:
    """FAA without drift compensation, with it, and with statistics of all tasks' images taken afresh at the end."""
    kinds = {"none": settings("none"), "linear": settings(penalty=DEFAULT_PENALTY), "afresh": settings("afresh")}
    lines = []
    for entry, name in names.items():
        if seeds := [rows for rows in seeds_of(folder / entry) if kinds["afresh"] in rows]:
            cells = [cell(percent(seeds, one, kind)) for kind in ("held_out", "test") for one in kinds.values()]
            lines.append([name, str(len(seeds)), *cells])
    header = [f"{images}, {kind}" for images in ("held-out", "test") for kind in kinds]
    return table(["method", "seeds", *header], lines)


def settings(kind: str = "linear", penalty: str = SHORT_PENALTY, shrinkage: str = "0.001") -> frozenset:
    """A row's settings in a grid over all three."""
    return frozenset({f"drift_compensation={kind}", f"drift_shrinkage={penalty}", f"alignment_shrinkage={shrinkage}"})


def shrinkages(places: dict[str, Path], names: dict[str, str]) -> str:
    """Held-out and test FAA for each shrinkage of lda's covariance, the mean over the seeds.

    Args:
        places: folders of runs, by what their training images are.
        names: methods in words, by the folder of their runs.
    """
    lines = []
    for images, folder in places.items():
        for entry, name in names.items():
            if seeds := seeds_of(folder / entry):
                cells = []
                for shrinkage in SHRINKAGES:
                    alone, among = frozenset({f"alignment_shrinkage={shrinkage}"}), settings(shrinkage=shrinkage)
                    setting = alone if alone in seeds[0] else among
                    means = [percent(seeds, setting, kind) for kind in ("held_out", "test")]
                    cells.append(", ".join(f"{accuracies.mean():.1f}" for accuracies in means if accuracies.size))
                lines.append([images, name, str(len(seeds)), *cells])
    return table(["images per class", "method", "seeds", *SHRINKAGES], lines)
