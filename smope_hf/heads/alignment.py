"""Class statistics and the alignment of the head (docs/method.md, step 11). Nothing loops over classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..settings.training_args import CLOSED_FORMS

VARIANCE_FLOOR = 1e-4


class AlignmentSettings(Protocol):
    """How a head is aligned; a run's are those of its [`ContinualTrainingArguments`], where each is explained."""

    alignment: str
    alignment_shrinkage: float | None
    alignment_epochs: int
    alignment_learning_rate: float
    alignment_weight_decay: float
    alignment_batch_ratio: float
    batch_size: int


@dataclass
class ClassStatistics:
    """What is kept of the images of C classes: enough to go on without them. Features have D dimensions.

    Args:
        mean: (C, D) float32.
        variance: (C, D) float32, per dimension, over the class's images.
        count: (C,) int64, images per class.
        scatter: (D, D) float32, sum over all images of the outer product of their deviation from their class's mean.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, feature_size: int) -> "ClassStatistics":
        """Statistics of no class."""
        return cls(
            torch.zeros(0, feature_size),
            torch.zeros(0, feature_size),
            torch.zeros(0, dtype=torch.long),
            torch.zeros(feature_size, feature_size),
        )

    def joined(self, new: "ClassStatistics") -> "ClassStatistics":
        """These classes followed by the new ones, with one scatter over both."""
        return ClassStatistics(
            torch.cat([self.mean, new.mean]),
            torch.cat([self.variance, new.variance]),
            torch.cat([self.count, new.count]),
            self.scatter + new.scatter,
        )

    @property
    def freedom(self) -> int:
        """How many independent deviations from a class's mean there are, at least 1."""
        return max(int(self.count.sum()) - len(self.count), 1)

    def covariance(self, shrinkage: float | None = 0.0) -> Tensor:
        """Shared within-class covariance (D, D) in float64: (1 - shrinkage) S + shrinkage * mean variance * I.

        Args:
            shrinkage: 0 to 1; None for `estimated_shrinkage`.
        """
        covariance = self.scatter.double() / self.freedom
        if shrinkage is None:
            shrinkage = estimated_shrinkage(covariance, self.freedom)
        identity = torch.eye(len(covariance), dtype=torch.float64)
        return (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().mean() * identity

    def to_tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "variance": self.variance, "count": self.count, "scatter": self.scatter}


class StatisticsAccumulator:
    """Collects class statistics of consecutive classes batch by batch, in float64 on the features' device.

    Args:
        num_classes: classes C.
        feature_size: dimensions D.
    """

    def __init__(self, num_classes: int, feature_size: int, device: torch.device | str = "cpu"):
        # MPS has no float64; there the sums are float32
        kind = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.count = torch.zeros(num_classes, dtype=torch.long, device=device)
        self.total = torch.zeros(num_classes, feature_size, dtype=kind, device=device)
        self.squares = torch.zeros(num_classes, feature_size, dtype=kind, device=device)
        self.products = torch.zeros(feature_size, feature_size, dtype=kind, device=device)

    def update(self, features: Tensor, labels: Tensor):
        """Add images: features (B, D), labels (B,) counted from 0."""
        features = features.to(self.total.dtype)
        self.count.index_add_(0, labels, torch.ones_like(labels))
        self.total.index_add_(0, labels, features)
        self.squares.index_add_(0, labels, features.square())
        self.products.addmm_(features.T, features)

    def result(self) -> ClassStatistics:
        """The statistics, in float32 on the CPU.

        Raises:
            ValueError: when a class got no image.
        """
        if not bool((self.count > 0).all()):
            missing = (self.count == 0).nonzero().flatten().tolist()
            raise ValueError(
                f"The task's classes {missing} (counted from 0) have no training image to take statistics of."
            )
        count = self.count.unsqueeze(1).to(self.total.dtype)
        mean = self.total / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        scatter = self.products - (mean * count).T @ mean
        scatter = (scatter + scatter.T) / 2
        return ClassStatistics(mean.float().cpu(), variance.float().cpu(), self.count.cpu(), scatter.float().cpu())


def estimated_shrinkage(covariance: Tensor, samples: int) -> float:
    """The oracle approximating shrinkage (Chen et al., 2010, arXiv 0907.4698): much where images are few, 0 to 1.

    scikit-learn's `oas` is the same on features; here only their covariance is kept.

    Args:
        covariance: (D, D), of what the shrinkage is for.
        samples: how many independent deviations it is the mean over.
    """
    square, mean = covariance.square().mean(), covariance.diagonal().mean()
    spread = (samples + 1) * (square - mean.square() / len(covariance))  # 0 where it is a multiple of the identity
    return min(float((square + mean.square()) / spread), 1.0) if spread > 0 else 1.0


def check_images_suffice(
    alignments: Sequence[str], shrinkage: float | None, stream: Sequence, known: ClassStatistics, closed_form: bool
):
    """Refuse, before anything is trained, lda without shrinkage where the images are too few for its covariance.

    Args:
        alignments: the run's own and those compared with it.
        shrinkage: `alignment_shrinkage`.
        stream: the tasks; those with training images are still to be learned.
        known: statistics of the classes learned.
        closed_form: whether nothing is trained, so that the first task's head is set from statistics too.

    Raises:
        ValueError: naming the first task behind which the covariance has no inverse.
    """
    used = [name for name in alignments if name.startswith("lda")]
    images, classes, features = int(known.count.sum()), len(known.count), len(known.scatter)
    for task in stream if used and shrinkage == 0 else ():
        if task.train is None:
            continue
        images, classes = images + len(task.train), classes + len(task.class_names)
        of_first = task.index == 0 and not closed_form  # whose head is left as trained
        if not of_first and classes < images < classes + features:  # one image of each class needs no covariance
            raise ValueError(
                f"alignment_shrinkage = {shrinkage} is not allowed with the alignment {used[0]!r} here: behind task "
                f"{task.index + 1} there are {images} images of {classes} classes, and a covariance of {features} "
                f"features has an inverse from {classes + features} images on. Set it above 0, for example to 0.01."
            )


def lda_head(statistics: ClassStatistics, shrinkage: float | None) -> tuple[Tensor, Tensor]:
    """Linear discriminant analysis with a shared covariance and equal priors, in closed form.

    Args:
        statistics: of C classes.
        shrinkage: of the covariance; None for the estimated one.

    Returns:
        weight (C, D) = mean . covariance^-1 and bias (C,) = -1/2 mean . covariance^-1 . mean, float32.

    Raises:
        ValueError: when the covariance has no inverse; more shrinkage gives it one.
    """
    covariance = statistics.covariance(shrinkage)
    if int(statistics.count.sum()) == len(statistics.count):  # one image of each class shows no spread at all
        covariance = torch.eye(len(covariance), dtype=torch.float64)  # then LDA is the nearest class mean
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed):
        if shrinkage is None:
            raise ValueError(
                "lda is not possible here: in every class all training images have the same features, so there is no "
                "spread to tell classes by. Look at the images, or choose --alignment ncm or none."
            )
        raise ValueError(
            f"alignment_shrinkage = {shrinkage} leaves the shared covariance of {int(statistics.count.sum())} images "
            f"without an inverse in {len(covariance)} dimensions. Start anew in another output_dir with a higher one, "
            "for example 0.01, up to 1."
        )
    mean = statistics.mean.double()
    weight = torch.cholesky_solve(mean.T, factor).T
    return weight.float(), (-0.5 * (weight * mean).sum(dim=1)).float()


def ncm_head(statistics: ClassStatistics) -> tuple[Tensor, Tensor]:
    """The nearest class mean in the Euclidean distance, as a linear head: weight (C, D), bias (C,)."""
    return statistics.mean, -0.5 * statistics.mean.square().sum(dim=1)


class GaussianSampler:
    """Draws features of given classes: mean + noise of the class's variances, or of the shared covariance.

    Args:
        statistics: of all classes.
        full: the shared covariance instead of each class's own variances.
    """

    def __init__(self, statistics: ClassStatistics, full: bool, generator: torch.Generator):
        self.mean, self.full, self.generator = statistics.mean, full, generator
        if full:
            covariance = statistics.covariance()
            covariance.diagonal().add_(VARIANCE_FLOOR)
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if bool(failed):  # the stored float32 scatter can be less than positive by its rounding
                covariance.diagonal().add_(torch.finfo(torch.float32).eps * covariance.trace())
                factor = torch.linalg.cholesky(covariance)
            self.spread = factor.float().T.contiguous()  # (D, D)
        else:
            self.spread = (statistics.variance + VARIANCE_FLOOR).sqrt()  # (C, D)

    def __call__(self, labels: Tensor) -> Tensor:
        """One feature per label: (B,) -> (B, D)."""
        noise = torch.randn(len(labels), self.mean.shape[1], generator=self.generator)
        return self.mean[labels] + (noise @ self.spread if self.full else noise * self.spread[labels])


def set_gradients(head: nn.Linear, features: Tensor, labels: Tensor):
    """Give the head the gradients of its mean cross-entropy, in closed form: features (B, D), labels (B,).

    For a batch this small, autograd takes longer than the products.
    """
    excess = torch.addmm(head.bias, features, head.weight.T).softmax(dim=1, dtype=torch.float32)  # (B, C)
    excess[torch.arange(len(labels), device=labels.device), labels] -= 1
    excess = (excess / len(labels)).to(features.dtype)
    head.weight.grad, head.bias.grad = excess.T @ features, excess.sum(dim=0)


@torch.no_grad()
def train_on_samples(
    head: nn.Linear,
    statistics: ClassStatistics,
    full: bool,
    num_old: int,
    args: AlignmentSettings,
    generator: torch.Generator,
):
    """Retrain the head alone on Gaussian samples, every class equally often: AdamW with a cosine over all steps.

    Args:
        head: over all C classes; changed in place.
        full: sample from the shared covariance.
        num_old: old classes, the number of steps in an epoch.
        args: `alignment_epochs` and the other settings of the retraining.
    """
    sampler = GaussianSampler(statistics, full, generator)
    classes, device = len(statistics.count), head.weight.device
    batch = max(1, round(args.alignment_batch_ratio * args.batch_size))
    steps = args.alignment_epochs * num_old
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=args.alignment_learning_rate, weight_decay=args.alignment_weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(classes, generator=generator)])
        labels, order = order[:batch], order[batch:]
        set_gradients(head, sampler(labels).to(device, head.weight.dtype), labels.to(device))
        optimizer.step()
        schedule.step()


def align_classifier(
    head: nn.Linear,
    statistics: ClassStatistics,
    num_old: int,
    args: AlignmentSettings,
    generator: torch.Generator | None,
):
    """Set the head right for all classes from their statistics, by `args.alignment`; changes it in place.

    Raises:
        ValueError: when head and statistics differ in the number of classes, or a covariance has no inverse.
    """
    if head.out_features != len(statistics.count):
        raise ValueError(
            f"The head has {head.out_features} classes and the class statistics {len(statistics.count)}. Alignment "
            "needs statistics of every class; take them from the checkpoint that the model comes from."
        )
    if args.alignment in CLOSED_FORMS:
        is_lda = args.alignment == "lda"
        weight, bias = lda_head(statistics, args.alignment_shrinkage) if is_lda else ncm_head(statistics)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    elif args.alignment in ("gaussian", "gaussian-full"):
        train_on_samples(head, statistics, args.alignment == "gaussian-full", num_old, args, generator)
