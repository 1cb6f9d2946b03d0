"""What SMoPE costs beyond the bare backbone: every figure a ratio, from one process.

    python examples/benchmark_speed.py --backbone vit-b16 --batch_size 8 --threads 2 --output_dir runs/speed
    python examples/benchmark_speed.py --quick --output_dir runs/speed

Two ways are timed in turn, so that what else the machine does meets both, and a figure is the median over these pairs.
The folder gets speed.json and speed.md. On CUDA clocks wait for the device, and memory is the allocator's own peak.
--backbone takes vit-b16 (random weights), a Hub id or a folder; --quick takes a tiny one, for a look at the script.
"""

import argparse
import contextlib
import copy
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from speed_memory import peak_bytes
from speed_share import ModelTime
from speed_throughput import throughput
from torch import nn
from torch.distributions import MultivariateNormal
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from smope_hf import ContinualTrainer, ContinualTrainingArguments, SMoPEForImageClassification, TaskStream
from smope_hf.base.home import expanded, home_path
from smope_hf.base.printing import say_lines
from smope_hf.heads.alignment import VARIANCE_FLOOR, ClassStatistics, align_classifier
from smope_hf.models.backbones import load_backbone
from smope_hf.models.image_processors import load_image_processor
from smope_hf.storage.files import atomic_path, write_json
from smope_hf.storage.output_check import try_folder

TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
CLASSES_PER_TASK = 10


@dataclass
class Row:
    """One figure. `limit` is what it must reach: at most it, or where `at_least` is set, at least it."""

    name: str
    what: str
    value: float
    limit: float
    unit: str = "times"
    at_least: bool = False
    ours: float | None = None
    reference: float | None = None
    repetitions: int = 1

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


class Bench:
    """Models, inputs and clocks of one backbone."""

    def __init__(self, args):
        self.args, self.device = args, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if args.quick:
            config = ViTConfig(image_size=32, patch_size=8, **TINY)
        elif args.backbone == "vit-b16":
            config = ViTConfig()
        else:
            config = None
        torch.manual_seed(args.seed)
        self.bare = ViTModel(config, add_pooling_layer=False) if config else load_backbone(args.backbone)[0]
        self.bare = self.bare.requires_grad_(False).to(self.device)
        size = self.bare.config.image_size
        self.processor = (
            ViTImageProcessorPil(size={"height": size, "width": size})
            if config
            else load_image_processor(args.backbone)
        )
        self.pixels = torch.randn(args.batch_size, 3, size, size, device=self.device)

    def model(self, tasks: int = 2, classes: int = CLASSES_PER_TASK, **fields) -> SMoPEForImageClassification:
        """A model on a copy of the backbone that has begun some tasks, with experts used and marked."""
        torch.manual_seed(self.args.seed)
        model = SMoPEForImageClassification.from_backbone(copy.deepcopy(self.bare), **fields).to(self.device)
        for task in range(tasks):
            if task:
                shape = (64, *model.prefix_experts[0].usage_counts.shape)
                model.update_usage([torch.randn(shape, device=self.device) for _ in model.prefix_experts])
            model.begin_task([f"{task}-{index}" for index in range(classes)])
        return model.to(self.device)

    def inference(self, model) -> Callable[[], object]:
        model.eval()
        return torch.no_grad()(lambda: model(self.pixels))

    def training(self, model, bf16: bool = False) -> Callable[[], object]:
        """A whole step: forward with all losses, backward, and the optimizer."""
        first, last = model.config.tasks[-1][0], model.config.tasks[-1][-1]
        labels = torch.arange(len(self.pixels), device=self.device) % (last - first + 1) + first
        optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-9)
        model.train()

        def step():
            with torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
                loss = model(self.pixels, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def bare_step(self) -> Callable[[], object]:
        """Forward and backward of the frozen backbone down to its embeddings; no parameter gets a gradient."""
        bare = copy.deepcopy(self.bare).train()
        bare.embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
        return lambda: bare(self.pixels).last_hidden_state[:, 0].mean().backward()

    def seconds(self, run: Callable[[], object]) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def pairs(self, ours: Callable, reference: Callable, repetitions: int | None = None) -> dict:
        """Medians of both, and of their ratio in pairs that begin with the one and the other in turn."""
        repetitions = repetitions or self.args.repetitions
        for run in (ours, reference):
            run()
        times = []
        for index in range(repetitions):
            order = (ours, reference) if index % 2 else (reference, ours)
            measured = [self.seconds(run) for run in order]
            times.append(measured if index % 2 else measured[::-1])
        first, second = zip(*times)
        return {
            "value": statistics.median(a / b for a, b in times),
            "ours": statistics.median(first),
            "reference": statistics.median(second),
            "repetitions": repetitions,
        }


# ---------------------------------------------------------------------- rows


def model_rows(bench: Bench) -> list[Row]:
    """Time of the model against the bare backbone, and against itself with more experts, choices and tasks."""
    model, many, all_on = bench.model(), bench.model(num_experts=400), bench.model(top_k=25)
    once, hundred = bench.model(tasks=1, classes=1), bench.model(tasks=100, classes=1)
    inference, training = bench.inference, bench.training
    training(model)()  # from then on glibc keeps the memory of a pass: see speed_allocator.py
    compared = (
        ("inference", "inference / bare ViT with sdpa", 1.03, lambda: (inference(model), inference(bench.bare))),
        ("training", "training step / forward and backward of the frozen ViT", 1.05,
         lambda: (training(model), bench.bare_step())),
        ("experts-inference", "400 experts / 25, inference", 1.05, lambda: (inference(many), inference(model))),
        ("experts-training", "400 experts / 25, training step", 1.05, lambda: (training(many), training(model))),
        ("top-k-inference", "top 25 / top 5, inference", 1.02, lambda: (inference(all_on), inference(model))),
        ("top-k-training", "top 25 / top 5, training step", 1.02, lambda: (training(all_on), training(model))),
        ("tasks-inference", "100 tasks / 1, inference", 1.00, lambda: (inference(hundred), inference(once))),
    )  # fmt: skip
    rows = [Row(name, what, limit=limit, **bench.pairs(*make())) for name, what, limit, make in compared]
    sizes = [sum(value.numel() for value in each.prompt_parameters()) for each in (hundred, once)]
    rows.append(Row("tasks-parameters", "100 tasks / 1, prompt parameters", sizes[0] / sizes[1], 1.00))
    half, full = training(bench.model(), bf16=True), training(model)
    found = bench.pairs(full, half)
    rows.append(Row("bf16", "training step: fp32 / bf16", limit=2.0, at_least=True, **found))
    return rows


def memory_row(bench: Bench) -> Row:
    """Weights and everything else that is kept, and the peak of what a step takes on top."""
    model = bench.model()
    sizes = [peak_bytes(run, bench.device) for run in (bench.training(model), bench.bare_step())]
    if bench.device.type == "cpu":  # CUDA's peak has them in it
        kept = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
        moments = 2 * sum(value.nbytes for value in model.parameters() if value.requires_grad)
        sizes = [sizes[0] + kept + moments, sizes[1] + sum(value.nbytes for value in bench.bare.parameters())]
    found = {"ours": sizes[0] / 2**20, "reference": sizes[1] / 2**20}
    return Row("memory", "peak memory of a training step / frozen ViT", sizes[0] / sizes[1], 1.05, **found)


def loop_alignment(head: nn.Linear, found: ClassStatistics, num_old: int, args, generator: torch.Generator):
    """Alignment as published: a distribution of full covariance for every class, built and drawn from each epoch."""
    batch = args.batch_size
    optimizer = torch.optim.AdamW(head.parameters(), lr=args.alignment_learning_rate, weight_decay=5e-4)
    for _ in range(args.alignment_epochs):
        drawn = []
        for mean, variance in zip(found.mean, found.variance, strict=True):
            covariance = torch.diag(variance) + VARIANCE_FLOOR * torch.eye(len(variance))
            drawn.append(MultivariateNormal(mean, covariance).sample((batch,)))
        features, labels = torch.cat(drawn), torch.arange(len(found.mean)).repeat_interleave(batch)
        order = torch.randperm(len(labels), generator=generator)
        for rows in order.split(batch)[:num_old]:
            loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def alignment_row(bench: Bench) -> Row:
    """Some epochs of both: their number does not change the ratio, as both do the same work in each."""
    classes, size = (20 if bench.args.quick else 100), bench.bare.config.hidden_size
    found = ClassStatistics(
        torch.randn(classes, size), torch.rand(classes, size) + 0.1, torch.full((classes,), 500), torch.eye(size)
    )
    args = ContinualTrainingArguments(alignment="gaussian", alignment_epochs=2)
    head, old = nn.Linear(size, classes), classes - CLASSES_PER_TASK
    runs = (
        lambda how=how: how(head, found, old, args, torch.Generator()) for how in (loop_alignment, align_classifier)
    )
    what = "alignment: loop over classes / gaussian alignment"
    return Row("alignment", what, limit=20, at_least=True, **bench.pairs(*runs, min(3, bench.args.repetitions)))


def growth_row(bench: Bench) -> Row:
    model = bench.model(tasks=1, classes=10_000)
    model.update_usage([torch.randn(64, *e.usage_counts.shape, device=bench.device) for e in model.prefix_experts])
    seconds = bench.seconds(lambda: model.begin_task([f"new {index}" for index in range(CLASSES_PER_TASK)]))
    return Row("begin-task", "begin_task with 10,000 classes known", seconds, 1.0, "s")


def run_rows(bench: Bench) -> list[Row]:
    """A run of one task on the digits that come along: images seen by the backbone, and where the time goes."""
    epochs, per_class, test = 2, (2 if bench.args.quick else 12), 2
    stream = TaskStream.load(
        "embedded", num_tasks=1, max_train_samples_per_class=per_class, max_test_samples_per_class=test
    )
    model = SMoPEForImageClassification.from_backbone(copy.deepcopy(bench.bare))
    with tempfile.TemporaryDirectory() as folder:
        args = ContinualTrainingArguments(
            output_dir=folder, epochs=epochs, dense_epochs=0, batch_size=bench.args.batch_size,
            eval_batch_size=bench.args.batch_size, disable_progress=True,
        )  # fmt: skip
        trainer = ContinualTrainer(model, args, stream, bench.processor)
        model_time = ModelTime(trainer)
        with contextlib.redirect_stdout(None):
            total = bench.seconds(trainer.train)
    train, tests = (len(part) for part in (stream[0].train, stream[0].test))
    passes = (model_time.images - epochs * train - tests) / train
    inside = model_time.seconds
    return [
        Row("end-of-task", "passes over the training images at the end of a task", passes, 1),
        Row("outside", "share of a run's time outside forward and backward of the model", 1 - inside / total, 0.10,
            "share", False, total - inside, total),
    ]  # fmt: skip


def import_rows(bench: Bench) -> list[Row]:
    """Each in a process of its own; the difference is of the package alone."""

    def start(*arguments):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)

    auto = "from transformers import AutoModel"
    found = bench.pairs(lambda: start("-c", f"{auto}; import smope_hf"), lambda: start("-c", auto))
    found["value"] = found["ours"] - found["reference"]
    repetitions = bench.args.repetitions
    helped = statistics.median(bench.seconds(lambda: start("-m", "smope_hf", "--help")) for _ in range(repetitions))
    return [
        Row("import", "import smope_hf after AutoModel of transformers", limit=0.3, unit="s", **found),
        Row("help", "smope --help", helped, 1.5, "s", repetitions=repetitions),
    ]


# ---------------------------------------------------------------------- results


def as_markdown(rows: list[Row], settings: dict, rates: dict[str, float]) -> str:
    lines = ["| what | measured | must reach | met | ours | reference |", "|---|---|---|---|---|---|"]
    for row in rows:
        bound = f"{'>=' if row.at_least else '<='} {row.limit:g}"
        sides = ["" if side is None else f"{side:.4g}" for side in (row.ours, row.reference)]
        unit = "" if row.unit == "times" else f" {row.unit}" if row.unit == "s" else ""
        lines.append(f"| {row.what} | {row.value:.3f}{unit} | {bound} | {'yes' if row.met else 'no'} | "
                     f"{sides[0]} | {sides[1]} |")  # fmt: skip
    if rates:
        lines += ["", "| inference | images/s |", "|---|---|"]
        lines += [f"| {name} | {rate:.1f} |" for name, rate in rates.items()]
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    return "\n".join([*lines, "", "Ours and reference are medians, in seconds or, of memory, MiB.", "", told, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=expanded, default="vit-b16", help="vit-b16 (random), Hub id or folder")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--repetitions", type=int, default=5, help="pairs of each comparison")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--throughput", action="store_true", help="also images/s: eager, bf16, compiled, ONNX")
    parser.add_argument("--quick", action="store_true", help="a tiny backbone: shows the script, not the method")
    parser.add_argument("--output_dir", type=home_path, default=Path("runs/speed"))
    args = parser.parse_args()
    try_folder(args.output_dir, "--output_dir")
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    rows = [*model_rows(bench), memory_row(bench), alignment_row(bench), growth_row(bench), *run_rows(bench)]
    rows += import_rows(bench)
    rates = throughput(bench) if args.throughput else {}
    settings = {
        "backbone": "tiny" if args.quick else args.backbone, "batch size": args.batch_size, "threads": args.threads,
        "repetitions": args.repetitions, "device": bench.device.type, "torch": torch.__version__,
        "processor": torch.cuda.get_device_name() if bench.device.type == "cuda" else platform.machine(),
    }  # fmt: skip
    args.output_dir.mkdir(parents=True, exist_ok=True)
    content = {**settings, "rows": [{**asdict(row), "met": row.met} for row in rows], "images_per_second": rates}
    write_json(args.output_dir / "speed.json", content)
    table = as_markdown(rows, settings, rates)
    with atomic_path(args.output_dir / "speed.md") as path:
        path.write_text(table, encoding="utf-8")
    say_lines(table)


if __name__ == "__main__":
    main()
