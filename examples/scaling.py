"""What a continual run costs by stage: a cost model, its check against this machine, and what it predicts.

    python examples/scaling.py --output_dir runs/scaling

The model counts FLOPs (a multiplication and an addition are two), bytes and what processes send each other, from the
shapes of the backbone and the run alone. It is checked at three sizes of ViT with random weights: FLOPs against
torch's counter, activations against what autograd keeps, a training step's time over a forward pass's against the
clock; and against the stages of recorded runs. The folder gets scaling.json and scaling.md.
"""

import argparse
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from benchmark_records import read_record
from cost_model import Machine, Run, Shape, overtaken, predicted
from flops import count_flops
from transformers import ViTConfig, ViTModel

from smope_hf import SMoPEForImageClassification
from smope_hf.base.home import expanded
from smope_hf.base.printing import say_lines
from smope_hf.storage.files import atomic_path, write_json
from smope_hf.storage.output_check import try_folder

# ---------------------------------------------------------------------- check on this machine

SIZES = {
    "ViT-Ti/16, 224": (Shape(192, 12, 197, 16, 6, 3), 224),
    "ViT-S/14, 70": (Shape(384, 12, 26, 14, 6, 6), 70),
    "ViT-B/16, 224": (Shape(768, 12, 197, 16, 6, 12), 224),
}
CLASSES = 10
RECORDS = Path(__file__).parent / "records/cifar100-short/smope"


def build(shape: Shape, image_size: int) -> SMoPEForImageClassification:
    """A model of this shape with random weights that has begun its first task."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp,
        image_size=image_size,
        patch_size=shape.patch,
    )
    backbone = ViTModel(config, add_pooling_layer=False)
    model = SMoPEForImageClassification.from_backbone(
        backbone, num_experts=shape.experts, prompt_layers=list(range(shape.prompt_layers))
    )
    model.begin_task([str(index) for index in range(CLASSES)])
    return model.train()


def kept_numbers(model, pixels, labels) -> int:
    """Numbers of at least a token's size that autograd keeps for the backward pass, each once, without weights."""
    storages, weights = {}, {value.untyped_storage().data_ptr() for value in model.parameters()}
    smallest = pixels.shape[0] * model.config.hidden_size * 2

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.numel() >= smallest:
            storages[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(pixels, labels=labels).loss
    del loss
    return sum(storages.values())


def check(shape: Shape, image_size: int, images: int, repetitions: int) -> dict[str, float]:
    """Model and machine beside each other for one size."""
    model = build(shape, image_size)
    pixels, labels = torch.randn(images, 3, image_size, image_size), torch.arange(images) % CLASSES

    @torch.no_grad()
    def forward():
        model(pixels, labels=labels)

    def step():
        model(pixels, labels=labels).loss.backward()

    flops = [count_flops(run) / images for run in (forward, step)]
    seconds = [[], []]
    for _ in range(repetitions):
        for run, times in zip((forward, step), seconds, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return {
        "forward_flops": flops[0],
        "forward_flops_predicted": shape.forward(CLASSES),
        "step_flops": flops[1],
        "step_flops_predicted": shape.forward(CLASSES) + shape.backward(CLASSES),
        "kept_numbers": kept_numbers(model, pixels, labels) / images,
        "kept_numbers_predicted": shape.activations(),
        "forward_seconds": statistics.median(seconds[0]) / images,
        "step_over_forward": statistics.median(b / a for a, b in zip(*seconds, strict=True)),
        "step_over_forward_predicted": 1 + shape.backward(CLASSES) / shape.forward(CLASSES),
    }


def recorded_shares(records: Path) -> dict[str, dict[str, float]]:
    """Shares of the stages in recorded runs of the short CIFAR-100 protocol, beside the model's."""
    found: dict[str, list[float]] = {}
    for path in sorted(records.glob("seed-*/record.json")):
        seconds = read_record(path)["seconds_by_task"]
        for stage in ("training", "statistics", "evaluation"):
            found.setdefault(stage, []).append(sum(task[stage] for task in seconds))
    if not found:
        raise SystemExit(f"no seed-*/record.json in {records}: give --records a method's folder of the benchmark")
    stages = Run(10, 10, 100, 100).stages(SIZES["ViT-S/14, 70"][0])
    measured = {stage: statistics.median(values) for stage, values in found.items()}
    total, flops = sum(measured.values()), sum(stages[stage]["flops"] for stage in measured)
    return {
        stage: {"measured": seconds / total, "predicted": stages[stage]["flops"] / flops}
        for stage, seconds in measured.items()
    }


# ---------------------------------------------------------------------- what it predicts

LARGE = Shape(1024, 24, 197, 16, 12, 16)  # ViT-L/16 at 224
THOUSAND = Run(1000, 10, 500, 100, batch=512, processes=8)


ASSUMED = Machine(flops=120e12, host_flops=50e9, link=20e9, decoded=8000.0)


def as_markdown(content: dict) -> str:
    """The tables of docs/scaling.md."""
    lines = ["| | " + " | ".join(content["sizes"]) + " |", "|---|" + "---:|" * len(content["sizes"])]
    rows = (
        ("forward pass, GFLOPs counted / predicted", "forward_flops", 1e9, 3),
        ("training step, GFLOPs counted / predicted", "step_flops", 1e9, 3),
        ("kept activations, million numbers, counted / predicted", "kept_numbers", 1e6, 3),
        ("time of a step over a forward pass, measured / predicted", "step_over_forward", 1, 2),
    )
    for title, name, unit, digits in rows:
        cells = [
            f"{size[name] / unit:.{digits}f} / {size[name + '_predicted'] / unit:.{digits}f}"
            for size in content["sizes"].values()
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", "| share of the stage | measured | predicted |", "|---|---:|---:|"]
    lines += [f"| {name} | {s['measured']:.2f} | {s['predicted']:.2f} |" for name, s in content["shares"].items()]
    lines += ["", "| stage | hours |", "|---|---:|"]
    lines += [f"| {stage} | {hours:.2f} |" for stage, hours in content["hours"].items()]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=expanded, default="runs/scaling")
    parser.add_argument("--images", type=int, default=8, help="images of a batch")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--records", type=expanded, default=str(RECORDS))
    args = parser.parse_args()
    try_folder(args.output_dir, "--output_dir")
    torch.set_num_threads(args.threads)
    last, all_of_them = THOUSAND.saved_bytes(LARGE)
    content = {
        "settings": vars(args),
        "sizes": {name: check(*size, args.images, args.repetitions) for name, size in SIZES.items()},
        "shares": recorded_shares(Path(args.records)),
        "prediction": {"shape": asdict(LARGE), "run": asdict(THOUSAND), "machine": asdict(ASSUMED)},
        "stages": THOUSAND.stages(LARGE),
        "hours": predicted(THOUSAND, LARGE, ASSUMED),
        "step_bytes": THOUSAND.step_bytes(LARGE, THOUSAND.tasks * THOUSAND.classes),
        "last_checkpoint_bytes": last,
        "all_checkpoints_bytes": all_of_them,
        "evaluation_overtakes_training_at_task": overtaken(THOUSAND, LARGE),
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "scaling.json", content)
    table = as_markdown(content)
    with atomic_path(folder / "scaling.md") as path:
        path.write_text(table)
    say_lines(table)


if __name__ == "__main__":
    main()
