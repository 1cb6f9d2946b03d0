"""`smope plot`: the pictures of one run, or several runs in one picture."""

from pathlib import Path
from typing import Annotated

import typer

THEMES = ("light", "dark")
FORMATS = ("png", "svg")


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or of tasks.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: plots/ in the run; needed for several.")
    ] = None,
    file_format: Annotated[str, typer.Option("--format", metavar="NAME", help="png or svg.")] = "png",
    theme: Annotated[str, typer.Option(metavar="NAME", help="light or dark.")] = "light",
    every_task: Annotated[
        bool, typer.Option("--every-task", help="Draw the usage of experts for every task, not the last one alone.")
    ] = False,
):
    """Draw accuracy matrix, average accuracy and usage of experts.

    Where its routing was recorded (smope train --record-routing), also balance, overlap and survival of the
    routing, and its balance over the steps of training.

    Of several runs, their average accuracies in one picture.

    \b
    Examples:
      smope plot runs/cifar100 --format svg
      smope plot runs/seed-0 runs/seed-1 --output figures --theme dark
    """
    for name, value, allowed in (("format", file_format, FORMATS), ("theme", theme, THEMES)):
        if value not in allowed:
            raise ValueError(f"--{name} {value} is not allowed. Allowed: {' or '.join(allowed)}.")
    if output is None and len(runs) > 1:
        raise ValueError("several runs in one picture: give the folder to write it to with --output")

    from .plots import DARK, LIGHT

    colours = {"light": LIGHT, "dark": DARK}[theme]
    output = output or runs[0] / "plots"
    if len(runs) > 1:
        written = draw_together(runs, output, file_format, colours)
    else:
        written = draw_run(runs[0], output, file_format, colours, every_task)
    for path in written:
        typer.echo(path)


def draw_together(runs: list[Path], output: Path, suffix: str, theme: dict) -> list[Path]:
    """One picture of the average accuracies of several runs."""
    from .plots import plot_average_accuracy

    path = output / f"average_accuracy.{suffix}"
    matrices = {name: _matrix(run) for name, run in _names(runs).items()}
    gaps = [name for name, matrix in matrices.items() if not matrix.is_complete]
    if gaps:
        raise ValueError(f"{', '.join(gaps)}: not every task was tested after every task, so there is no average")
    plot_average_accuracy(matrices, path, theme=theme)
    return [path]


def draw_run(run: Path, output: Path, suffix: str, theme: dict, every_task: bool) -> list[Path]:
    """All pictures of one run."""
    from .checkpoint import ROUTING_FILE
    from .plots import plot_accuracy_matrix, plot_average_accuracy

    matrix = _matrix(run)
    paths = [output / f"accuracy_matrix.{suffix}"]
    plot_accuracy_matrix(matrix, paths[0], partial=True, theme=theme)
    if matrix.is_complete:
        paths.append(output / f"average_accuracy.{suffix}")
        plot_average_accuracy({_method(run): matrix, **_yardsticks(run)}, paths[1], theme=theme)
    else:
        typer.echo("no average accuracy: not every task was tested after every task", err=True)
    folders = _task_folders(run)
    if not folders or not (folders[-1] / ROUTING_FILE).is_file():  # a rival has no experts
        return paths
    tasks = range(len(_usage(folders[-1]))) if every_task else [len(_usage(folders[-1])) - 1]
    for task in tasks:
        paths.append(output / f"expert_usage{f'-task-{task + 1:02d}' if every_task else ''}.{suffix}")
        draw_usage(folders, task, paths[-1], theme)
    return paths + draw_patterns(run, output, suffix, theme) + draw_training(run, output, suffix, theme)


def _method(run: Path) -> str:
    from .safe_json import read_json

    return read_json(run / "metrics.json").get("method", "SMoPE") if (run / "metrics.json").is_file() else "SMoPE"


def draw_patterns(run: Path, output: Path, suffix: str, theme: dict) -> list[Path]:
    """What a `RoutingRecorder` recorded: balance, and from two tasks on overlap and survival; else nothing."""
    from .routing_plots import plot_balance, plot_survival, plot_task_overlap
    from .routing_record import PATTERNS_FILE, balance_over_tasks, load_patterns, overlap_of_tasks, survival_over_tasks

    if not (run / PATTERNS_FILE).is_file():
        return []
    record = load_patterns(run)
    paths = [output / f"routing_balance.{suffix}"]
    plot_balance(*balance_over_tasks(record), paths[0], layers=record["layers"], theme=theme)
    if len(record["tasks"]) > 1:
        paths.append(output / f"routing_overlap.{suffix}")
        plot_task_overlap(overlap_of_tasks(record), paths[-1], theme=theme)
    survival = survival_over_tasks(record)
    if any(value == value for value in survival.flat):  # not NaN
        paths.append(output / f"routing_survival.{suffix}")
        plot_survival(survival, paths[-1], chance=record["chance_survival"], theme=theme)
    return paths


def draw_training(run: Path, output: Path, suffix: str, theme: dict) -> list[Path]:
    """What a `TrainingRoutingRecorder` recorded: balance over the steps of training; else nothing."""
    from .routing_plots import plot_training_balance
    from .training_routing_record import TRAINING_FILE, balance_in_training, load_training_record

    if not (run / TRAINING_FILE).is_file():
        return []
    record = load_training_record(run)
    found = balance_in_training(record)
    path = output / f"routing_training.{suffix}"
    starts = [entry["first_step"] for entry in record["tasks"]]
    plot_training_balance(
        found.steps, found.entropy, found.dead_share, path, task_starts=starts, layers=record["layers"], theme=theme
    )
    return [path]


def draw_usage(folders: list[Path], task: int, path: Path, theme: dict):
    """Which experts one task's images switched on, with those outlined that were marked while it was learned."""
    from .checkpoint import ROUTING_FILE
    from .plots import plot_expert_usage
    from .safe_json import read_json

    counts = _usage(folders[-1])[task]
    own = next((folder for folder in folders if folder.name == f"task-{task + 1:02d}"), None)
    routing = read_json((own or folders[-1]) / ROUTING_FILE)
    marks = None
    if own is not None:  # marks are never taken away: those of a later task would be too many
        marks = [counts[index] * 0 for index in range(len(counts))]
        for layer, found in zip(marks, routing["layers"], strict=True):
            for head, experts in zip(layer, found["frequently_used_experts"], strict=True):
                head[experts] = 1
    plot_expert_usage(
        list(counts),
        path,
        frequently_used=marks,
        layers=[layer["layer"] for layer in routing["layers"]],
        title=f"Experts that the images of task {task + 1} switch on",
        theme=theme,
    )


def _names(runs: list[Path]) -> dict[str, Path]:
    """Runs by the last part of their path, or by as much of it as tells them apart."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(runs):
            return dict(zip(names, runs))
    raise ValueError("the same run was given twice")


def _matrix(run: Path):
    """The accuracy matrix of a run, also of one that was interrupted or is a task's folder."""
    from .accuracy_matrix import AccuracyMatrix
    from .checkpoint import STATE_FILE
    from .safe_json import read_json

    folders = _task_folders(run)
    if (run / "metrics.json").is_file():
        content = read_json(run / "metrics.json")
    elif folders:
        content = read_json(folders[-1] / STATE_FILE)
    else:
        raise FileNotFoundError(f"{run} holds no run: there is neither metrics.json nor a task-NN folder in it")
    return AccuracyMatrix.from_json(content["accuracy_matrix"])


def _yardsticks(run: Path) -> dict:
    from .accuracy_matrix import AccuracyMatrix
    from .safe_json import read_json

    if not (run / "metrics.json").is_file():
        return {}
    matrices = read_json(run / "metrics.json").get("yardstick_matrices", {})
    names = {"ncm": "NCM", "lda": "LDA"}
    return {names.get(name, name): AccuracyMatrix.from_json(rows) for name, rows in matrices.items()}


def _task_folders(run: Path) -> list[Path]:
    from .checkpoint import STATE_FILE, saved_tasks

    return [run] if (run / STATE_FILE).is_file() else saved_tasks(run)


def _usage(folder: Path):
    """How often each task's images selected each expert, (tasks, layers, heads, experts)."""
    from safetensors.numpy import load_file

    from .checkpoint import STATISTICS_FILE

    return load_file(folder / STATISTICS_FILE)["usage_by_task"]
