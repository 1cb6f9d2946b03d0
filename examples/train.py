"""Learn image classes task after task with SMoPE, on any backbone and data set of the Hub or of this machine.

    python examples/train.py --dataset uoft-cs/cifar100 --label_column fine_label --num_tasks 10 \
        --backbone google/vit-base-patch16-224-in21k --output_dir runs/cifar100

    accelerate launch examples/train.py ...    # the same on several processes or devices

A recipe in a YAML file may come first; what follows on the command line has the last word:

    python examples/train.py examples/recipes/cifar100-short.yaml --dataset DATA --backbone BACKBONE --seed 1

The run leaves task-NN/ checkpoints, metrics.json, accuracy_matrix.csv, manifest.json and plots/ in --output_dir.
"""

import sys
from dataclasses import dataclass, field

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoImageProcessor, HfArgumentParser

from smope_hf import ContinualTrainer, ContinualTrainingArguments, SMoPEForImageClassification, TaskStream
from smope_hf.backbones import local_name
from smope_hf.training_phase import TrainingDivergedError
from smope_hf.yardsticks import run_yardsticks


@dataclass
class ModelArguments:
    """The backbone and its experts."""

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
    routing: str = field(default="masked", metadata={"choices": ["masked", "unmasked"], "help": "In evaluation."})
    pooling: str | None = field(default=None, metadata={"help": "cls or mean; default what the backbone has."})
    attn_implementation: str = field(
        default="sdpa", metadata={"choices": ["sdpa", "eager"], "help": "Fused or plain."}
    )


@dataclass
class DataArguments:
    """The data set and its tasks."""

    dataset: str = field(
        metadata={"help": "Hub id, folder of images, folder of parquet files, or save_to_disk folder."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    num_tasks: int | None = field(default=None, metadata={"help": "Tasks of equal size; or give classes_per_task."})
    classes_per_task: int | None = field(default=None, metadata={"help": "Classes in each task."})
    class_order_seed: int = field(default=0, metadata={"help": "Seed of the class order and of image choices."})
    image_column: str | None = field(default=None, metadata={"help": "Default: the only Image column."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only ClassLabel column."})
    test_split: str | None = field(default=None, metadata={"help": "Default: test, else validation."})
    test_fraction: float = field(default=0.0, metadata={"help": "Share of train to test on where no split is."})
    validation_fraction: float = field(default=0.0, metadata={"help": "Share of train set aside in each task."})
    max_train_samples_per_class: int | None = field(default=None, metadata={"help": "Use so many at most."})
    max_test_samples_per_class: int | None = field(default=None, metadata={"help": "Use so many at most."})
    yardsticks: bool = field(default=False, metadata={"help": "Also measure NCM, LDA and a linear head, all frozen."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads of torch; default torch's own."})


def load_stream(data: DataArguments) -> TaskStream:
    """The tasks that the arguments describe."""
    return TaskStream.load(
        data.dataset,
        config_name=data.dataset_config,
        revision=data.dataset_revision,
        num_tasks=data.num_tasks,
        classes_per_task=data.classes_per_task,
        seed=data.class_order_seed,
        image_column=data.image_column,
        label_column=data.label_column,
        test_split=data.test_split,
        test_fraction=data.test_fraction,
        validation_fraction=data.validation_fraction,
        max_train_samples_per_class=data.max_train_samples_per_class,
        max_test_samples_per_class=data.max_test_samples_per_class,
    )


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, ContinualTrainingArguments]:
    """Read the command line, and before it the recipe if there is one."""
    if argv and argv[0].endswith((".yaml", ".yml")):
        with open(argv[0], encoding="utf-8") as file:
            recipe = yaml.safe_load(file)
        values = {name: value if isinstance(value, list) else [value] for name, value in recipe.items()}
        argv = [part for name, value in values.items() for part in (f"--{name}", *map(str, value))] + argv[1:]
    parser = HfArgumentParser((ModelArguments, DataArguments, ContinualTrainingArguments))
    return parser.parse_args_into_dataclasses(argv)


def main(argv: list[str]) -> dict:
    model_args, data, args = parse(argv)
    if data.num_threads:
        torch.set_num_threads(data.num_threads)
    torch.manual_seed(args.seed)
    stream = load_stream(data)
    settings = {name: value for name, value in vars(model_args).items() if not name.startswith("backbone")}
    model = SMoPEForImageClassification.from_backbone(
        model_args.backbone, revision=model_args.backbone_revision, **settings
    )
    image_processor = AutoImageProcessor.from_pretrained(
        local_name(model_args.backbone), revision=model.config.base_model_revision, backend="pil"
    )
    trainer = ContinualTrainer(model, args, stream, image_processor)
    if data.yardsticks:
        trainer.yardsticks = run_yardsticks(trainer)
    return trainer.train()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, StrictDataclassError, TrainingDivergedError) as error:
        sys.exit(f"error: {error}")
