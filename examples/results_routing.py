"""Tables of a run's routing for `results_tables.py`, from the routing_patterns.json that --record_routing left."""

from pathlib import Path

import numpy as np
from results_text import table

from smope_hf.reports.plots import plot_task_overlap
from smope_hf.reports.run_pictures import survival_pictures, training_pictures
from smope_hf.routing.record import load_patterns, overlap_of_tasks, survival_over_tasks
from smope_hf.routing.training_record import load_training_record


def percent(numbers) -> str:
    """Mean of shares."""
    return f"{100 * np.mean(numbers):.0f}%"


def routing_layers(run: Path) -> str:
    """How each layer's experts are used by the last task's training images, means over heads."""
    record = load_patterns(run)
    last = record["tasks"][-1]
    rows = [
        [str(layer), percent(dead), percent(marked), f"{np.mean(entropy):.2f}", f"{np.mean(gini):.2f}"]
        for layer, dead, marked, entropy, gini in zip(
            record["layers"],
            last["own_balance"]["dead_share"],
            last["frequently_used_share"],
            last["own_balance"]["entropy"],
            last["own_balance"]["gini"],
            strict=True,
        )
    ]
    return table(["layer", "not used", "marked as frequently used", "entropy", "Gini"], rows)


def routing_tasks(run: Path) -> str:
    """Each task's usage of the experts, its overlap with earlier tasks, and what it left of their routing."""
    record = load_patterns(run)
    usage, experts = (overlap_of_tasks(record, measure) for measure in ("usage", "experts"))
    survival = survival_over_tasks(record)
    rows = []
    for index, task in enumerate(record["tasks"]):
        own = task["own_balance"]
        row = [percent(task["balance"]["dead_share"]), percent(own["dead_share"])]
        row += [f"{np.mean(own[name]):.2f}" for name in ("entropy", "gini")]
        shared = [percent(of[index, :index]) if index else "" for of in (usage, experts)]
        left = [percent(of) if index else "" for of in (survival[0, index], survival[:index, index])]
        rows.append([str(index + 1), *row, *shared, *left])
    header = ["task", "never used so far", "not used by this task", "entropy", "Gini"]
    header += ["usage shared with earlier tasks", "experts shared", "task 1's routing left", "all earlier tasks' left"]
    return table(header, rows)


def draw_routing(run: Path, folder: Path):
    """Pictures of the same record: overlap of tasks, survival of their routing, and balance over training."""
    record = load_patterns(run)
    pictures = training_pictures(load_training_record(run)) + survival_pictures(record)
    for picture in pictures:
        picture.draw(folder / f"cifar100-{picture.name.replace('_', '-')}.png")
    plot_task_overlap(overlap_of_tasks(record), folder / "cifar100-routing-overlap.png")
