"""Settings of a run from a recipe or a command line: which model, which data, and how both are loaded."""

import argparse
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ..base.home import expanded
from ..base.named_settings import MAX_EXPERTS, MAX_NUMBER, MAX_SEED, MAX_THREADS, MAX_WHOLE, nearest_name
from ..models.methods.table import METHODS
from ..settings.checked_arguments import CheckedArguments
from ..settings.recipe_yaml import load_recipe
from ..settings.training_args import ContinualTrainingArguments, check_alignment
from ..storage.output_check import check_text
from ..storage.safe_json import shown

JOINT = {"method": "finetune", "joint": True}  # what the method "joint" stands for


@dataclass
class ModelArguments(CheckedArguments):
    """The backbone, the method, and the experts of SMoPE."""

    paths = ("backbone",)
    limits = {
        "prompt_layers": (0, MAX_WHOLE), "num_experts": (1, MAX_EXPERTS), "top_k": (1, MAX_EXPERTS),
        "noise_epsilon": (0, 1), "router_loss_coef": (0, MAX_NUMBER), "prototype_loss_coef": (0, MAX_NUMBER),
    }  # fmt: skip

    method: str = field(
        default="smope",
        metadata={
            "choices": [*METHODS, "joint"],
            "help": "SMoPE or a rival, each trained and saved in the same way; joint: finetune with `joint`.",
        },
    )
    method_settings: str | None = field(
        default=None, metadata={"help": "Settings of a rival, such as length=8,top_k=3; default as published."}
    )
    backbone: str = field(
        default="google/vit-base-patch16-224-in21k", metadata={"help": "Hub id, folder, or 'embedded'."}
    )
    backbone_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    prompt_layers: list[int] | None = field(
        default=None, metadata={"help": "Layers with experts; default first half."}
    )
    num_experts: int = field(default=25, metadata={"help": "Prefix experts per head."})
    top_k: int = field(default=5, metadata={"help": "Experts that an image switches on per head."})
    noise_epsilon: float = field(default=0.4, metadata={"help": "Adaptive noise on frequently used experts, 0 to 1."})
    router_loss_coef: float = field(default=1e-5, metadata={"help": "Weight of the router loss."})
    prototype_loss_coef: float = field(default=1e-5, metadata={"help": "Weight of the prototype loss."})
    routing: str = field(
        default="masked",
        metadata={"choices": ["masked", "unmasked", "random"], "help": "In evaluation; random: never by the keys."},
    )
    pooling: str | None = field(default=None, metadata={"help": "cls or mean; default what the backbone has."})
    attn_implementation: str = field(
        default="sdpa", metadata={"choices": ["sdpa", "eager"], "help": "Fused or plain."}
    )


@dataclass
class DataArguments(CheckedArguments):
    """The data set and its tasks."""

    paths = ("dataset",)
    limits = {
        "num_tasks": (1, MAX_WHOLE), "classes_per_task": (1, MAX_WHOLE), "max_tasks": (1, MAX_WHOLE),
        "class_order_seed": (-MAX_SEED, MAX_SEED),
        "test_fraction": (0, 1), "validation_fraction": (0, 1), "max_train_samples_per_class": (1, MAX_WHOLE),
        "max_test_samples_per_class": (1, MAX_WHOLE), "imbalance_factor": (1, MAX_NUMBER),
        "num_threads": (1, MAX_THREADS),
    }  # fmt: skip

    dataset: str = field(
        metadata={"help": "Hub id, folder of images, folder of parquet files, or save_to_disk folder."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    num_tasks: int | None = field(default=None, metadata={"help": "Tasks of equal size; or give `classes_per_task`."})
    classes_per_task: int | None = field(default=None, metadata={"help": "Classes in each task."})
    max_tasks: int | None = field(default=None, metadata={"help": "Learn only the first so many of the tasks."})
    class_order_seed: int = field(
        default=0,
        metadata={"help": "Seed of the class order and of image choices."},
    )
    image_column: str | None = field(default=None, metadata={"help": "Default: the only Image column."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only ClassLabel column."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(default=None, metadata={"help": "Default: test, else validation."})
    test_fraction: float = field(default=0.0, metadata={"help": "Share of train to test on where no split is."})
    validation_fraction: float = field(default=0.0, metadata={"help": "Share of train set aside in each task."})
    evaluate_on: str = field(
        default="test",
        metadata={
            "choices": ["test", "validation"],
            "help": "Images to measure on; settings are tuned on validation.",
        },
    )
    max_train_samples_per_class: int | None = field(default=None, metadata={"help": "Train on so many at most."})
    max_test_samples_per_class: int | None = field(default=None, metadata={"help": "Test on so many at most."})
    imbalance_factor: float = field(
        default=1.0,
        metadata={"help": "Long-tailed training images: the largest class's over the rarest's."},
    )
    joint: bool = field(default=False, metadata={"help": "All tasks at once: the upper bound of a comparison."})
    yardsticks: bool = field(default=False, metadata={"help": "Also measure NCM, LDA and a linear head, all frozen."})
    record_routing: bool = field(
        default=False, metadata={"help": "Record in training and after each task which experts images wake."}
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads of torch; default torch's own."})


RUN_ARGUMENTS = (ModelArguments, DataArguments, ContinualTrainingArguments)


# ---------------------------------------------------------------------- recipes


def read_recipe(path: str | Path) -> dict:
    """Read the settings of a run from a YAML file.

    Args:
        path: file with one `name: value` for each setting, of `RUN_ARGUMENTS`. A setting without a value, or `null`,
            keeps its default.

    Returns:
        The settings given, by name.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is not such a file, or a name is unknown; the message says the nearest known name.
    """
    path = expanded(path)
    recipe = load_recipe(path)
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds no settings: one line `name: value` for each is needed, such as `epochs: 5`")
    known = [setting.name for arguments in RUN_ARGUMENTS for setting in fields(arguments)]
    for name in recipe:
        if name not in known:
            advice = nearest_name(name, known, "`smope train --help` lists all of them.")
            raise ValueError(f"{path}: {shown(name)} is no setting. {advice}")
    return {name: value for name, value in recipe.items() if value is not None}


def recipe_arguments(recipe: dict) -> list[str]:
    """A recipe as parts of a command line, for `HfArgumentParser`.

    Raises:
        ValueError: for an empty list as a setting whose default is another; on a command line there is none.
    """
    empty = [name for name, value in recipe.items() if value == []]
    defaults = ContinualTrainingArguments()
    for name in empty:
        if getattr(defaults, name, None) != []:
            raise ValueError(f"{name} = [] is not allowed. Allowed: at least one value, or leave it out.")
    recipe = {name: value for name, value in recipe.items() if name not in empty}
    values = {name: value if isinstance(value, list) else [value] for name, value in recipe.items()}
    return [part for name, value in values.items() for part in (f"--{name}", *map(str, value))]


def build_arguments(
    given: dict, recipe: dict | None = None
) -> tuple[ModelArguments, DataArguments, ContinualTrainingArguments]:
    """Divide settings by name among the dataclasses; the method "joint" becomes what it stands for.

    Args:
        given: settings of this run.
        recipe: settings that those override. It may serve several methods: where the method is `given` and cannot have
            the recipe's `alignment`, it keeps its own.

    Raises:
        ValueError: when the data set is missing or a value is not allowed; the message names the setting.
    """
    values = {**(recipe or {}), **given}
    if "dataset" not in values:
        raise ValueError("no data set: give --dataset, or `dataset:` in the recipe")
    if values.get("method") == "joint":
        if values.get("joint") is False:
            raise ValueError(
                "DataArguments.joint = False is not allowed with method = 'joint', which learns all tasks at once. "
                "Leave joint out, or choose method = 'finetune', which learns one task after the other."
            )
        values = {**JOINT, **values, "method": JOINT["method"]}
    if values.get("alignment") is not None:
        _settle_alignment(values, given)
    return tuple(
        arguments(**{setting.name: values[setting.name] for setting in fields(arguments) if setting.name in values})
        for arguments in RUN_ARGUMENTS
    )


def _settle_alignment(values: dict, given: dict):
    """Refuse or, from a recipe for several methods, leave out an alignment that the method cannot have."""
    from ..models.methods.rivals import PROMPT_METHODS

    method = PROMPT_METHODS.get(str(values.get("method")))
    if method is None or method.closed_form is None:
        return
    if "alignment" in given or "method" not in given:
        check_alignment(values["alignment"], method.closed_form)
    else:
        del values["alignment"]


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, ContinualTrainingArguments]:
    """Settings from the command line of an example, where a recipe in a YAML file may come first.

    Raises:
        ValueError: when the recipe cannot be read, or an option or a value is not allowed; the message names it.
    """
    recipe = {}
    if argv and argv[0].endswith((".yaml", ".yml")):
        recipe, argv = _given(recipe_arguments(read_recipe(argv[0]))), argv[1:]
    return build_arguments(_given(argv), recipe)


def _given(argv: list[str]) -> dict:
    """The settings that a command line gives, by name; none of the defaults."""
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def add_argument(self, *names, required=False, **settings):  # what is missing, `build_arguments` says
            return super().add_argument(*names, **settings)

    known = [setting.name for arguments in RUN_ARGUMENTS for setting in fields(arguments)]
    not_given = argparse.Namespace(**dict.fromkeys(known))  # where a value is, the parser puts no default
    found, unknown = Parser(RUN_ARGUMENTS).parse_known_args(argv, not_given)
    if unknown:
        raise ValueError(
            f"{' '.join(unknown)!r} is not allowed. Allowed: options that --help lists, and their values."
        )
    return {name: value for name, value in vars(found).items() if value is not None}


# ---------------------------------------------------------------------- model and data


def load_trainer(model_args: ModelArguments, data: DataArguments, args: ContinualTrainingArguments):
    """The [`ContinualTrainer`] of a run: threads and seed set, data and model loaded, nothing trained."""
    import torch

    from .run_place import check_begun, folder_taken
    from .trainer import ContinualTrainer

    if model_args.method == "joint":  # as ModelArguments alone may say
        model_args, data = replace(model_args, method=JOINT["method"]), replace(data, joint=JOINT["joint"])
    if data.num_threads:
        torch.set_num_threads(data.num_threads)
    torch.manual_seed(args.seed)
    check_text(model_args.backbone, "backbone")  # config.json will tell it
    with folder_taken(args.output_dir, args.image_cache_dir, args.report_to):
        check_begun(args.output_dir, args.resume)
        stream = load_stream(data)
        model, image_processor = load_model(model_args)
        return ContinualTrainer(model, args, stream, image_processor, callbacks_of(data, model))


def load_stream(data: DataArguments):
    """The [`TaskStream`] that the arguments describe, or its [`JointStream`]."""
    from ..data.joint_stream import JointStream
    from ..data.tasks import TaskStream

    stream = TaskStream.load(
        data.dataset,
        config_name=data.dataset_config,
        revision=data.dataset_revision,
        num_tasks=data.num_tasks,
        classes_per_task=data.classes_per_task,
        max_tasks=data.max_tasks,
        seed=data.class_order_seed,
        image_column=data.image_column,
        label_column=data.label_column,
        train_split=data.train_split,
        test_split=data.test_split,
        test_fraction=data.test_fraction,
        validation_fraction=data.validation_fraction,
        evaluate_on=data.evaluate_on,
        max_train_samples_per_class=data.max_train_samples_per_class,
        max_test_samples_per_class=data.max_test_samples_per_class,
        imbalance_factor=data.imbalance_factor,
    )
    return JointStream(stream) if data.joint else stream


def method_config(model_args: ModelArguments):
    """The model class of a method, and the fields of its config.

    Raises:
        ValueError: for settings that are no `name=number`, or that the method does not have.
    """
    from ..models.modeling_prompted import PromptedForImageClassification
    from ..models.modeling_smope import SMoPEForImageClassification

    settings = {}
    for part in (model_args.method_settings or "").split(",") if model_args.method_settings else ():
        name, _, number = part.partition("=")
        try:
            settings[name.strip()] = float(number) if "." in number or "e" in number else int(number)
        except ValueError:
            raise ValueError(
                f"ModelArguments.method_settings = {model_args.method_settings!r} is not allowed. Allowed: "
                "name=number,name=number."
            ) from None
    shared = ("prompt_layers", "pooling", "attn_implementation")
    if model_args.method not in ("smope", "one-prompt"):
        chosen = {name: getattr(model_args, name) for name in shared}
        return PromptedForImageClassification, {"method": model_args.method, "settings": settings or None, **chosen}
    if settings:
        raise ValueError(f"method_settings are for rivals; --method {model_args.method} has options of its own.")
    other = ("method", "method_settings", "backbone", "backbone_revision")
    experts = {name: value for name, value in vars(model_args).items() if name not in other}
    if model_args.method == "one-prompt":  # SMoPE without sparsity: every expert is always on, nothing is routed
        experts |= {"top_k": model_args.num_experts, "router_loss_coef": 0.0, "prototype_loss_coef": 0.0}
    return SMoPEForImageClassification, experts


def callbacks_of(data: DataArguments, model) -> list:
    """The callbacks that the arguments ask for.

    Raises:
        ValueError: for a record of routing in a model without experts.
    """
    if not data.record_routing:
        return []
    from .routing_recorder import RoutingRecorder
    from .training_recorder import TrainingRoutingRecorder

    if not model.records_usage:
        raise ValueError("record_routing needs a model with experts: --method smope or one-prompt.")
    return [RoutingRecorder(), TrainingRoutingRecorder()]


def load_model(model_args: ModelArguments):
    """A fresh model on the backbone that the arguments name, and the backbone's image processor."""
    from transformers.utils.hub import resolve_revision

    from ..models.backbones import local_name
    from ..models.image_processors import load_image_processor

    model_class, fields_of_config = method_config(model_args)
    revision = resolve_revision(local_name(model_args.backbone), model_args.backbone_revision)  # both of one commit
    image_processor = load_image_processor(model_args.backbone, revision)
    model = model_class.from_backbone(model_args.backbone, revision=revision, **fields_of_config)
    return model, image_processor
