"""Configuration that every model here has: a frozen ViT, its origin, and the classes learned task by task."""

from dataclasses import fields
from typing import Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..base.named_settings import check_names
from ..storage.config_fields import model_fields
from ..storage.config_guard import check_backbone_sizes, check_config
from ..storage.safe_json import clipped, shown
from .backbones import FAMILIES, family_of

# What transformers takes in a config beside its fields.
OTHER_NAMES = (
    "num_labels", "torch_dtype", "name_or_path", "output_attentions", "attn_implementation",
    "experts_implementation", "auto_map", "model_type",
)  # fmt: skip


@strict
class IncrementalConfig(PreTrainedConfig):
    r"""A backbone and the classes that a model on it has learned.

    Args:
        backbone_config: config of a family in `smope_hf.models.backbones.FAMILIES`. Default: a ViT-B/16.
        base_model_name_or_path: Hub id, folder, or "embedded": where the backbone's weights come from.
        base_model_revision: the commit of the base model that the model was trained on.
        base_model_fingerprint: SHA-256 of the base model's weights; loading refuses any other base.
        prompt_layers: indices of the layers with prompts, without repetition; default the first half of the layers.
        pooling: "cls" or "mean" over the patches; default what the backbone offers first.
        tasks: class ids of each task in the order learned; ids count up from 0 over all tasks.

    Raises:
        TypeError: for a field that there is not; the message has the nearest name.
        ValueError: for a value outside what is allowed; the message names the field, the value and what is allowed.
    """

    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    backbone_config: dict | PreTrainedConfig | None = None
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_model_fingerprint: str | None = None
    prompt_layers: list[int] | tuple[int, ...] | None = None
    pooling: Literal["cls", "mean"] | None = None
    tasks: list[list[int]] | None = None

    def __post_init__(self, **kwargs):
        check_names(
            type(self).__name__, kwargs, self.known_names() | {name for name in kwargs if name.startswith("_")}
        )
        if isinstance(self.backbone_config, dict):
            family = self.backbone_config.get("model_type")
            self.check("backbone_config['model_type']", family, family in FAMILIES, f"one of {', '.join(FAMILIES)}")
            check_backbone_sizes(self.backbone_config, "backbone_config")
        if kwargs.get("num_labels") is None:
            kwargs["num_labels"] = len(self.id2label or [index for task in self.tasks or [] for index in task])
        super().__post_init__(**kwargs)
        if self.tasks is None:
            self.tasks = [list(range(self.num_labels))] if self.num_labels else []
        if self.label2id is None or len(self.label2id) != len(self.id2label):
            self.label2id = {name: index for index, name in self.id2label.items()}
        family = family_of(self.backbone_config)
        if self.prompt_layers is None:
            self.prompt_layers = self.default_layers()
        self.prompt_layers = list(self.prompt_layers)
        if self.pooling is None:
            self.pooling = family.poolings(self.backbone_config)[0]

    @classmethod
    def own_fields(cls) -> set[str]:
        """Names of the fields that our configs add to those of transformers."""
        ours = [kind for kind in cls.__mro__ if issubclass(kind, IncrementalConfig)]
        return {name for kind in ours for name in kind.__dict__.get("__annotations__", {})}

    @classmethod
    def known_names(cls) -> set[str]:
        """Every name that the constructor takes."""
        return {setting.name for setting in fields(cls)} | {*OTHER_NAMES, *cls.attribute_map}

    def default_layers(self) -> list[int]:
        """The layers with prompts where none are given."""
        return list(range(max(1, self.backbone_config.num_hidden_layers // 2)))

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers, but of the content only what says what the model is (`smope_hf.storage.config_fields`).

        Other fields, as of a later version of transformers or of this package, are left out with a warning.

        Raises:
            ValueError: for a number or text that would take memory or fail later, naming the field, the value and what
                is allowed.
        """
        check_config(config_dict)
        taken = model_fields(config_dict, cls.model_type, "config.json")
        try:
            return super().from_dict(taken, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"config.json: {clipped(' '.join(str(error).split()), 800)}") from error

    @classmethod
    def from_json_file(cls, json_file: str):
        """As in transformers, with the checks of `from_dict`."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_dict(self) -> dict:
        """As in transformers, without the folder that the backbone was loaded from: a checkpoint may be shared."""
        content = super().to_dict()
        content["backbone_config"].pop("_name_or_path", None)
        return content

    @property
    def hidden_size(self) -> int:
        """Size D of the pooled feature."""
        return self.backbone_config.hidden_size

    def validate_prompt_layers(self):
        """Check that every prompt layer exists once."""
        layers, depth = self.prompt_layers, self.backbone_config.num_hidden_layers
        self.check("prompt_layers", layers, len(layers) > 0, "at least one layer")
        self.check("prompt_layers", layers, len(set(layers)) == len(layers), "each layer once")
        self.check(
            "prompt_layers",
            layers,
            all(0 <= layer < depth for layer in layers),
            f"layers 0 to {depth - 1}: the backbone has {depth}",
        )

    def validate_pooling(self):
        """Check that the backbone offers the pooling."""
        allowed = family_of(self.backbone_config).poolings(self.backbone_config)
        self.check("pooling", self.pooling, self.pooling in allowed, f"one of {allowed} for this backbone")

    def validate_class_names(self):
        """Check that every class has a name of its own."""
        names = list(self.id2label.values())
        fits = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        self.check("id2label", self.id2label, fits, "text, different for each class")
        back = {name: index for index, name in self.id2label.items()}
        self.check("label2id", self.label2id, self.label2id == back, "the reverse of id2label")

    def validate_tasks(self):
        """Check that the tasks list every class id once, in the order of the ids."""
        ids = [index for task in self.tasks for index in task]
        self.check("tasks", self.tasks, all(self.tasks), "at least one class in every task")
        self.check(
            "tasks",
            self.tasks,
            ids == list(range(len(self.id2label))) == sorted(self.id2label),
            f"the ids 0 to {len(self.id2label) - 1} of id2label, each once and in order",
        )

    def check(self, name: str, value, allowed: bool, what_is_allowed: str):
        """Refuse a field's value."""
        if not allowed:
            raise ValueError(
                f"{type(self).__name__}.{name} = {shown(value)} is not allowed. Allowed: {what_is_allowed}."
            )
