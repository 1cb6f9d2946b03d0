"""How much a method needs: final average accuracy over the training images of a class.

    python examples/sample_efficiency.py --recipe examples/recipes/cifar100-short.yaml --methods smope,one-prompt \
        --samples 10,25,50,100,250,500 --output_dir runs/efficiency --dataset DATA --backbone BACKBONE

`examples/benchmark.py` runs once for each number of images, in a folder of its own below --output_dir, with all other
options (--seeds, --alignments, settings of a method). The same command goes on where it was stopped. The folder gets
sample_efficiency.csv, .md and .png; a method is shown at the best of its alignments for each number of images.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from benchmark_records import read_results

from smope_hf.base.home import home_path
from smope_hf.base.printing import say_lines
from smope_hf.reports.plots import plot_sample_efficiency
from smope_hf.storage.files import atomic_path
from smope_hf.storage.output_check import try_folder

BENCHMARK = Path(__file__).parent / "benchmark.py"


def folder_of(output_dir: Path, samples: int) -> Path:
    """Where the benchmark with so many training images of each class is."""
    return output_dir / f"{samples:04d}-per-class"


def best_rows(folder: Path) -> dict[str, dict]:
    """For each method of a benchmark the row of its best alignment."""
    best: dict[str, dict] = {}
    kept = ("method", "alignment", "seeds", "FAA", "FAA std", "CAA", "CAA std", "FM", "FM std")
    for row in read_results(folder, kept):
        if row["method"] not in best or float(row["FAA"]) > float(best[row["method"]]["FAA"]):
            best[row["method"]] = {name: row[name] for name in kept}
    return best


def write_tables(rows: list[dict], folder: Path):
    """sample_efficiency.csv with all digits, sample_efficiency.md with a column for each method."""
    with atomic_path(folder / "sample_efficiency.csv") as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| images per class | " + " | ".join(methods) + " |", "|---:|" + "---:|" * len(methods)]
    for samples in dict.fromkeys(row["samples"] for row in rows):
        of = {row["method"]: row for row in rows if row["samples"] == samples}
        lines.append(f"| {samples} | " + " | ".join(_cell(of[method]) for method in methods) + " |")
    with atomic_path(folder / "sample_efficiency.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    say_lines((folder / "sample_efficiency.md").read_text())


def _cell(row: dict) -> str:
    spread = f" ± {float(row['FAA std']):.1f}" if row["FAA std"] else ""
    return f"{float(row['FAA']):.1f}{spread} ({row['alignment']})"


def curves(rows: list[dict]) -> dict[str, tuple[list[int], list[float], list[float | None]]]:
    """For each method the numbers of images, FAA and its standard deviation."""
    found: dict[str, tuple[list, list, list]] = {}
    for row in rows:
        samples, accuracy, spread = found.setdefault(row["method"], ([], [], []))
        samples.append(row["samples"])
        accuracy.append(float(row["FAA"]))
        spread.append(float(row["FAA std"]) if row["FAA std"] else None)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--samples", default="10,25,50,100,250,500", help="training images of a class, by commas")
    parser.add_argument("--output_dir", type=home_path, required=True)
    options, rest = parser.parse_known_args()
    try:
        numbers = sorted({int(number) for number in options.samples.split(",")})
    except ValueError:
        sys.exit(f"error: --samples {options.samples!r} is not allowed. Allowed: whole numbers separated by commas.")
    try:
        try_folder(options.output_dir, "--output_dir", "sample_efficiency.csv")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    rows = []
    for samples in numbers:
        folder = folder_of(options.output_dir, samples)
        given = [*rest, "--max_train_samples_per_class", str(samples), "--output_dir", str(folder)]
        finished = subprocess.run([sys.executable, str(BENCHMARK), *given])
        if finished.returncode != 0:
            sys.exit(f"error: the benchmark with {samples} images per class failed; the message is above.")
        rows += [{"samples": samples, **row} for row in best_rows(folder).values()]
    write_tables(rows, options.output_dir)
    plot_sample_efficiency(curves(rows), options.output_dir / "sample_efficiency.png")


if __name__ == "__main__":
    main()
