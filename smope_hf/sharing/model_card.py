"""The README.md of a checkpoint, written from what lies in its folder: what really happened in the run."""

import html
import json
import os
import re
from importlib import resources
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..base.printable import printable, printable_json
from ..data.manifest import earlier_runs
from ..metrics.accuracy_matrix import AccuracyMatrix
from ..metrics.summary import metrics_where_measured
from ..models.backbones import EMBEDDED
from ..models.configuration_incremental import IncrementalConfig
from ..models.methods.rivals import PROMPT_METHODS
from ..models.methods.table import METHODS
from ..models.pretrained import holds_backbone
from ..models.registry import config_of
from ..routing.usage import ROUTING_FILE, load_routing
from .run_files import load_manifest, load_state

PICTURE = "accuracy_matrix.png"
LONGEST_TEXT = 200  # characters of a name in the card
_NOT_MARKDOWN = re.compile(r"://|www\.|@|mailto:|xmpp:|\$|\\[()\[\]]|:\w+:", re.IGNORECASE)  # links, formulas, emoji
TAGS = ["smope", "continual-learning", "class-incremental-learning", "prompt-tuning", "mixture-of-experts"]
RESULTS = {
    "final_average_accuracy": "Final average accuracy (FAA)",
    "cumulative_average_accuracy": "Cumulative average accuracy (CAA)",
    "forgetting": "Forgetting (FM)",
}
SHOWN_VERSIONS = ("smope_hf", "torch", "transformers", "python")


def write_card(folder: Path):
    """Write README.md into a checkpoint's folder, from what else is in it."""
    (folder / "README.md").write_text(card_of(folder), encoding="utf-8")


def card_of(folder: Path, **options) -> str:
    """The card of a checkpoint's folder.

    Args:
        folder: holds config.json, model.safetensors, trainer_state.json, manifest.json and routing.json.
        **options: as for `build_card`; `standalone` for a backbone that is in the weights, or goes with them. The
            picture is shown where the folder has it.
    """
    state, manifest = load_state(folder), load_manifest(folder)
    routing = load_routing(folder) if (folder / ROUTING_FILE).is_file() else None
    standalone = options.pop("standalone", False) or holds_backbone(folder)
    shown = {"standalone": standalone, "pictured": (folder / PICTURE).is_file()}
    return build_card(config_of(folder), state, manifest, routing, **shown, **options)


def build_card(
    config: IncrementalConfig,
    state: dict,
    manifest: dict,
    routing: dict | None,
    *,
    repo_id: str | None = None,
    standalone: bool = False,
    remote_code: bool = False,
    license: str | None = None,
    pictured: bool = False,
) -> str:
    """Write the card of a checkpoint.

    Args:
        config: the model's config.
        state: content of trainer_state.json.
        manifest: of the tasks learned so far.
        routing: content of routing.json; None for a model without experts.
        repo_id: the repository it goes to; default none yet.
        standalone: whether the backbone was put into the checkpoint. It is there in any case when the config names no
            base model, and when the method trains the backbone.
        remote_code: whether the model's code is in the repository.
        license: of the model. Default: none is claimed, but for the embedded backbone its own.
        pictured: whether the picture of the accuracy matrix lies beside the card.

    Raises:
        ValueError: when state and manifest tell of different tasks.
    """
    _check_same_tasks(config, state, manifest)
    matrix = AccuracyMatrix.from_json(state["accuracy_matrix"])
    metrics = metrics_where_measured(matrix)
    base, num_tasks = config.base_model_name_or_path, len(config.tasks)
    trains_backbone = config.model_type != "smope" and PROMPT_METHODS[config.method].trains_backbone
    on_hub = is_hub_id(base)
    name = method_name(config)
    title = f"{name} after task {num_tasks}: {config.num_labels} classes"
    sources = _hub_datasets(manifest)
    data = ModelCardData(
        library_name="smope_hf",
        license=printable(license, LONGEST_TEXT) if license else ("apache-2.0" if base == EMBEDDED else None),
        pipeline_tag="image-classification",
        tags=TAGS,
        base_model=base if on_hub else None,
        base_model_relation=("finetune" if trains_backbone else "adapter") if on_hub else None,
        base_model_revision=config.base_model_revision if on_hub else None,
        datasets=sources or None,
        metrics=["accuracy"],
        model_name=(repo_id or "smope").split("/")[-1],
        eval_results=_results(metrics, matrix, manifest, sources) or None,
    )
    protocol = {key: manifest[key] for key in ("name", "seed", "num_classes", "columns", "options")}
    return (
        ModelCard.from_template(
            data,
            template_str=resources.files(__package__).joinpath("model_card_template.md").read_text(encoding="utf-8"),
            title=_as_text(title),
            method=_as_text(name),
            is_smope=config.model_type == "smope",
            has_prompts=bool(config.prompt_layers),
            trains_backbone=trains_backbone,
            backbone=_describe_backbone(config, on_hub),
            num_tasks=num_tasks,
            num_classes=config.num_labels,
            datasets=_describe_data(manifest["name"]),
            repo_id=repo_id,
            location=repo_id or "path/to/this/folder",
            revision_option=f" --revision task-{num_tasks:02d}" if repo_id else "",
            revision_argument=f', revision="task-{num_tasks:02d}"' if repo_id else "",
            standalone=standalone or base is None or trains_backbone,
            remote_code=remote_code,
            continued_from=_origin(state.get("continued_from")),
            first_tag=f"task-{(state.get('continued_from') or {}).get('num_tasks', 0) + 1:02d}",
            measured=_is_measured(matrix),
            complete=matrix.is_complete,
            picture=PICTURE if pictured else None,
            faa=_percent(metrics["final_average_accuracy"]),
            caa=_percent(metrics["cumulative_average_accuracy"]),
            fm=_percent(metrics["forgetting"]),
            rows=_rows(manifest, matrix),
            protocol_hash=_as_code(manifest["protocol_hash"]),
            protocol=_as_json(protocol),
            experts=_describe_experts(config),
            recipe=_as_json(state["recipe"]),
            routing=routing,
            dead_percent=None if routing is None else f"{100 * routing['dead_share']:.0f}",
            versions=", ".join(f"{name} {_as_text(state['versions'].get(name, '?'))}" for name in SHOWN_VERSIONS),
        ).content.rstrip()
        + "\n"
    )


def _check_same_tasks(config: IncrementalConfig, state: dict, manifest: dict):
    counts = {
        "tasks of config.json": len(config.tasks),
        "accuracy_matrix of trainer_state.json": len(state["accuracy_matrix"]),
        "tasks of manifest.json": len(manifest["tasks"]),
    }
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(
            f"The files of a checkpoint tell of different numbers of tasks ({listed}). Copy or download it again."
        )


def is_hub_id(name: str | None) -> bool:
    """Whether a base model's name is one that another machine can load: an "owner/name" that is no folder here."""
    if name is None or name.count("/") != 1 or os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _describe_data(name: str) -> str:
    return "scikit-learn's handwritten digits (`embedded`)" if name == EMBEDDED else _as_code(name)


def _describe_backbone(config: IncrementalConfig, on_hub: bool) -> str:
    base = config.base_model_name_or_path
    if base == EMBEDDED:
        return "`embedded`, the small ViT that comes with smope_hf"
    if not on_hub:
        return f"of the family {_as_code(config.backbone_config.model_type)}"
    revision = f", revision {_as_code(config.base_model_revision)}" if config.base_model_revision else ""
    return f"{_as_code(base)}{revision}"


def method_name(config: IncrementalConfig) -> str:
    """Name of a model's method, as tables and titles have it."""
    if config.model_type == "smope":
        return METHODS["smope" if config.top_k < config.num_experts else "one-prompt"].title
    return METHODS[config.method].title if config.method in METHODS else config.method  # of one from outside its name


def _describe_experts(config: IncrementalConfig) -> str:
    layers = ", ".join(map(str, config.prompt_layers))
    if config.model_type != "smope":
        settings = {**PROMPT_METHODS[config.method].defaults, **(config.settings or {})}
        parts = [f"prompts in layers {layers}"] if layers else []
        parts += [f"settings {_as_code(json.dumps(settings))}"] if settings else []
        return f"{_as_text(method_name(config))}: {', '.join([*parts, f'{_as_text(config.pooling)} pooling'])}."
    return (
        f"{config.num_experts} experts per head in layers {layers}, of which an image switches on {config.top_k}; "
        f"noise_epsilon {config.noise_epsilon}, router_loss_coef {config.router_loss_coef}, prototype_loss_coef "
        f"{config.prototype_loss_coef}, {_as_text(config.routing)} routing, {_as_text(config.pooling)} pooling."
    )


def _origin(continued_from: dict | None) -> str | None:
    if continued_from is None:
        return None
    name, commit = continued_from.get("name"), continued_from.get("commit")
    source = _as_code(name) + (f" at commit {_as_code(commit)}" if commit else "") if name else "a checkpoint on disk"
    count = continued_from["num_tasks"]
    return f"{source}, which had learned {count} {'task' if count == 1 else 'tasks'}"


def _hub_datasets(manifest: dict) -> list[str]:
    """Ids of the data sets on the Hub that the tasks come from, those of the first tasks first."""
    information = manifest.get("information", {})
    every = [*(run.get("information", {}) for run in earlier_runs(information)), information]
    sources = [each.get("source") or {} for each in every]
    names = [source.get("name_or_path") for source in sources if not source.get("local")]
    return list(dict.fromkeys(name for name in names if is_hub_id(name)))


def _is_measured(matrix: AccuracyMatrix) -> bool:
    return any(value is not None for row in matrix.to_json() for value in row)


def _rows(manifest: dict, matrix: AccuracyMatrix) -> list[dict]:
    last = matrix.to_json()[-1]
    return [
        {
            "task": task["index"] + 1,
            "classes": ", ".join(map(_as_text, task["class_names"])),
            "train": task["train"]["num_samples"],
            "test": 0 if task["test"] is None else task["test"]["num_samples"],
            "accuracy": _percent(accuracy),
        }
        for task, accuracy in zip(manifest["tasks"], last, strict=True)
    ]


def _as_text(text: object) -> str:
    """Text as Markdown shows it, also in a table; as code where a page makes more of it than Markdown does."""
    text = " ".join(printable(text, LONGEST_TEXT).split())
    if _NOT_MARKDOWN.search(text):
        return _as_code(text).replace("|", "\\|")
    return re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", html.escape(text, quote=False))


def _as_code(text: object) -> str:
    """Text as Markdown's code: nothing in it is markup there."""
    text = printable(text, LONGEST_TEXT)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _as_json(content: object) -> str:
    """JSON for a block of code, with nothing hidden in it."""
    return printable_json(json.dumps(content, indent=2, ensure_ascii=False))


def _percent(fraction: float | None) -> str:
    return "n/a" if fraction is None else f"{100 * fraction:.2f}"


def _results(metrics: dict, matrix: AccuracyMatrix, manifest: dict, sources: list[str]) -> list[EvalResult]:
    """The model-index: the metrics over all tasks, then the accuracy on each."""
    name = printable(manifest["name"], LONGEST_TEXT)
    where = {"task_type": "image-classification", "dataset_type": sources[0] if len(sources) == 1 else name}
    split = manifest.get("options", {}).get("test_split")
    split = None if split is None else printable(split, LONGEST_TEXT)
    results = [
        EvalResult(
            **where,
            dataset_name=name,
            dataset_split=split,
            metric_type=key,
            metric_name=label,
            metric_value=round(metrics[key], 6),
        )
        for key, label in RESULTS.items()
        if metrics[key] is not None
    ]
    for task, accuracy in zip(manifest["tasks"], matrix.to_json()[-1], strict=True):
        if accuracy is not None:
            number = task["index"] + 1
            results.append(
                EvalResult(
                    **where,
                    dataset_name=f"{name}, task {number}",
                    dataset_config=f"task-{number:02d}",
                    dataset_split=split,
                    metric_type="accuracy",
                    metric_name=f"Accuracy on task {number}",
                    metric_value=round(accuracy, 6),
                )
            )
    return results
