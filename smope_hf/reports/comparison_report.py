"""Several runs side by side in one HTML file, those on other tasks in parts of their own."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..base.home import expanded
from ..base.printable import printable
from ..data.manifest import manifest_differences
from ..metrics.summary import metrics_where_measured
from .plot_parts import rounded_range
from .plots import plot_accuracy_matrix
from .report_html import (
    LONGEST_TEXT,
    NUMBER,
    TEXT,
    counted,
    duration,
    embedded,
    percent,
    shown_value,
    table,
    write_html,
)
from .run_folder import RunFolder, open_runs
from .run_groups import RunGroup, by_protocol, different_settings, group_runs, settings_of
from .run_pictures import Picture, curve_pictures
from .run_warnings import warnings_of_run

METRICS = {"FAA": "final_average_accuracy", "CAA": "cumulative_average_accuracy", "FM": "forgetting"}


def write_comparison(runs: Sequence[str | os.PathLike], output: str | os.PathLike) -> Path:
    """Write a report that compares runs: one HTML file that needs nothing beside itself.

    Runs that differ in their seed alone are one row, and one line with a band. Runs that learned different tasks stand
    in different parts, and no picture or table has runs of two parts.

    Args:
        runs: folders of at least two runs.
        output: the file.

    Returns:
        The file.

    Raises:
        FileNotFoundError: when a folder holds no run.
        ValueError: when a run is given twice, or one of its files is broken; the message names it.
    """
    opened = open_runs(runs)
    parts = by_protocol(opened)
    first = next(iter(parts[0].values()))
    context = {
        "title": f"{counted(len(opened), 'run')} side by side",
        "story": "; ".join(f"{name}: {run.method}" for name, run in opened.items()) + ".",
        "parts": [_part(part, first, index if len(parts) > 1 else None) for index, part in enumerate(parts)],
    }
    output = expanded(Path(output))
    write_html(output, "comparison.html", context)
    return output


def _part(runs: dict[str, RunFolder], first: RunFolder, index: int | None) -> dict:
    """What the template shows of runs on the same tasks; index of the part, None where it is the only one."""
    groups = group_runs(runs)
    run = groups[0].first
    source = printable(run.manifest["name"], LONGEST_TEXT) if run.manifest else "tasks without a manifest"
    count = max(len(run.matrix) for run in runs.values())
    differences = []
    if index and first.manifest and run.manifest:
        differences = manifest_differences(first.manifest, run.manifest)
    complete = {
        group.label: [run.matrix.as_array() for run in group.runs.values()]
        for group in groups
        if group.first.matrix.is_complete
    }
    return {
        "name": f"{source}: {counted(count, 'task')}{_which(run, index)}",
        "protocol_hash": run.protocol_hash,
        "differences": [printable(difference, LONGEST_TEXT) for difference in differences],
        "results": _results(groups),
        "warnings": _warnings(groups),
        "pictures": embedded(_numbered(curve_pictures(complete), index or 0)) if complete else [],
        "settings": _settings(groups),
        "final": _final(groups),
        "matrices": embedded(_numbered(_matrices(groups), index or 0)),
        "runs": [{"name": name, "warnings": warnings_of_run(run)} for name, run in runs.items()],
    }


def _which(run: RunFolder, index: int | None) -> str:
    """What tells the tasks of one part from those of another, where both have as many."""
    return "" if index is None else f", protocol {(run.protocol_hash or 'not recorded')[:12]}"


def _results(groups: list[RunGroup]) -> dict:
    rows = []
    for group in groups:
        runs = list(group.runs.values())
        measured = [metrics_where_measured(run.matrix) for run in runs]
        cells = [_mean([metrics[key] for metrics in measured]) for key in METRICS.values()]
        seconds = [sum(sum(task.values()) for task in run.content.get("seconds_by_task", [])) for run in runs]
        time = duration(float(np.mean(seconds))) if all(seconds) else "n/a"
        names = ", ".join(group.runs)
        rows.append([group.label, names, str(len(runs)), str(len(runs[0].matrix)), *cells, time])
    columns = {"method": TEXT, "runs": TEXT, "seeds": NUMBER, "tasks": NUMBER, **dict.fromkeys(METRICS, NUMBER)}
    return table({**columns, "time": NUMBER}, rows)


def _mean(values: list[float | None]) -> str:
    if None in values:
        return "n/a"
    return percent(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _warnings(groups: list[RunGroup]) -> list[str]:
    found = []
    if len(groups) > 1 and any(len(group.runs) == 1 for group in groups):
        alone = ", ".join(group.label for group in groups if len(group.runs) == 1)
        found.append(
            f"A single seed of {alone}: a difference may be chance. Run it again with other values of --seed; runs "
            "that differ in nothing else become one line with a band."
        )
    if len({len(run.matrix) for group in groups for run in group.runs.values()}) > 1:
        found.append(
            "Not all runs have learned as many tasks: compare averages at the same number of tasks, in the curves."
        )
    return found


def _settings(groups: list[RunGroup]) -> dict:
    names = different_settings(groups)
    settings = [settings_of(group.first) for group in groups]
    rows = [[name, *(shown_value(own[name]) if name in own else "" for own in settings)] for name in names]
    return table([("setting", ""), *((group.label, TEXT) for group in groups)], rows)


def _final(groups: list[RunGroup]) -> dict:
    rows = [[run.matrix.as_array()[-1] for run in group.runs.values()] for group in groups]
    count = max(len(row[0]) for row in rows)
    cells = []
    for task in range(count):
        means = [np.mean([last[task] for last in row]) if task < len(row[0]) else None for row in rows]
        cells.append([str(task + 1), *map(percent, means)])
    return table([("task", NUMBER), *((group.label, NUMBER) for group in groups)], cells)


def _matrices(groups: list[RunGroup]) -> list[Picture]:
    """Each group's accuracy matrix, a mean over its seeds, all on one scale of colours."""
    means = [np.mean([run.matrix.as_array() for run in group.runs.values()], axis=0) for group in groups]
    measured = np.concatenate([mean[~np.isnan(mean)] for mean in means])
    if not len(measured):
        return []
    low, high = rounded_range(100 * measured)
    scale = (low / 100, high / 100)
    found = []
    for number, (group, mean) in enumerate(zip(groups, means, strict=True), start=1):
        if np.isnan(mean).all():
            continue
        seeds = f", mean over {len(group.runs)} seeds" if len(group.runs) > 1 else ""
        draw = partial(plot_accuracy_matrix, mean, partial=True, value_range=scale, title=group.label)
        found.append(Picture(f"accuracy_matrix-{number}", f"Accuracy matrix of {group.label}{seeds}.", draw))
    return found


def _numbered(pictures: list[Picture], part: int) -> list[Picture]:
    """Names that no other part's pictures have."""
    return [replace(picture, name=f"{picture.name}-part-{part + 1}") for picture in pictures]
