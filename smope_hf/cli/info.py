"""`smope info`: what a checkpoint is and how its experts are used."""

from pathlib import Path
from typing import Annotated

import typer

from ..base.printable import printable
from ..base.printing import LONGEST_LINE, print_json, print_rich, say
from .options import AsJson, Revision


def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run, checkpoint folder or Hub id.")],
    revision: Revision = None,
    as_json: AsJson = False,
):
    """Show what a checkpoint holds and how its experts are used.

    Of a run the last task is shown. The backbone is not loaded.

    \b
    Examples:
      smope info runs/cifar100
      smope info me/my-model --revision task-02 --json
    """
    from ..sharing.hub import find_checkpoint
    from ..sharing.inspection import describe_checkpoint, describe_run
    from .common import be_quiet

    be_quiet()
    checkpoint = find_checkpoint(model, revision)
    report = {"model": str(checkpoint), "revision": revision, **describe_checkpoint(checkpoint.folder)}
    run = Path(model)
    report["run"] = describe_run(run) if run.is_dir() else []
    print_json(report) if as_json else _print_report(report)


def _print_report(report: dict):
    for name, text in _facts(report):
        say(f"{name:<12}  {text}")
    say("")
    _print_tasks(report["tasks"])
    if report["run"]:
        say("")
        _print_run(report["run"])
    if report["routing"]:
        say("")
        _print_routing(report["routing"])
    for warning in report["warnings"]:
        print_rich("", printable(f"warning: {warning}", LONGEST_LINE))


def _facts(report: dict) -> list[tuple[str, str]]:
    """What is said in one line each."""
    from ..base.formatting import ranges

    base = report["base_model"] or "none, the backbone is in the checkpoint"
    revision = f" at {report['base_model_revision'][:12]}" if report["base_model_revision"] else ""
    kind = "standalone" if report["standalone"] else "adapter"
    parts = {"experts": "in experts", "prompts": "in prompts", "head": "in the head", "backbone": "in the backbone"}
    numbers = [
        f"{report['parameters'][part]:,} {text}" for part, text in parts.items() if part in report["parameters"]
    ]
    layers = f"{ranges(report['prompt_layers']) or 'none'} of {report['num_layers']}"
    experts = [
        ("experts", f"{report['num_experts']} per head, top {report['top_k']}, in layers {layers}"),
        ("routing", f"{report['routing_mode']}, noise epsilon {report['noise_epsilon']}"),
    ]
    rival = [("method", f"{report['method']}, prompts in layers {layers}, settings {report['settings'] or 'default'}")]
    tasks = f"{len(report['tasks'])} task{'s' if len(report['tasks']) > 1 else ''}"
    sizes = sorted(report["bytes_by_file"].items(), key=lambda item: -item[1])
    return [
        ("checkpoint", f"{report['model']} ({kind})"),
        ("base model", f"{base}{revision} ({report['backbone']})"),
        ("classes", f"{report['num_classes']} in {tasks}"),
        *(experts if report["method"] == "smope" else rival),
        ("parameters", ", ".join(numbers)),
        ("on disk", f"{_size(sum(size for _, size in sizes))}"),
        *(("", f"{_size(size):>8}  {name}") for name, size in sizes),
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _print_tasks(tasks: list[dict]):
    from ..base.formatting import names_in_short, percent
    from ..reports.terminal import print_table

    rows = [[str(task["task"]), names_in_short(task["classes"], 56), percent(task["accuracy"])] for task in tasks]
    title = "Tasks: accuracy in percent after the last one"
    print_table(title, {"task": "left", "classes": "left", "accuracy": "right"}, rows)


def _print_run(tasks: list[dict]):
    from ..base.formatting import percent
    from ..reports.terminal import print_table

    rows = [[task["task"], str(task["num_classes"]), percent(task["average_accuracy"])] for task in tasks]
    title = "Checkpoints of the run: average accuracy in percent at the time"
    print_table(title, {"folder": "left", "classes": "right", "average": "right"}, rows)


def _print_routing(layers: list[dict]):
    from ..reports.terminal import print_table

    rows = []
    for layer in layers:
        count = layer["experts"]
        cells = [f"{part} ({100 * part / count:.0f}%)" for part in (layer["dead"], layer["frequently_used"])]
        rows.append([str(layer["layer"]), str(count), *cells, f"{layer['entropy']:.2f}", f"{layer['gini']:.2f}"])
    columns = dict.fromkeys(("layer", "experts", "dead", "frequently used", "entropy", "Gini"), "right")
    print_table("Experts of all heads: even use has entropy 1 and Gini 0, one alone 0 and 1", columns, rows)
