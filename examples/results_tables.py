"""The tables of docs/results.md, its detail pages and the README, made from the records in examples/records.

    python examples/results_tables.py            # write them anew, and draw the pictures of the same numbers
    python examples/results_tables.py --check    # only say which are not what the records give

A table stands between `<!-- table: NAME -->` and `<!-- table: end -->`. Accuracy is in percent, the mean over training
seeds, with their standard deviation where there are several.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
from benchmark_records import read_record
from results_realigned import drift_ceiling, drift_penalties, shrinkages
from results_routing import draw_routing, routing_layers, routing_tasks
from results_text import cell, table

from smope_hf.metrics.accuracy_matrix import AccuracyMatrix
from smope_hf.metrics.class_recall import THIRDS
from smope_hf.models.methods.table import METHODS
from smope_hf.reports.comparison_report import METRICS
from smope_hf.reports.plots import plot_average_accuracy, plot_costs, plot_sample_efficiency
from smope_hf.storage.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "examples" / "records"
PAGES = (ROOT / "docs" / "results.md", *sorted((ROOT / "docs" / "results").glob("*.md")), ROOT / "README.md")
FIGURES = ROOT / "docs" / "figures"
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- table: end -->)", re.DOTALL)
FAA, CAA, FM = METRICS.values()
ALIGNMENTS = ("none", "gaussian", "gaussian-full", "lda-uncompensated", "lda")
SHORT = "cifar100-short"
TUNING = "cifar100-tuning"
ALIGNED = RECORDS / "cifar100-alignment"
ROUTING = RECORDS / SHORT / "smope-record_routing=true" / "seed-0"
PROMPT_METHODS = ("smope", "one-prompt", "coda-prompt", "l2p", "ovor", "dualprompt")
YARDSTICKS = ("finetune", "linear", "lda", "ncm")
COMPARED = ("smope", "one-prompt", "coda-prompt")  # where all six would be too much
NAMES = {name: method.title for name, method in METHODS.items()} | {
    "one-prompt": "one-prompt",
    "joint": "all tasks at once",
    "linear": "linear head",
    "finetune": "fine-tuning",
    "lda": "LDA, frozen features",
    "ncm": "nearest class mean, frozen features",
}
PUBLISHED_CODE = ("48.6", "53.1", "64.3", "8.7")  # its one run on this backbone, in float32
PUBLISHED_SETTINGS = (
    "routing=unmasked,statistics=train,alignment=gaussian,drift_compensation=none,alignment_learning_rate=1e-5"
)
ABLATIONS = {
    "smope": "nothing",
    "one-prompt": "sparsity: every expert is always on",
    "smope-noise_epsilon=0.0": "adaptive noise",
    "smope-prototype_loss_coef=0.0": "prototype loss",
    "smope-router_loss_coef=0.0": "router loss",
    "smope-routing=random": "learned routing: experts are chosen at random",
    "smope-routing=unmasked": "the mask over never used experts in evaluation",
}
SWEEPS = {
    "smope-record_routing=true": "E = 25, K = 5, epsilon = 0.4, layers 0 to 5: the reference",
    "smope-num_experts=10": "E = 10",
    "smope-num_experts=50": "E = 50",
    "smope-top_k=1": "K = 1",
    "smope-top_k=10": "K = 10",
    "one-prompt": "K = 25: every expert, which is one-prompt",
    "smope-noise_epsilon=0.0": "epsilon = 0",
    "smope-noise_epsilon=0.8": "epsilon = 0.8",
    "smope-prompt_layers=0+1+2": "layers 0 to 2",
    "smope-prompt_layers=0+1+2+3+4+5+6+7+8+9+10+11": "layers 0 to 11",
    "smope-statistics=train": "class statistics of images seen through the training augmentation",
}


def runs_of(folder: str, entry: str) -> list[dict]:
    """The records of one entry's training seeds, none where it has not run."""
    return [read_record(path) for path in sorted((RECORDS / folder / entry).glob("seed-*/record.json"))]


def values(runs: list[dict], metric: str, alignment: str = "lda") -> np.ndarray:
    """A metric of each run in percent; NCM's own alignment stands in for one that it cannot have."""
    only = list(runs[0]["metrics"])
    name = alignment if len(only) > 1 else only[0]
    return np.array([100 * run["metrics"][name][metric] for run in runs])


def costs(runs: list[dict]) -> list[str]:
    """Trained parameters, and GFLOPs of an image's forward pass in evaluation."""
    return [f"{runs[0]['parameters'] / 1e6:.3f} M", f"{runs[0]['gflops_test']:.3f}"]


def alignments() -> str:
    """FAA of every method under every alignment, the best one of each in bold."""
    rows = []
    for entry in (*PROMPT_METHODS, *YARDSTICKS, "joint"):
        if runs := runs_of(SHORT, entry):
            of = {name: values(runs, FAA, name) for name in ALIGNMENTS if name in runs[0]["metrics"]}
            best = max(of, key=lambda name: of[name].mean()) if of else None
            cells = [cell(of[name]) if name in of else "" for name in ALIGNMENTS]
            cells = [f"**{text}**" if name == best else text for name, text in zip(ALIGNMENTS, cells, strict=True)]
            if not of:  # NCM
                cells[-1] = f"**{cell(values(runs, FAA))}**"
            rows.append([NAMES[entry], str(len(runs)), *cells, *costs(runs)])
    return table(
        ["method", "seeds", *(name.replace("-un", ", un") for name in ALIGNMENTS), "parameters", "GFLOPs test"], rows
    )


def stages() -> str:
    """What an image and a run cost over the seeds: mean shares of the time (of several machines), and most memory."""
    names = ("training", "statistics", "alignment", "evaluation")
    rows = []
    for entry in (*PROMPT_METHODS, *YARDSTICKS, "joint"):
        if runs := runs_of(SHORT, entry):
            seconds = [{name: sum(task[name] for task in run["seconds_by_task"]) for name in names} for run in runs]
            shares = [np.mean([100 * of[name] / sum(of.values()) for of in seconds]) for name in names]
            memory = max(run["peak_memory_mib"] for run in runs)
            gflops = [f"{runs[0][f'gflops_{phase}']:.3f}" for phase in ("train", "test")]
            rows.append([NAMES[entry], *gflops, *(f"{share:.0f}%" for share in shares), f"{memory / 1024:.1f} GiB"])
    return table(["method", "GFLOPs train", "GFLOPs test", *names, "peak memory"], rows)


def overview() -> str:
    """Every method with its best alignment; the linear head as trained, as under `lda` it would be LDA once more."""
    rows = []
    for entry in PROMPT_METHODS + YARDSTICKS:
        if runs := runs_of(SHORT, entry):
            alignment = "none" if entry == "linear" else best_alignment(runs)
            numbers = [cell(values(runs, metric, alignment)) for metric in (FAA, CAA, FM)]
            rows.append([NAMES[entry], alignment, str(len(runs)), *numbers, *costs(runs)])
    header = ["method", "alignment", "seeds", "FAA", "CAA", "FM", "trained parameters", "GFLOPs per image"]
    return table(header, rows)


def differences(entries: dict[str, str], first: str) -> str:
    """What a change of SMoPE is worth: the difference is to the reference with the same seeds.

    Args:
        entries: the changes in words, by the folder of their records, the reference first; seeds that it has not run
            are left out, and so are changes that have not run.
        first: heading of the words.
    """
    reference = {run["settings"]["seed"]: run for run in runs_of(SHORT, next(iter(entries)))}
    rows = []
    for entry, what in entries.items():
        if runs := [run for run in runs_of(SHORT, entry) if run["settings"]["seed"] in reference]:
            same = [reference[run["settings"]["seed"]] for run in runs]
            row = [what, str(len(runs))]
            for name in ("lda", "lda-uncompensated", "none"):
                row += [cell(values(runs, FAA, name)), cell(values(runs, FAA, name) - values(same, FAA, name), "+")]
            rows.append([*row, cell(values(runs, FM))])
    accuracies = [text for name in ("lda", "lda uncompensated", "none") for text in (f"FAA, {name}", "difference")]
    return table([first, "seeds", *accuracies, "FM, lda"], rows)


def sparsity() -> str:
    """SMoPE beside one-prompt under each alignment, seed by seed."""
    sparse, dense = runs_of(SHORT, "smope"), runs_of(SHORT, "one-prompt")
    rows = []
    for name in ALIGNMENTS:
        accuracies, forgetting = ([values(runs, metric, name) for runs in (sparse, dense)] for metric in (FAA, FM))
        rows.append(
            [name, *map(cell, accuracies), *(cell(ours - other, "+") for ours, other in (accuracies, forgetting))]
        )
    return table(["alignment", "FAA, SMoPE", "FAA, one-prompt", "difference", "difference in FM"], rows)


def published() -> str:
    """SMoPE under the published settings, first as the published code was recorded."""
    rows = [["published code", *PUBLISHED_CODE]]
    for pixels, more in (("as the image processor", ""), ("in [0, 1]", ",normalization=reference")):
        (run,) = runs_of(SHORT, f"smope-{PUBLISHED_SETTINGS}{more}")
        numbers = [cell(values([run], metric, "gaussian")) for metric in (FAA, CAA, FM)]
        rows.append([f"smope_hf, pixels {pixels}", cell(values([run], FAA, "none")), *numbers])
    return table(["", "FAA, no alignment", "FAA", "CAA", "FM"], rows)


def efficiency() -> dict[int, dict[str, list[dict]]]:
    """The runs of the compared methods for each number of training images per class."""
    places = {int(place.name.split("-")[0]): f"{place.parent.name}/{place.name}"
              for place in (RECORDS / "cifar100-efficiency").glob("*-per-class")}  # fmt: skip
    places[100] = SHORT
    return {
        samples: {entry: runs for entry in COMPARED if (runs := runs_of(places[samples], entry))}
        for samples in sorted(places)
    }


def best_alignment(runs: list[dict]) -> str:
    """The alignment with the highest FAA."""
    return max(runs[0]["metrics"], key=lambda name: values(runs, FAA, name).mean())


def sample_efficiency() -> str:
    """FAA over the training images of a class, each under the method's best alignment."""
    rows = [
        [str(samples), *(_with_best(of[entry]) if entry in of else "" for entry in COMPARED)]
        for samples, of in efficiency().items()
    ]
    return table(["images per class", *(NAMES[entry] for entry in COMPARED)], rows)


def _with_best(runs: list[dict]) -> str:
    best = best_alignment(runs)
    return f"{cell(values(runs, FAA, best))} ({best})"


def mean_and_spread(runs: list[dict]) -> tuple[float, float | None]:
    """FAA under the best alignment, and its standard deviation where there are several seeds."""
    numbers = values(runs, FAA, best_alignment(runs))
    return float(numbers.mean()), float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None


def draw_curve():
    """The picture of the numbers of images that every compared method has learned from."""
    shared = {samples: of for samples, of in efficiency().items() if len(of) == len(COMPARED)}
    curves = {}
    for entry in COMPARED:
        means, spreads = zip(*(mean_and_spread(of[entry]) for of in shared.values()), strict=True)
        curves[entry] = (list(shared), list(means), list(spreads))
    plot_sample_efficiency(curves, FIGURES / "sample-efficiency.png")


def draw_average():
    """The picture of the prompt methods' average accuracy over the tasks, under lda, with a band over the seeds."""
    curves = {}
    for entry in PROMPT_METHODS:
        rows = [run["accuracy_matrices"]["lda"] for run in runs_of(SHORT, entry)]
        curves[NAMES[entry]] = [AccuracyMatrix.from_json(matrix).as_array() for matrix in rows]
    plot_average_accuracy(curves, FIGURES / "cifar100-short.png")


def draw_costs():
    """The picture of the prompt methods' accuracy over what they cost."""
    methods = []
    for entry in PROMPT_METHODS:
        runs = runs_of(SHORT, entry)
        mean, spread = mean_and_spread(runs)
        gflops = {f"GFLOPs {phase}": runs[0][f"gflops_{phase}"] for phase in ("train", "test")}
        methods.append(
            {"method": entry, "FAA": mean, "FAA std": spread, "parameters": runs[0]["parameters"], **gflops}
        )
    plot_costs(methods, FIGURES / "cifar100-short-costs.png")


def imbalance() -> str:
    """FAA, and recall of the classes with many, a medium number of, and few training images."""
    rows = []
    for factor in (10, 100):
        for entry in COMPARED:
            if runs := runs_of(f"cifar100-imbalance-{factor}", entry):
                accuracies = [cell(values(runs, FAA, name)) for name in ("gaussian-full", "lda")]
                thirds = [cell(values(runs, metric)) for metric in THIRDS]
                rows.append([NAMES[entry], str(factor), str(len(runs)), *accuracies, *thirds])
    header = ["method", "factor", "seeds", "FAA, gaussian-full", "FAA, lda"]
    return table([*header, "head third, lda", "middle third, lda", "tail third, lda"], rows)


def tuning() -> str:
    """Validation FAA of every trial, the chosen one in bold; then test FAA of the reference and the chosen setting.

    The last two are of the same training seeds, those that the chosen setting has been run with.
    """
    rates = sorted({place.name.split("=")[1] for place in (RECORDS / TUNING).glob("*")}, key=float)
    rows = []
    for entry in PROMPT_METHODS:
        trials = {rate: runs for rate in rates if (runs := runs_of(TUNING, f"{entry}-learning_rate={rate}"))}
        if len(trials) == len(rates) > 0:
            chosen = max(trials, key=lambda rate: mean_and_spread(trials[rate])[0])
            cells = [cell(values(runs, FAA, best_alignment(runs))) for runs in trials.values()]
            cells = [f"**{text}**" if rate == chosen else text for rate, text in zip(rates, cells, strict=True)]
            rows.append([NAMES[entry], *cells, *_tested(entry, chosen)])
    header = ["method", *(f"{rate}, validation" for rate in rates), "reference, test", "chosen, test", "seeds"]
    return table(header, rows)


def _tested(entry: str, chosen: str) -> list[str]:
    reference = runs_of(SHORT, entry)
    if float(chosen) == reference[0]["settings"]["learning_rate"]:
        tuned = reference
    else:
        tuned = runs_of(SHORT, f"{entry}-learning_rate={chosen}")
    seeds = {run["settings"]["seed"] for run in tuned}
    reference = [run for run in reference if run["settings"]["seed"] in seeds] or reference
    cells = [cell(values(runs, FAA, best_alignment(runs))) if runs else "" for runs in (reference, tuned)]
    return [*cells, str(len(reference))]


def realigned_names() -> dict[str, str]:
    """Methods in words, by the folders of their realigned runs."""
    return {"smope-routing=unmasked": "SMoPE, unmasked"} | {entry: NAMES[entry] for entry in PROMPT_METHODS}


def shrinkage() -> str:
    """What the shrinkage of lda's covariance is worth, by the number of training images."""
    efficiency = RECORDS / "cifar100-efficiency"
    places = {"10": efficiency / "0010-per-class", "25": efficiency / "0025-per-class", "100": ALIGNED}
    places["1 to 100"] = RECORDS / "cifar100-imbalance-100"
    return shrinkages(places, realigned_names())


TABLES = {
    "alignments": alignments,
    "overview": overview,
    "stages": stages,
    "ablations": lambda: differences(ABLATIONS, "taken away"),
    "sparsity": sparsity,
    "sweeps": lambda: differences(SWEEPS, "setting"),
    "published": published,
    "routing-layers": lambda: routing_layers(ROUTING),
    "routing-tasks": lambda: routing_tasks(ROUTING),
    "sample-efficiency": sample_efficiency,
    "imbalance": imbalance,
    "tuning": tuning,
    "drift": lambda: drift_penalties(ALIGNED, realigned_names()),
    "drift-ceiling": lambda: drift_ceiling(ALIGNED, realigned_names()),
    "shrinkage": shrinkage,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table is not up to date")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)
        if new != text:
            stale.append(page.name)
            if not check:
                with atomic_path(page) as temporary:
                    temporary.write_text(new, encoding="utf-8")
    if not check:
        draw_average()
        draw_costs()
        draw_curve()
        draw_routing(ROUTING, FIGURES)
    elif stale:
        sys.exit(f"error: not what the records give: {', '.join(stale)}. Run python examples/results_tables.py.")


if __name__ == "__main__":
    main()
