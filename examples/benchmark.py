"""Methods side by side: one backbone, one protocol, one code path, one table.

    python examples/benchmark.py --recipe examples/recipes/cifar100-short.yaml --methods smope,one-prompt,coda-prompt \
        --seeds 0,1,2 --output_dir runs/benchmark --dataset DATA --backbone BACKBONE

Each method runs for each seed in a process of its own, as `examples/train.py` would run it; options that are not this
script's own go to every run. A run that is whole is not run again, and one that was cut is resumed: the same command
goes on where it was stopped. With --methods separated by spaces, a method may carry settings of its own, as in
--methods "smope coda-prompt:alignment=gaussian,learning_rate=0.001"; a list's entries are joined with "+", as in
"smope:prompt_layers=0+1+2". "joint" is fine-tuning on all tasks at once. With --alignments none,gaussian,lda each
method has a row for each of them, all from one training. --alignment is for the methods that train a head; ncm and lda
keep their own.

The folder gets results.csv, results.md, average_accuracy.png and costs.png: FAA, CAA and FM (mean and standard
deviation over the seeds, in percent), trained parameters, GFLOPs of an image's forward pass in training and in
evaluation, seconds of each stage for a task, and peak memory (of the last process where a run was resumed); with an
imbalance factor also the recall of the head, middle and tail third of the classes. Runs on other tasks than the first
one's are refused, and so are another backbone than theirs and a folder whose runs have other settings than given.

Each run's folder has a record.json with all that the table says of it. The records alone are enough to make the table
again, or to add methods to it: copy them into a folder of the same layout and give the same command.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import torch
from benchmark_entries import parse_entry, read_seeds
from benchmark_records import (
    PROCESS_FILE,
    RECORD_FILE,
    SETTINGS_FILE,
    read_peak_memory,
    read_record,
    read_settings,
)
from torch.utils.flop_counter import FlopCounterMode

from smope_hf.base.home import home_path
from smope_hf.base.printing import say, say_lines
from smope_hf.metrics.accuracy_matrix import AccuracyMatrix
from smope_hf.metrics.class_recall import THIRDS
from smope_hf.models.backbones import load_backbone, weights_fingerprint
from smope_hf.models.methods.rivals import PROMPT_METHODS
from smope_hf.reports.comparison_report import METRICS
from smope_hf.reports.plots import plot_average_accuracy, plot_costs, read_costs
from smope_hf.settings.checked_arguments import field_kind
from smope_hf.sharing.checkpoint import saved_tasks
from smope_hf.sharing.run_files import load_manifest, load_metrics
from smope_hf.sharing.source import find_checkpoint
from smope_hf.storage.files import atomic_path, write_json
from smope_hf.storage.output_check import try_folder
from smope_hf.storage.state_folder import has_state
from smope_hf.training.run_arguments import RUN_ARGUMENTS, parse_arguments

TRAIN = Path(__file__).parent / "train.py"
STAGES = ("training", "statistics", "alignment", "evaluation", "saving")
RECALL = dict(zip(("recall head", "recall middle", "recall tail"), THIRDS, strict=True))
CLOSED_FORM = tuple(name for name, method in PROMPT_METHODS.items() if method.closed_form)
DEFAULTS = {
    s.name: s.default if s.default_factory is MISSING else s.default_factory()
    for kind in RUN_ARGUMENTS
    for s in fields(kind)
    if (s.default, s.default_factory) != (MISSING, MISSING)
}
LISTS = {s.name for kind in RUN_ARGUMENTS for s in fields(kind) if "list" in str(field_kind(kind, s.name)[0])}


def command_line(entry: str, seed: int, folder: Path, alignments: list[str], rest: list[str]) -> list[str]:
    """What `examples/train.py` is given for one run."""
    name, settings = parse_entry(entry)
    if name in CLOSED_FORM:
        rest = without_alignment(rest)
    options = {"method": name, **settings, "seed": seed, "output_dir": folder}
    options["resume"] = str(bool(saved_tasks(folder)) or has_state(folder)).lower()
    if alignments and name not in CLOSED_FORM:
        options["compare_alignments"] = "+".join(alignments)
    given = list(rest)
    for option, value in options.items():
        given += [f"--{option}", *(str(value).split("+") if option in LISTS else [str(value)])]
    return given


def without_alignment(rest: list[str]) -> list[str]:
    """Options for every run without the alignment, which a method in closed form has of its own."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--alignment")
    return parser.parse_known_args(rest)[1]


def settings_of(arguments: list[str]) -> dict:
    """Every setting that decides a run's result, by name, as JSON gives it back."""
    model, data, args = parse_arguments(arguments)
    if not args.save_checkpoints:
        raise ValueError(
            "save_checkpoints = False is not allowed here: a run's record is made from its last checkpoint."
        )
    settings = {**vars(model), **vars(data), **args.recipe()}
    # data set and backbone are named by place, and the manifest and the record tell what they are
    elsewhere = ("num_threads", "dataset", "backbone")
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in elsewhere}))


def is_done(folder: Path, arguments: list[str]) -> bool:
    """Whether a run is whole. A run that was begun with other settings is refused, whole or not."""
    settings = settings_of(arguments)
    done = (folder / RECORD_FILE).is_file()
    if done or (folder / SETTINGS_FILE).is_file():
        before = read_record(folder / RECORD_FILE)["settings"] if done else read_settings(folder)
        before = {**DEFAULTS, **before}  # a setting that came later had its default
        different = [name for name in settings if settings[name] != before.get(name)]
        if different:
            listed = "; ".join(f"{name} = {before.get(name)!r} there, {settings[name]!r} now" for name in different)
            sys.exit(f"error: {folder} holds a run with other settings: {listed}. Give another --output_dir.")
    return done


def run(entry: str, seed: int, folder: Path, arguments: list[str]):
    """Train one method with one seed in a process of its own, and record what came of it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS_FILE, settings_of(arguments))
    if not all((folder / name).is_file() for name in ("metrics.json", PROCESS_FILE)):
        say(f"{entry}, seed {seed}")
        process = subprocess.Popen([sys.executable, str(TRAIN), *arguments])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"error: {entry} with seed {seed} failed; the message is above. Run the same command to go on.")
        per_mib = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        write_json(folder / PROCESS_FILE, {"peak_memory_mib": round(usage.ru_maxrss / per_mib, 1)})
    write_json(folder / RECORD_FILE, record_of(folder))


def record_of(folder: Path) -> dict:
    """All that a table or a plot says of a run, from its folder."""
    content, manifest = load_metrics(folder), load_manifest(folder)
    model = find_checkpoint(folder).load_model(attn_implementation="eager")  # the fused kernels are not counted
    joint = "joint_of" in manifest["information"]
    own = "none" if joint else model.closed_form or content["recipe"]["alignment"]  # one task is never aligned
    others = {} if joint else content["other_alignments"]
    train, test = gflops(model)
    return {
        "settings": read_settings(folder),
        "protocol_hash": manifest["information"].get("joint_of", manifest["protocol_hash"]),
        "base_model_fingerprint": model.config.base_model_fingerprint,
        "joint": joint,
        "accuracy_matrices": {
            own: content["accuracy_matrix"],
            **{name: other["accuracy_matrix"] for name, other in others.items()},
        },
        "metrics": {
            own: content["metrics"],
            **{name: other["metrics"] for name, other in others.items()},
        },
        "parameters": trained_parameters(model),
        "gflops_train": train,
        "gflops_test": test,
        "seconds_by_task": content["seconds_by_task"],
        "peak_memory_mib": read_peak_memory(folder),
        "versions": content["versions"],
    }


def gflops(model) -> tuple[float, float]:
    """GFLOPs of one image's forward pass in training (with labels) and in evaluation, by torch's counter."""
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


def trained_parameters(model) -> int:
    """Parameters beside the frozen backbone; all of them for a method that trains it."""
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if model.trains_backbone or not name.startswith("backbone."))


def summary(entry: str, alignment: str, records: list[dict]) -> dict:
    """One row of the table."""
    row: dict = {"method": entry, "alignment": alignment, "seeds": len(records)}
    of_imbalanced = {short: key for short, key in RECALL.items() if key in records[0]["metrics"][alignment]}
    for short, key in (METRICS | of_imbalanced).items():
        values = [record["metrics"][alignment][key] for record in records]
        known = None not in values
        row[short] = 100 * float(np.mean(values)) if known else None
        row[f"{short} std"] = 100 * float(np.std(values, ddof=1)) if known and len(values) > 1 else None
    row["parameters"] = records[0]["parameters"]
    row["GFLOPs train"], row["GFLOPs test"] = records[0]["gflops_train"], records[0]["gflops_test"]
    for stage in STAGES:
        runs = [record["seconds_by_task"] for record in records]
        runs = [tasks for tasks in runs if any(stage in task for task in tasks)]  # older records may lack a stage
        seconds = [task.get(stage, 0.0) for tasks in runs for task in tasks]
        row[f"{stage} s/task"] = float(np.mean(seconds)) if seconds else None
    row["peak memory MiB"] = max(record["peak_memory_mib"] for record in records)
    return row


def check_same_protocol(records: dict[Path, dict]):
    """Refuse to put runs on different tasks, or on different backbones, into one table."""
    first, expected = next(iter(records.items()))
    for folder, record in records.items():
        for key, what in (
            ("protocol_hash", "learned different tasks"),
            ("base_model_fingerprint", "had other backbones"),
        ):
            if record[key] != expected[key]:
                names = (name for name in record["settings"] if name in expected["settings"])
                pairs = {name: (expected["settings"][name], record["settings"][name]) for name in names}
                listed = "; ".join(f"{name}: {a!r} and {b!r}" for name, (a, b) in pairs.items() if a != b)
                sys.exit(
                    f"error: {first} and {folder} {what}, so they share no table. Their settings differ in: "
                    f"{listed or 'nothing; the images themselves do'}."
                )


def check_backbones(folder: Path, there: str, runs_to_do: list[tuple]):
    """Refuse another backbone than that of a run that is whole, before hours of training on it.

    Args:
        folder: of the run that is whole.
        there: the fingerprint of its backbone.
        runs_to_do: what is still to be trained, the command line last.
    """
    models = [parse_arguments(arguments)[0] for *_, arguments in runs_to_do]
    for name, revision in dict.fromkeys((model.backbone, model.backbone_revision) for model in models):
        here = weights_fingerprint(load_backbone(name, revision)[0])
        if here != there:
            sys.exit(
                f"error: {folder} has a run on another backbone than {name}: the fingerprint of its weights is "
                f"{there[:12]}..., that of {name} {here[:12]}.... Give another --output_dir."
            )


def processors(records: dict[Path, dict]) -> str:
    """What results.md says under the table of runs from several processors, empty for one."""
    found = sorted({record["versions"].get("processor", "not recorded") for record in records.values()})
    if len(found) == 1:
        return ""
    return (
        f"Runs of several processors or GPUs ({'; '.join(found)}): one seed gives slightly other weights on each, so "
        "small differences between rows may be theirs.\n"
    )


def write_table(rows: list[dict], folder: Path, note: str):
    """results.csv with all digits, results.md to read, with a note below the table."""
    with atomic_path(folder / "results.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    recall = [name for name in RECALL if name in rows[0]]
    columns = ["method", "alignment", *METRICS, *recall, "parameters", "GFLOPs train", "GFLOPs test",
               *(f"{s} s/task" for s in STAGES), "peak memory MiB"]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    lines += ["| " + " | ".join(_cell(row, column) for column in columns) + " |" for row in rows]
    with atomic_path(folder / "results.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n" + (f"\n{note}" if note else ""), encoding="utf-8")
    say_lines((folder / "results.md").read_text())


def _cell(row: dict, column: str) -> str:
    value, spread = row.get(column), row.get(f"{column} std")
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
    parser.add_argument("--alignments", default="", help="alignments to compare, separated by commas; default one")
    parser.add_argument("--seeds", default="0", help="training seeds, separated by commas")
    parser.add_argument("--output_dir", type=home_path, required=True)
    options, rest = parser.parse_known_args()
    if options.recipe:
        rest = [options.recipe, *rest]
    separator = " " if set(" :") & set(options.methods) else ","
    entries = [entry for entry in options.methods.split(separator) if entry]
    try:
        seeds = read_seeds(options.seeds)
        for entry in entries:
            parse_entry(entry)
    except ValueError as error:
        sys.exit(f"error: {error}")
    alignments = [name for name in options.alignments.split(",") if name]
    folders = {}
    for entry in entries:
        place = options.output_dir / entry.replace(":", "-")
        folders[entry] = [place / f"seed-{seed}" for seed in seeds]
    runs = [  # the first seed of every method before the second of any
        (entry, seed, folders[entry][index], command_line(entry, seed, folders[entry][index], alignments, rest))
        for index, seed in enumerate(seeds)
        for entry in entries
    ]
    try:
        to_do = [one for one in runs if not is_done(one[2], one[3])]
    except (ValueError, OSError) as error:  # before any training, whichever run the mistake belongs to
        sys.exit(f"error: {error}")
    try:
        try_folder(options.output_dir, "--output_dir", "average_accuracy.png")
        for *_, folder, _ in to_do:
            try_folder(folder, "the folder of a run")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    places = [folder for of_entry in folders.values() for folder in of_entry]
    records = {folder: read_record(folder / RECORD_FILE) for folder in places if (folder / RECORD_FILE).is_file()}
    if records:
        check_same_protocol(records)
        first, record = next(iter(records.items()))
        check_backbones(first, record["base_model_fingerprint"], to_do)
    for one in to_do:
        run(*one)
        records[one[2]] = read_record(one[2] / RECORD_FILE)
        check_same_protocol(records)
    rows, curves = [], {}
    for entry, of_entry in folders.items():
        of_method = [records[folder] for folder in of_entry]
        first, *others = of_method[0]["metrics"]
        rows += [summary(entry, alignment, of_method) for alignment in (first, *others)]
        if not of_method[0]["joint"]:
            matrices = [AccuracyMatrix.from_json(record["accuracy_matrices"][first]) for record in of_method]
            curves[entry] = [matrix.as_array() for matrix in matrices]
    write_table(rows, options.output_dir, processors(records))
    if curves:  # joint runs alone have none
        plot_average_accuracy(curves, options.output_dir / "average_accuracy.png")
    plot_costs(read_costs(options.output_dir / "results.csv"), options.output_dir / "costs.png")


if __name__ == "__main__":
    main()
