"""Three yardsticks on the frozen backbone, on the same tasks: what a method must beat to be worth its training."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from ..data.batches import DecodedImages, GlobalBatches, gather_rows, shuffled
from ..data.seeding import derive_seed
from ..data.split import Task, TaskSplit
from ..heads.alignment import StatisticsAccumulator, estimated_shrinkage
from ..metrics.accuracy_matrix import AccuracyMatrix
from ..models.incremental_head import IncrementalHead
from .optimization import learning_rate_at
from .passes import ImagePasses


@torch.no_grad()
def frozen_features(model, images: DecodedImages, passes: ImagePasses) -> Tensor:
    """Pooled features of the backbone without any prompt, (n, D) float32, under the evaluation transform."""
    accelerator = passes.accelerator
    model.eval()
    features = []
    for pixels, _, _, batch_size in GlobalBatches(images, passes.args.eval_batch_size, accelerator)():
        with accelerator.autocast():
            pooled = model.backbone_features(passes.normalize(pixels.to(accelerator.device)))
        features.append(gather_rows(accelerator, pooled.float(), batch_size))
    return torch.cat(features).cpu()


def nearest_class_mean(features, labels, tests) -> list[Tensor]:
    """Predictions for each test set by the nearest class mean (Euclidean)."""
    if len(labels.unique()) == 1:
        return the_only_class(labels, tests)
    classifier = NearestCentroid().fit(features.numpy(), labels.numpy())
    return [torch.from_numpy(classifier.predict(test.numpy())) for test in tests]


def the_only_class(labels: Tensor, tests) -> list[Tensor]:
    """What a first task of one class leaves to predict; scikit-learn takes no such task."""
    return [labels[:1].expand(len(test)) for test in tests]


def discriminant_analysis(features, labels, tests, shrinkage: float | None) -> list[Tensor]:
    """Predictions for each test set by linear discriminant analysis with a shared covariance and equal priors."""
    if len(labels.unique()) == 1:
        return the_only_class(labels, tests)
    if shrinkage is None:
        shrinkage = pooled_shrinkage(features, labels)
    # scikit-learn weighs the classes' covariances by the priors it is given. With those of the data that is the
    # covariance of all images; taken off the scores again, no class is preferred
    classifier = LinearDiscriminantAnalysis("lsqr", shrinkage=shrinkage)
    classifier.fit(features.double().numpy(), labels.numpy())
    log_priors = np.log(classifier.priors_)
    classifier.intercept_ -= log_priors if len(log_priors) > 2 else log_priors[1] - log_priors[0]
    return [torch.from_numpy(classifier.predict(test.double().numpy())) for test in tests]


def pooled_shrinkage(features: Tensor, labels: Tensor) -> float:
    """The shrinkage estimated for the covariance within classes, from features (n, D) and labels (n,) from 0."""
    accumulator = StatisticsAccumulator(int(labels.max()) + 1, features.shape[1])
    accumulator.update(features, labels)
    statistics = accumulator.result()
    return estimated_shrinkage(statistics.covariance(), statistics.freedom)


def train_linear_head(head: IncrementalHead, features: Tensor, labels: Tensor, first: int, args, task: int):
    """Train a linear head on frozen features for one task, on its own classes' logits, as SMoPE trains its head."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    steps = -(-len(labels) // args.batch_size)
    for epoch in range(args.epochs):
        order = shuffled(len(labels), args.seed, "linear", task, epoch)
        for step, rows in enumerate(order.split(args.batch_size), start=epoch * steps):
            rate = learning_rate_at(step, args.learning_rate, args, args.epochs, steps)
            optimizer.param_groups[0]["lr"] = rate
            loss = F.cross_entropy(head(features[rows])[:, first:], labels[rows] - first)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def run_yardsticks(
    model, stream: Sequence[Task], decoded: Callable[[TaskSplit], DecodedImages], passes: ImagePasses
) -> dict[str, AccuracyMatrix]:
    """Accuracy matrices of `ncm`, `lda` (both over the features of all classes seen) and `linear`, task after task.

    Args:
        model: of a run; its frozen backbone is used, and it is not changed.
        stream: the tasks.
        decoded: the images of a split.
        passes: how the run looks at them, and its settings.

    Raises:
        ValueError: when the stream goes on from a checkpoint, whose training images are gone.
    """
    if any(task.train is None or task.test is None for task in stream):
        raise ValueError("Yardsticks need the training and test images of all tasks; run them with a whole run.")
    first = stream[0]
    if len(first.train) == len(first.class_names):
        raise ValueError(
            "yardsticks = True is not allowed with one training image of each class of the first task: LDA needs "
            "more. Add images, or leave the yardsticks out."
        )
    args = passes.args
    train, labels, tests, truths = [], [], [], []
    matrices = {name: AccuracyMatrix() for name in ("ncm", "lda", "linear")}
    head = IncrementalHead(model.config.hidden_size, 0)
    for task in passes.bars.over(stream, len(stream), stream[-1].index, "yardsticks"):
        images, test_images = decoded(task.train), decoded(task.test)
        train.append(frozen_features(model, images, passes))
        tests.append(frozen_features(model, test_images, passes))
        labels.append(images.labels)
        truths.append(test_images.labels)
        torch.manual_seed(derive_seed(args.seed, "linear", task.index))
        head = head.grown(len(task.class_names))
        train_linear_head(head, train[-1], labels[-1], task.class_ids.start, args, task.index)
        with torch.no_grad():
            predictions = {
                "ncm": nearest_class_mean(torch.cat(train), torch.cat(labels), tests),
                "lda": discriminant_analysis(torch.cat(train), torch.cat(labels), tests, args.alignment_shrinkage),
                "linear": [head(test).argmax(dim=1) for test in tests],
            }
        for name, predicted in predictions.items():
            matrices[name].add_row(
                [(p == truth).double().mean().item() for p, truth in zip(predicted, truths, strict=True)]
            )
    return matrices
