"""report.html: the story of one run in one file."""

import os
from pathlib import Path

from ..base.formatting import LONGEST_NAME, names_in_short
from ..base.home import expanded
from ..base.printable import printable
from ..metrics.summary import metrics_where_measured
from ..sharing.inspection import describe_checkpoint
from ..training.result_files import REPORT_FILE
from .report_html import BAR, NUMBER, TEXT, counted, duration, embedded, percent, shown_value, table, write_html
from .run_folder import RunFolder
from .run_pictures import accuracy_pictures, routing_pictures
from .run_warnings import warnings_of_run

SECTIONS = {
    "warnings": "Warnings",
    "accuracy": "Accuracy",
    "tasks": "Tasks",
    "routing": "Routing",
    "time": "Time",
    "settings": "Settings",
    "manifest": "Manifest",
    "versions": "Versions",
}
_MOST_COLUMNS = 20  # of a table of tasks that is worth reading


def write_report(run: str | os.PathLike, output: str | os.PathLike | None = None) -> Path:
    """Write the report of a run: one HTML file that needs nothing beside itself.

    Args:
        run: folder of a run, finished or cut, or of one task of it.
        output: the file. Default: report.html in the run's folder.

    Returns:
        The file.

    Raises:
        FileNotFoundError: when the folder holds no run.
        ValueError: when one of its files is broken; the message names it.
    """
    opened = RunFolder(run)
    output = expanded(Path(output)) if output else opened.path / REPORT_FILE
    write_html(output, "run.html", _context(opened))
    return output


def _context(run: RunFolder) -> dict:
    described = describe_checkpoint(run.tasks[-1]) if run.tasks else None
    return {
        "title": printable(f"{run.method} on {run.manifest['name']}" if run.manifest else run.method, LONGEST_NAME),
        "story": _story(run),
        "sections": SECTIONS,
        "tiles": _tiles(run, described),
        "warnings": warnings_of_run(run),
        "accuracy_pictures": embedded(accuracy_pictures(run)),
        "yardsticks": _yardsticks(run),
        "matrix": _matrix(run),
        "tasks": _tasks(run),
        "routing": _routing(run, described),
        "routing_pictures": embedded(routing_pictures(run)),
        "no_routing": _no_routing(run),
        "time": _time(run),
        "time_by_task": _time_by_task(run),
        "settings": _settings(run),
        "protocol_hash": run.protocol_hash,
        "manifest": _class_order(run),
        "versions": [[name, shown_value(version)] for name, version in run.content.get("versions", {}).items()],
    }


def _story(run: RunFolder) -> str:
    learned = counted(len(run.matrix), "task")
    state = f"{learned} learned." if run.finished else f"Not finished: {learned} learned so far."
    origin = run.content.get("continued_from")
    if origin:
        source = printable(origin.get("name") or "a checkpoint on disk", LONGEST_NAME)
        state += f" It went on from {source}, which had learned {counted(origin['num_tasks'], 'task')}."
    return f"Run {run.path.resolve().name}. {state}"


def _tiles(run: RunFolder, described: dict | None) -> list[dict]:
    metrics = metrics_where_measured(run.matrix)
    seconds = sum(sum(task.values()) for task in run.content.get("seconds_by_task", []))
    found = [
        ("final average accuracy", _with_sign(metrics["final_average_accuracy"])),
        ("cumulative average accuracy", _with_sign(metrics["cumulative_average_accuracy"])),
        ("forgetting", _with_sign(metrics["forgetting"])),
        ("tasks learned", str(len(run.matrix))),
    ]
    if described:
        trained = {**described["parameters"], "backbone": 0, "routing_state": 0}
        found += [("classes", str(described["num_classes"])), ("parameters added", f"{sum(trained.values()):,}")]
    if seconds:
        found.append(("time of all tasks", duration(seconds)))
    return [{"label": label, "value": value} for label, value in found]


def _with_sign(fraction: float | None) -> str:
    return "n/a" if fraction is None else f"{percent(fraction)}%"


def _yardsticks(run: RunFolder) -> dict | None:
    if not run.yardsticks:
        return None
    rows = []
    for name, matrix in {run.method: run.matrix, **run.yardsticks}.items():
        metrics = metrics_where_measured(matrix)
        names = ("final_average_accuracy", "cumulative_average_accuracy", "forgetting", "backward_transfer")
        rows.append([name, *(percent(metrics[key]) for key in names)])
    return table({"method": "", "FAA": NUMBER, "CAA": NUMBER, "FM": NUMBER, "BWT": NUMBER}, rows)


def _matrix(run: RunFolder) -> dict | None:
    rows = run.matrix.to_json()
    if len(rows) > _MOST_COLUMNS:
        return None
    columns = {"after": "", **{f"task {index + 1}": NUMBER for index in range(len(rows))}}
    blank = [[""] * (len(rows) - len(row)) for row in rows]
    cells = [[f"task {t + 1}", *map(percent, row), *blank[t]] for t, row in enumerate(rows)]
    return table(columns, cells)


def _tasks(run: RunFolder) -> dict:
    rows = run.matrix.to_json()
    entries = run.manifest["tasks"] if run.manifest else [None] * len(rows)
    cells = []
    for index, entry in enumerate(entries):
        learned = index < len(rows)
        then, now = (rows[index][index], rows[-1][index]) if learned else (None, None)
        cells.append([str(index + 1), *_task_cells(entry), percent(then), percent(now)])
    columns = {"task": NUMBER, "classes": TEXT, "training images": NUMBER, "test images": NUMBER}
    return table({**columns, "when learned": NUMBER, "at the end": NUMBER}, cells)


def _task_cells(entry: dict | None) -> list[str]:
    if entry is None:
        return ["not recorded", "n/a", "n/a"]
    images = [f"{entry[split]['num_samples']:,}" if entry[split] else "none" for split in ("train", "test")]
    return [names_in_short(entry["class_names"], 90), *images]


def _routing(run: RunFolder, described: dict | None) -> dict | None:
    if not described or described["routing"] is None:
        return None
    names = ("dead", "frequently_used")
    rows = []
    for layer in described["routing"]:
        shares = [f"{layer[name]} ({100 * layer[name] / layer['experts']:.0f}%)" for name in names]
        rows.append([str(layer["layer"]), *shares, f"{layer['entropy']:.2f}", f"{layer['gini']:.2f}"])
    columns = {"layer": "", "never used": NUMBER, "frequently used": NUMBER, "entropy": NUMBER, "Gini": NUMBER}
    report = run.routing
    text = (
        f"{report['num_experts']} experts per head, of which an image switches on {report['top_k']}; "
        f"{report['routing']} routing, noise epsilon {report['noise_epsilon']:g}. "
        f"{100 * report['dead_share']:.0f}% of all experts were never used by a training image, "
        f"{100 * report['frequently_used_share']:.0f}% are marked as frequently used."
    )
    return {"text": text, **table(columns, rows)}


def _no_routing(run: RunFolder) -> str:
    if not run.tasks:
        return "No checkpoint was saved, so how the experts are used is not known."
    return f"{run.method} has no experts."


def _time(run: RunFolder) -> dict | None:
    totals: dict[str, float] = {}
    tasks = run.content.get("seconds_by_task", [])
    for task in tasks:
        for stage, seconds in task.items():
            totals[stage] = totals.get(stage, 0) + seconds
    whole = sum(totals.values())
    if not whole:
        return None
    rows = [
        [stage, duration(seconds), duration(seconds / len(tasks)), f"{100 * seconds / whole:.0f}%",
         100 * seconds / whole]
        for stage, seconds in totals.items()
    ]  # fmt: skip
    rows.append(["all", duration(whole), duration(whole / len(tasks)), "100%", 100])
    return table({"stage": "", "all tasks": NUMBER, "a task": NUMBER, "share": NUMBER, " ": BAR}, rows)


def _time_by_task(run: RunFolder) -> dict:
    tasks = run.content.get("seconds_by_task", [])
    stages = list(dict.fromkeys(stage for task in tasks for stage in task))
    rows = [
        [str(index), *(f"{task[stage]:.1f}" if stage in task else "" for stage in stages)]
        for index, task in enumerate(tasks, start=1)
    ]
    return table({"task": NUMBER, **dict.fromkeys(stages, NUMBER)}, rows)


def _settings(run: RunFolder) -> dict[str, list[list[str]]]:
    data = {}
    if run.manifest:
        columns = {f"{name}_column": value for name, value in run.manifest["columns"].items()}
        data = {"name": run.manifest["name"], **columns, **run.manifest["options"]}
    processes = {name: run.content[name] for name in ("num_processes",) if name in run.content}
    parts = {"Model": run.model, "Data and tasks": data, "Training": {**run.recipe, **processes}}
    return {part: [[name, shown_value(value)] for name, value in settings.items()] for part, settings in parts.items()}


def _class_order(run: RunFolder) -> dict | None:
    if run.manifest is None:
        return None
    splits = ("train", "validation", "test")
    rows = [
        [str(task["index"] + 1), ", ".join(printable(name, LONGEST_NAME) for name in task["class_names"]),
         *(task[split]["sha256"][:16] if task[split] else "none" for split in splits)]
        for task in run.manifest["tasks"]
    ]  # fmt: skip
    hashes = {f"{split} SHA-256": NUMBER for split in splits}
    return table({"task": NUMBER, "classes in order": TEXT, **hashes}, rows)
