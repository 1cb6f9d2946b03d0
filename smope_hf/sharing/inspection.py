"""What a checkpoint is, from its JSON files and the headers of its weights alone: no tensor is read."""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from ..base.formatting import ranges
from ..models.registry import config_of
from ..routing.patterns import balance
from ..routing.usage import load_routing
from ..storage.checkpoint_guard import read_header
from .checkpoint import ROUTING_FILE, STATE_FILE, load_state, missing_to_go_on, saved_tasks

DEAD_SHARE = 0.5  # of a layer's experts
MARKED_SHARE = 0.9


def class_tasks(config) -> list[list[str]]:
    """Names of the classes of each task, from a checkpoint's config."""
    return [[config.id2label[index] for index in task] for task in config.tasks]


def read_config(folder: Path):
    """The config of a SMoPE checkpoint with at least one task.

    Raises:
        ValueError: or StrictDataclassError, naming the file and the field.
    """
    config = config_of(folder)
    if not config.tasks:
        raise ValueError(
            f"{folder / 'config.json'} has no tasks: the model has learned nothing yet, and a SMoPE checkpoint with "
            "at least one task is needed"
        )
    return config


def describe_checkpoint(folder: Path) -> dict:
    """Everything that `smope info` tells of one checkpoint, as JSON.

    Raises:
        ValueError: when the folder holds no SMoPE checkpoint.
        OSError: when a file cannot be read.
    """
    config = read_config(folder)
    state = load_state(folder) if (folder / STATE_FILE).is_file() else {}
    rows = state.get("accuracy_matrix") or [[]]
    names = class_tasks(config)
    accuracies = [*rows[-1], *[None] * (len(names) - len(rows[-1]))]
    routing = routing_health(load_routing(folder)) if (folder / ROUTING_FILE).is_file() else None
    parameters = count_parameters(folder)
    report = {
        "folder": str(folder),
        "base_model": config.base_model_name_or_path,
        "base_model_revision": config.base_model_revision,
        "backbone": config.backbone_config.model_type,
        "standalone": "backbone" in parameters,
        "method": getattr(config, "method", "smope"),
        **{name: getattr(config, name, None) for name in ("num_experts", "top_k", "noise_epsilon", "settings")},
        "routing_mode": getattr(config, "routing", None),
        "prompt_layers": config.prompt_layers,
        "num_layers": config.backbone_config.num_hidden_layers,
        "num_classes": sum(map(len, names)),
        "tasks": [
            {"task": index, "classes": task, "accuracy": accuracy}
            for index, (task, accuracy) in enumerate(zip(names, accuracies), start=1)
        ],
        "parameters": parameters,
        "bytes_by_file": {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()},
        "routing": routing,
    }
    return {**report, "warnings": warnings(report)}


def describe_run(run: Path) -> list[dict]:
    """The tasks of a run's folder: their number of classes and average accuracy when they were learned."""
    tasks = []
    for folder in saved_tasks(run):
        row = (load_state(folder)["accuracy_matrix"] or [[]])[-1]
        measured = bool(row) and None not in row
        classes = sum(map(len, class_tasks(read_config(folder))))
        average = sum(row) / len(row) if measured else None
        tasks.append({"task": folder.name, "num_classes": classes, "average_accuracy": average})
    return tasks


def count_parameters(folder: Path) -> dict[str, int]:
    """Numbers in the weights by part: `experts` or `prompts`, `head`, `routing_state`, `backbone` where stored."""
    counts: Counter = Counter()
    for path in sorted(folder.glob("model*.safetensors")):
        for name, (shape, _) in read_header(path).items():
            if name.startswith("prefix_experts."):
                part = "experts" if name.endswith((".keys", ".values")) else "routing_state"
            else:
                part = {"classifier": "head", "prompts": "prompts"}.get(name.partition(".")[0], "backbone")
            counts[part] += math.prod(shape)
    if not counts:
        raise FileNotFoundError(f"{folder} holds no model.safetensors")
    return dict(counts)


def routing_health(routing: dict) -> list[dict]:
    """How each layer's experts are used, from routing.json.

    Returns:
        For each prompt layer the numbers of `experts`, of `dead` and of `frequently_used` ones over all heads, and two
        means over heads of how even the usage is, `entropy` and `gini` of [`balance`].
    """
    health = []
    for layer in routing["layers"]:
        heads = [balance(head) for head in layer["usage_share"]]
        health.append(
            {
                "layer": layer["layer"],
                "experts": sum(map(len, layer["usage_share"])),
                "dead": sum(map(len, layer["dead_experts"])),
                "frequently_used": sum(map(len, layer["frequently_used_experts"])),
                "entropy": round(float(np.mean([head.entropy for head in heads])), 4),
                "gini": round(float(np.mean([head.gini for head in heads])), 4),
            }
        )
    return health


def warnings(report: dict) -> list[str]:
    """What is likely to hurt, each with its remedy."""
    from .model_card import is_hub_id

    found = []
    chosen = report["top_k"] != report["num_experts"]  # else nothing is routed: each expert serves every image
    layers = (report["routing"] if chosen else None) or []
    dead = [layer["layer"] for layer in layers if layer["dead"] > DEAD_SHARE * layer["experts"]]
    marked = [layer["layer"] for layer in layers if layer["frequently_used"] > MARKED_SHARE * layer["experts"]]
    if dead:
        found.append(
            f"More than half of the experts were never used in {_layers(dead)}. Train with fewer "
            "(--num-experts), or raise --top-k or --noise-epsilon so that later tasks choose others."
        )
    if marked:
        found.append(
            f"Nearly all experts are marked as frequently used in {_layers(marked)}: noise no longer steers "
            "new tasks away from them. Train with more (--num-experts)."
        )
    if report["routing"] is None and report["method"] == "smope":
        found.append(f"There is no {ROUTING_FILE}: how the experts are used is not known.")
    if missing := missing_to_go_on(report["bytes_by_file"]):
        found.append(missing)
    base = report["base_model"]
    if not report["standalone"] and base != "embedded" and not is_hub_id(base):
        found.append(
            f"The base model {base} is a folder of one machine; nobody else can load this checkpoint. Push it with "
            "--include-backbone."
        )
    return found


def _layers(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"
