"""Settings of every method, chosen on validation images alone and with one budget for all.

    python examples/tune.py --recipe examples/recipes/cifar100-short.yaml --methods smope,coda-prompt --max_tasks 5 \
        --grid learning_rate=0.0025,0.005,0.01 --output_dir runs/tuning --dataset DATA --backbone BACKBONE

Each method is trained with every value of the grid, or with every combination where --grid "a=1,2 b=3,4" names several
settings, by `examples/benchmark.py` with all its other options (--seeds, --alignments). A tenth of the training images
is set aside in each class and measured on; no test image is looked at. --max_tasks trains the first tasks only, as
someone who does not know the later ones must. The same command goes on where it was stopped.

The folder gets tuning.csv and tuning.md: each trial at the best of its alignments, and which one has the highest final
average accuracy (of equal ones the first in the grid). The last line printed is the methods with the chosen settings,
as `examples/benchmark.py --methods` takes them.
"""

import argparse
import csv
import itertools
import subprocess
import sys
from pathlib import Path

from sample_efficiency import BENCHMARK, best_rows

from smope_hf.base.home import home_path
from smope_hf.base.printing import say_lines
from smope_hf.storage.files import atomic_path
from smope_hf.storage.output_check import try_folder


def read_grid(text: str) -> list[str]:
    """Every combination of the grid's values, as the settings of a benchmark's entry.

    Args:
        text: `name=value,value`, several of them separated by blanks.

    Returns:
        `name=value,name=value` for each combination, the last name's values changing fastest.

    Raises:
        ValueError: for a part that is no such list, or a name that comes twice.
    """
    axes = {}
    for part in text.split():
        name, _, values = part.partition("=")
        listed = [value for value in values.split(",") if value]
        if not name or not listed or name in axes or len(set(listed)) < len(listed):
            raise ValueError(
                f"--grid {text!r} is not allowed, because of {part!r}. Allowed: name=value,value with each name and "
                "each of its values once, several names separated by blanks."
            )
        axes[name] = [f"{name}={value}" for value in listed]
    if not axes:
        raise ValueError(
            f"--grid {text!r} is not allowed. Allowed: name=value,value, such as learning_rate=0.01,0.02."
        )
    return [",".join(combination) for combination in itertools.product(*axes.values())]


def entry_of(method: str, settings: str) -> str:
    """A benchmark's entry; the method may bring settings of its own."""
    return f"{method}{',' if ':' in method else ':'}{settings}"


def trials(methods: list[str], grid: list[str], best: dict[str, dict]) -> list[dict]:
    """A row for each trial, the chosen one of each method marked."""
    rows = []
    for method in methods:
        of_method = [{**best[entry_of(method, s)], "method": method, "settings": s} for s in grid]
        chosen = max(of_method, key=lambda row: float(row["FAA"]))
        rows += [{**row, "chosen": "yes" if row is chosen else "no"} for row in of_method]
    return rows


def write_tables(rows: list[dict], grid: list[str], folder: Path):
    """tuning.csv with all digits, tuning.md with a row for each method and the chosen trial in bold."""
    with atomic_path(folder / "tuning.csv") as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    lines = ["| method | " + " | ".join(grid) + " |", "|---|" + "---:|" * len(grid)]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [_cell(row) for row in rows if row["method"] == method]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    with atomic_path(folder / "tuning.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    say_lines((folder / "tuning.md").read_text())


def _cell(row: dict) -> str:
    spread = f" ± {float(row['FAA std']):.1f}" if row["FAA std"] else ""
    text = f"{float(row['FAA']):.1f}{spread} ({row['alignment']})"
    return f"**{text}**" if row["chosen"] == "yes" else text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--methods", required=True, help="separated by commas; by spaces where they have settings")
    parser.add_argument("--grid", required=True, help="name=value,value; several separated by spaces")
    parser.add_argument("--validation_fraction", default="0.1", help="share of each class's training images set aside")
    parser.add_argument("--output_dir", type=home_path, required=True)
    options, rest = parser.parse_known_args()
    if any(given.split("=")[0] in ("--evaluate_on", "--evaluate-on") for given in rest):
        sys.exit("error: --evaluate_on is not allowed here: settings are chosen on validation images.")
    try:
        grid = read_grid(options.grid)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        try_folder(options.output_dir, "--output_dir", "tuning.csv")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    methods = [name for name in options.methods.split(" " if set(" :") & set(options.methods) else ",") if name]
    tuned = [part.split("=")[0] for part in grid[0].split(",")]
    for method in methods:
        fixed = [part.split("=")[0] for part in method.partition(":")[2].split(",")]
        if measured_on := [name for name in (*fixed, *tuned) if name in ("evaluate_on", "validation_fraction")]:
            sys.exit(
                f"error: {measured_on[0]} is not allowed in --methods or --grid: settings are chosen on validation "
                "images, the same ones for every trial. --validation_fraction sets how many."
            )
        if twice := [name for name in tuned if name in fixed]:
            sys.exit(f"error: {method!r} sets {twice[0]}, and so does --grid. Leave it out of one of them.")
    entries = [entry_of(method, settings) for method in methods for settings in grid]
    validation = ["--validation_fraction", options.validation_fraction, "--evaluate_on", "validation"]
    given = [*rest, *validation, "--methods", " ".join(entries), "--output_dir", str(options.output_dir)]
    finished = subprocess.run([sys.executable, str(BENCHMARK), *given])
    if finished.returncode != 0:
        sys.exit("error: the benchmark of the trials failed; the message is above.")
    rows = trials(methods, grid, best_rows(options.output_dir))
    write_tables(rows, grid, options.output_dir)
    print(" ".join(entry_of(row["method"], row["settings"]) for row in rows if row["chosen"] == "yes"))


if __name__ == "__main__":
    main()
