"""Settings of a continual training run."""

from dataclasses import asdict, dataclass, field, fields

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..base.home import expanded
from ..base.named_settings import MAX_NUMBER, MAX_SEED, MAX_THREADS, MAX_WHOLE, NamedSettings
from ..storage.safe_json import shown

ALIGNMENTS = ("none", "gaussian", "gaussian-full", "lda", "ncm")
CLOSED_FORMS = ("lda", "ncm")  # of ALIGNMENTS those that set the head's rows, whatever training left
DRIFT_COMPENSATIONS = ("none", "shift", "linear")
UNCOMPENSATED = "-uncompensated"
COMPARABLE = (*ALIGNMENTS, *(name + UNCOMPENSATED for name in ALIGNMENTS if name != "none"))


# Every setting is in one of these three. What a checkpoint says of the third is never taken: it is the user's.
LEARNING = (  # decide the result: in the recipe, and taken from the checkpoint that training goes on from
    "seed", "epochs", "dense_epochs", "batch_size", "gradient_accumulation_steps", "learning_rate",
    "prefix_lr_multiplier", "backbone_lr_multiplier", "min_learning_rate", "freeze_epochs", "lr_schedule",
    "weight_decay", "max_grad_norm", "crop_scale", "crop_ratio", "flip_probability", "normalization", "statistics",
    "drift_compensation", "drift_shrinkage", "alignment", "compare_alignments", "alignment_epochs",
    "alignment_batch_ratio", "alignment_learning_rate", "alignment_weight_decay", "alignment_shrinkage",
    "mixed_precision", "gradient_checkpointing", "torch_compile",  # these round: without them no bit is the same
)  # fmt: skip
ROUNDING = ("eval_batch_size",)  # moves the last bits alone: not in the recipe, but taken from the checkpoint
PATHS = ("output_dir", "image_cache_dir")  # in them ~ is the home folder
OWN = (
    "output_dir", "image_cache_dir", "image_cache_gib", "dataloader_num_workers",  # their machine
    "save_checkpoints", "checkpoint_every", "resume", "on_bad_image", "on_duplicate",  # what becomes of their images
    "report_to", "logging_steps", "report", "disable_progress",  # what they look at, and where it goes
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_license", "hub_include_backbone", "hub_remote_code",
)  # fmt: skip


def _setting(default, text: str, choices: tuple[str, ...] | None = None):
    """A field with its help text; a list becomes the default of a fresh list each time."""
    metadata = {"help": text} if choices is None else {"help": text, "choices": list(choices)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ContinualTrainingArguments(NamedSettings):
    """How a [`ContinualTrainer`] learns each task. Defaults follow the paper's CIFAR-100 recipe where it has one.

    Raises:
        TypeError: for a setting that there is not; the message has the nearest name.
        ValueError: for a value outside what is allowed; the message names the field, the value and what is allowed.
    """

    output_dir: str = _setting("runs/smope", "Folder of the run: task-NN/, metrics.json, report.html, plots/.")
    seed: int = _setting(0, "Seed of everything random in training; the class order has the stream's own.")
    epochs: int = _setting(20, "Sparse epochs of each task, at least 1.")
    dense_epochs: int | None = _setting(None, "Dense warm-up epochs of the first task; default half of `epochs`.")
    batch_size: int = _setting(128, "Images per optimisation step over all processes, at least 1.")
    eval_batch_size: int = _setting(256, "Images per evaluation step over all processes, at least 1.")
    gradient_accumulation_steps: int = _setting(1, "Parts that a batch is computed in, at least 1.")
    learning_rate: float = _setting(0.005, "Peak learning rate of the head, above 0.")
    prefix_lr_multiplier: float = _setting(5.0, "Learning rate of the prefix experts over the head's, above 0.")
    backbone_lr_multiplier: float = _setting(0.01, "Learning rate of a backbone that is trained over the head's.")
    min_learning_rate: float = _setting(1e-6, "Learning rate at the end of the cosine and during the freeze.")
    freeze_epochs: int = _setting(0, "Epochs at `min_learning_rate` before the cosine starts.")
    lr_schedule: str = _setting("cosine", "Step of the cosine.", ("cosine", "cosine-per-epoch", "constant"))
    weight_decay: float = _setting(0.0, "AdamW weight decay, at least 0.")
    max_grad_norm: float | None = _setting(None, "Clip the gradient's norm to this; default no clipping.")
    crop_scale: list[float] = _setting([0.05, 1.0], "Area of the random crop, as shares of the image.")
    crop_ratio: list[float] = _setting([3 / 4, 4 / 3], "Width over height of the random crop.")
    flip_probability: float = _setting(0.5, "Probability of a horizontal flip, 0 to 1; 0 for digits and text.")
    normalization: str = _setting(
        "processor", "Pixel values: the image processor's mean and std, or [0, 1].", ("processor", "reference")
    )
    statistics: str = _setting(
        "eval", "Transform of the images in the class statistics; train is the published way.", ("eval", "train")
    )
    drift_compensation: str = _setting(
        "linear", "How old classes' statistics follow the prompts' training; none is the published way.",
        DRIFT_COMPENSATIONS,
    )  # fmt: skip
    drift_shrinkage: float = _setting(
        3.0, "Ridge penalty of linear drift compensation over the mean variance, above 0."
    )
    alignment: str = _setting("lda", "How the head is aligned after each task from the second on.", ALIGNMENTS)
    compare_alignments: list[str] = _setting(
        [], "Alignments to measure beside the run's own, from the same training, such as lda-uncompensated."
    )
    alignment_epochs: int = _setting(50, "Epochs of gaussian alignment, as many steps each as there are old classes.")
    alignment_batch_ratio: float = _setting(1.0, "Samples per alignment step, over `batch_size`, at most 1000.")
    alignment_learning_rate: float = _setting(1e-5, "Learning rate of gaussian alignment.")
    alignment_weight_decay: float = _setting(5e-4, "Weight decay of gaussian alignment.")
    alignment_shrinkage: float | None = _setting(
        None, "Share of the mean variance in lda's covariance, 0 to 1; default estimated: more where images are few."
    )
    mixed_precision: str = _setting("no", "Precision of the forward pass.", ("no", "bf16", "fp16"))
    gradient_checkpointing: bool = _setting(False, "Compute activations twice to save memory.")
    torch_compile: bool = _setting(False, "Train through torch.compile: minutes at the start, faster steps.")
    image_cache_gib: float = _setting(4.0, "Memory of a process for decoded images, GiB; the rest goes to files.")
    image_cache_dir: str | None = _setting(None, "Folder of those files, gone at the end; default `output_dir`.")
    dataloader_num_workers: int = _setting(0, "Threads that decode images; 0 is one for all that is prepared.")
    on_bad_image: str = _setting(
        "error", "An image that cannot be used stops the run before it begins, or is left out and listed.",
        ("error", "skip"),
    )  # fmt: skip
    on_duplicate: str = _setting(
        "warn", "Test images among the training images, or an image that is there twice, are told or refused.",
        ("warn", "error"),
    )  # fmt: skip
    report_to: str = _setting("none", "Tracker of losses and metrics.", ("none", "tensorboard", "trackio"))
    logging_steps: int = _setting(10, "Steps between two readings of the loss, at least 1.")
    resume: bool = _setting(False, "Go on where the run in `output_dir` was stopped: from state/ or its last task.")
    checkpoint_every: int = _setting(0, "Steps of a task between two savings of state/, to go on from; 0 for none.")
    save_checkpoints: bool = _setting(True, "Save a task-NN folder after each task.")
    report: bool = _setting(True, "Write report.html when the run ends; `smope report` writes it too.")
    disable_progress: bool = _setting(False, "Show no progress bars.")
    push_to_hub: bool = _setting(False, "Push each task to the Hub as it ends; needs `hub_model_id`.")
    hub_model_id: str | None = _setting(None, "Repository on the Hub, owner/name or name; made where it is missing.")
    hub_private_repo: bool = _setting(False, "Make the repository private when it is made.")
    hub_license: str | None = _setting(None, "License that the model cards state, such as apache-2.0; default none.")
    hub_include_backbone: bool = _setting(False, "Push standalone models; needed for a backbone that no Hub id names.")
    hub_remote_code: bool = _setting(False, "Push the model's code too, for machines without smope_hf.")

    def __post_init__(self):
        for name in PATHS:
            setattr(self, name, expanded(getattr(self, name)))
        for name in ("crop_scale", "crop_ratio", "compare_alignments"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))  # as JSON gives it back to a run that is resumed
        for setting in fields(self):
            choices = setting.metadata.get("choices")
            if choices:
                self._check(setting.name, getattr(self, setting.name) in choices, f"one of {choices}")
        at_least_one = ("epochs", "batch_size", "eval_batch_size", "gradient_accumulation_steps", "logging_steps")
        for name in (*at_least_one, "alignment_epochs"):
            self._check_number(name, 1, whole=True)
        for name, most in (("seed", MAX_SEED), ("dataloader_num_workers", MAX_THREADS)):
            self._check_number(name, 0, most, whole=True)
        for name in ("freeze_epochs", "checkpoint_every"):
            self._check_number(name, 0, whole=True)
        if self.dense_epochs is not None:
            self._check_number("dense_epochs", 0, whole=True)
        for name in ("weight_decay", "min_learning_rate", "alignment_weight_decay", "image_cache_gib"):
            self._check_number(name, 0)
        positive = (
            "drift_shrinkage",
            "learning_rate",
            "prefix_lr_multiplier",
            "backbone_lr_multiplier",
            "alignment_learning_rate",
            "alignment_batch_ratio",
        )
        for name in positive if self.max_grad_norm is None else (*positive, "max_grad_norm"):
            self._check_number(name, 0, above=True)
        self._check_number("alignment_batch_ratio", 0, most=1000)
        known = ("alignment_shrinkage",) if self.alignment_shrinkage is not None else ()
        for name in ("flip_probability", *known):
            self._check_number(name, 0, most=1)
        self._check_number("min_learning_rate", 0, most=self.learning_rate)
        for name, most in (("crop_scale", 1), ("crop_ratio", MAX_NUMBER)):
            pair = getattr(self, name)
            numbers = isinstance(pair, (list, tuple)) and all(type(edge) in (int, float) for edge in pair)
            fits = numbers and len(pair) == 2 and 0 < pair[0] <= pair[1] <= most
            self._check(name, fits, f"[smallest, largest] above 0{'' if most > 1 else ' and at most 1'}")
        switches = (
            "gradient_checkpointing",
            "torch_compile",
            "resume",
            "save_checkpoints",
            "report",
            "disable_progress",
            "push_to_hub",
        )
        for name in (*switches, "hub_private_repo", "hub_include_backbone", "hub_remote_code"):
            self._check(name, isinstance(getattr(self, name), bool), "True or False")
        for name in ("output_dir",) if self.image_cache_dir is None else ("output_dir", "image_cache_dir"):
            folder = getattr(self, name)
            self._check(name, isinstance(folder, str) and folder, "the path of a folder")
        others = self.compare_alignments
        known = isinstance(others, (list, tuple)) and all(name in COMPARABLE for name in others)
        self._check(
            "compare_alignments", known and len(set(others)) == len(others), f"some of {COMPARABLE}, once each"
        )
        self._check("compare_alignments", not (others and self.weight_decay), "none with weight_decay above 0")
        whole = "0, since a state goes on behind whole tasks and save_checkpoints is off"
        self._check("checkpoint_every", self.save_checkpoints or not self.checkpoint_every, whole)
        self._check("freeze_epochs", self.freeze_epochs < self.epochs, f"below epochs = {self.epochs}")
        self._check(
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps <= self.batch_size,
            f"at most batch_size = {self.batch_size}",
        )
        compiled = "False with gradient_checkpointing, whose second forward pass torch.compile does not take"
        self._check("torch_compile", not (self.torch_compile and self.gradient_checkpointing), compiled)
        self._check_hub()

    def _check_hub(self):
        license = self.hub_license
        self._check("hub_license", license is None or (isinstance(license, str) and license), "a text such as mit")
        if self.hub_model_id is not None:
            try:
                validate_repo_id(self.hub_model_id)
                valid = True
            except HFValidationError:
                valid = False
            self._check("hub_model_id", valid, "owner/name or name, of letters, digits, '-', '_' and '.'")
        if self.push_to_hub:
            self._check("hub_model_id", self.hub_model_id is not None, "owner/name, since push_to_hub is set")
            self._check("save_checkpoints", self.save_checkpoints, "True, since push_to_hub pushes what was saved")

    def _check_number(self, name: str, least: float, most: float | None = None, whole=False, above=False):
        value = getattr(self, name)
        kind = int if whole else (int, float)
        highest = (MAX_WHOLE if whole else MAX_NUMBER) if most is None else most
        fits = isinstance(value, kind) and not isinstance(value, bool)
        fits = fits and (least < value if above else least <= value) and value <= highest
        bound = f"above {least}" if above else f"at least {least}"
        limit = "" if highest == MAX_NUMBER else f" and at most {highest}"
        self._check(name, fits, f"a finite {'whole ' if whole else ''}number {bound}{limit}")

    def _check(self, name: str, allowed: bool, what_is_allowed: str):
        if not allowed:
            given = f"ContinualTrainingArguments.{name} = {shown(getattr(self, name))}"
            raise ValueError(f"{given} is not allowed. Allowed: {what_is_allowed}.")

    @property
    def warmup_epochs(self) -> int:
        """Dense epochs of the first task."""
        return self.epochs // 2 if self.dense_epochs is None else self.dense_epochs

    def recipe(self) -> dict:
        """The settings that decide the result (`LEARNING`): all but where it goes, what it shows, and its machine."""
        return {name: value for name, value in asdict(self).items() if name in LEARNING}

    def flat_recipe(self) -> dict:
        """`recipe()` as trackers take it: numbers and text."""
        flat = (int, float, str, bool)
        return {name: value if isinstance(value, flat) else str(value) for name, value in self.recipe().items()}


def check_alignment(alignment: str, closed_form: str | None):
    """Refuse an alignment that a method cannot have.

    Args:
        alignment: as it was given.
        closed_form: how the method sets its head from class statistics; None for one that trains it.

    Raises:
        ValueError: for another alignment than the method's own.
    """
    if closed_form not in (None, alignment):
        raise ValueError(
            f"ContinualTrainingArguments.alignment = {alignment!r} is not allowed with a method that trains nothing: "
            f"its head is set by {closed_form!r}. Allowed: {closed_form!r}. Leave alignment out, or choose a method "
            "that trains its head."
        )
