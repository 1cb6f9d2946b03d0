"""Methods side by side: one backbone, one protocol, one code path, one table.

    python examples/benchmark.py --recipe examples/recipes/cifar100-short.yaml --methods smope,one-prompt,coda-prompt \
        --seeds 0,1,2 --output_dir runs/benchmark --dataset DATA --backbone BACKBONE

Each method runs for each seed in a process of its own, as `examples/train.py` would run it; options that are not this
script's own go to every run. A run that is whole is not run again, and one that was cut is resumed: the same command
goes on where it was stopped. With --methods separated by spaces, a method may carry settings of its own, as in
--methods "smope coda-prompt:alignment=gaussian,learning_rate=0.001". "joint" is fine-tuning on all tasks at once.

The folder gets results.csv, results.md, average_accuracy.png and costs.png: FAA, CAA and FM (mean and standard
deviation over the seeds, in percent), trained parameters, GFLOPs of an image's forward pass in training and in
evaluation, seconds of each stage for a task, and peak memory. Runs on other tasks than the first one's are refused,
and so is a folder whose runs were begun with other settings than those given.
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import HfArgumentParser

from smope_hf.accuracy_matrix import AccuracyMatrix
from smope_hf.checkpoint import saved_tasks
from smope_hf.files import atomic_path, write_json
from smope_hf.hub_files import find_checkpoint
from smope_hf.plots import plot_average_accuracy, plot_costs, read_costs
from smope_hf.run_arguments import RUN_ARGUMENTS, read_recipe, recipe_arguments
from smope_hf.safe_json import read_json
from smope_hf.task_manifest import manifest_differences

TRAIN = Path(__file__).parent / "train.py"
STAGES = ("training", "statistics", "alignment", "evaluation")
METRICS = {"FAA": "final_average_accuracy", "CAA": "cumulative_average_accuracy", "FM": "forgetting"}
PROCESS_FILE, SETTINGS_FILE = "process.json", "settings.json"
ALWAYS = {"joint": {"method": "finetune", "joint": "true"}}


def parse_entry(entry: str) -> tuple[str, dict[str, str]]:
    """A method and its settings from `name:setting=value,setting=value`."""
    name, _, settings = entry.partition(":")
    return name, dict(part.split("=", 1) for part in settings.split(",") if part)


def command_line(entry: str, seed: int, folder: Path, rest: list[str]) -> list[str]:
    """What `examples/train.py` is given for one run."""
    name, settings = parse_entry(entry)
    options = {"method": name, **ALWAYS.get(name, {}), **settings, "seed": seed, "output_dir": folder}
    options["resume"] = str(bool(saved_tasks(folder))).lower()
    return [*rest, *(part for key, value in options.items() for part in (f"--{key}", str(value)))]


def settings_of(arguments: list[str]) -> dict:
    """Every setting that decides a run's result, by name."""
    if arguments[0].endswith((".yaml", ".yml")):
        arguments = recipe_arguments(read_recipe(arguments[0])) + arguments[1:]
    model, data, args = HfArgumentParser(RUN_ARGUMENTS).parse_args_into_dataclasses(arguments)
    settings = {**vars(model), **vars(data), **args.recipe()}
    return {name: value for name, value in settings.items() if name != "num_threads"}


def is_done(folder: Path, arguments: list[str]) -> bool:
    """Whether a run is whole. A run that was begun with other settings is refused, whole or not."""
    settings = settings_of(arguments)
    if (folder / SETTINGS_FILE).is_file():
        before = read_json(folder / SETTINGS_FILE)
        different = [name for name in settings if settings[name] != before.get(name)]
        if different:
            listed = "; ".join(f"{name} = {before.get(name)!r} there, {settings[name]!r} now" for name in different)
            sys.exit(f"error: {folder} holds a run with other settings: {listed}. Give another --output_dir.")
    return all((folder / name).is_file() for name in (SETTINGS_FILE, "metrics.json", PROCESS_FILE))


def run(entry: str, seed: int, folder: Path, arguments: list[str]):
    """Train one method with one seed in a process of its own; notes the settings, and the peak memory."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS_FILE, settings_of(arguments))
    print(f"{entry}, seed {seed}", flush=True)
    process = subprocess.Popen([sys.executable, str(TRAIN), *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"error: {entry} with seed {seed} failed; the message is above. Run the same command to go on.")
    per_mib = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    write_json(folder / PROCESS_FILE, {"peak_memory_mib": round(usage.ru_maxrss / per_mib, 1)})


def gflops(folder: Path) -> tuple[float, float]:
    """GFLOPs of one image's forward pass in training (with labels) and in evaluation, by torch's counter."""
    model = find_checkpoint(folder).load_model(attn_implementation="eager")  # the fused kernels are not counted
    size = model.config.backbone_config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    pixels = torch.zeros(1, model.config.backbone_config.num_channels, height, width)
    labels = torch.tensor([model.config.tasks[-1][0]])
    counts = []
    for training in (True, False):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.train(training)(pixels, **({"labels": labels} if training else {}))
        counts.append(counter.get_total_flops() / 1e9)
    return counts[0], counts[1]


def trained_parameters(folder: Path) -> int:
    """Parameters beside the frozen backbone; all of them for a method that trains it."""
    model = find_checkpoint(folder).load_model()
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if model.trains_backbone or not name.startswith("backbone."))


def summary(entry: str, folders: list[Path]) -> dict:
    """One row of the table."""
    contents = [read_json(folder / "metrics.json") for folder in folders]
    row: dict = {"method": entry, "seeds": len(folders)}
    for short, key in METRICS.items():
        values = [content["metrics"][key] for content in contents]
        known = None not in values
        row[short] = 100 * float(np.mean(values)) if known else None
        row[f"{short} std"] = 100 * float(np.std(values, ddof=1)) if known and len(values) > 1 else None
    row["parameters"] = trained_parameters(folders[0])
    row["GFLOPs train"], row["GFLOPs test"] = gflops(folders[0])
    for stage in STAGES:
        tasks = [task.get(stage, 0.0) for content in contents for task in content["seconds_by_task"]]
        row[f"{stage} s/task"] = float(np.mean(tasks))
    memory = [read_json(folder / PROCESS_FILE)["peak_memory_mib"] for folder in folders]
    row["peak memory MiB"] = max(memory)
    return row


def check_same_protocol(folders: list[Path]):
    """Refuse to put runs on different tasks into one table."""
    first = read_json(folders[0] / "manifest.json")
    expected = first["information"].get("joint_of", first["protocol_hash"])
    for folder in folders[1:]:
        manifest = read_json(folder / "manifest.json")
        if manifest["information"].get("joint_of", manifest["protocol_hash"]) != expected:
            different = "; ".join(manifest_differences(first, manifest))
            sys.exit(f"error: {folders[0]} and {folder} learned different tasks, so they share no table: {different}")


def write_table(rows: list[dict], folder: Path):
    """results.csv with all digits, results.md to read."""
    with atomic_path(folder / "results.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    columns = ["method", *METRICS, "parameters", "GFLOPs train", "GFLOPs test", *(f"{s} s/task" for s in STAGES),
               "peak memory MiB"]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(_cell(row, column) for column in columns) + " |" for row in rows]
    with atomic_path(folder / "results.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print((folder / "results.md").read_text())


def _cell(row: dict, column: str) -> str:
    value, spread = row[column], row.get(f"{column} std")
    if value is None:
        return "n/a"
    if column == "parameters":
        return f"{value / 1e6:.3f} M"
    if not isinstance(value, float):
        return str(value)
    if column.startswith("GFLOPs"):
        return f"{value:.4g}"
    return f"{value:.1f} ± {spread:.1f}" if spread is not None else f"{value:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--recipe", help="YAML file of settings for every run")
    parser.add_argument("--methods", required=True, help="separated by commas; by spaces where they have settings")
    parser.add_argument("--seeds", default="0", help="training seeds, separated by commas")
    parser.add_argument("--output_dir", type=Path, required=True)
    options, rest = parser.parse_known_args()
    if options.recipe:
        rest = [options.recipe, *rest]
    separator = " " if set(" :") & set(options.methods) else ","
    entries = [entry for entry in options.methods.split(separator) if entry]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    folders = {}
    for entry in entries:
        place = options.output_dir / entry.replace(":", "-")
        folders[entry] = [place / f"seed-{seed}" for seed in seeds]
    runs = [  # the first seed of every method before the second of any
        (entry, seed, folders[entry][index], command_line(entry, seed, folders[entry][index], rest))
        for index, seed in enumerate(seeds)
        for entry in entries
    ]
    try:
        to_do = [one for one in runs if not is_done(one[2], one[3])]
    except (ValueError, OSError) as error:  # before any training, whichever run the mistake belongs to
        sys.exit(f"error: {error}")
    for one in to_do:
        run(*one)
    check_same_protocol([folder for of_entry in folders.values() for folder in of_entry])
    write_table([summary(entry, of_entry) for entry, of_entry in folders.items()], options.output_dir)
    matrices = {
        entry: [AccuracyMatrix.from_csv(folder / "accuracy_matrix.csv", partial=True) for folder in of_entry]
        for entry, of_entry in folders.items()
        if parse_entry(entry)[0] != "joint"
    }
    plot_average_accuracy(matrices, options.output_dir / "average_accuracy.png")
    plot_costs(read_costs(options.output_dir / "results.csv"), options.output_dir / "costs.png")


if __name__ == "__main__":
    main()
