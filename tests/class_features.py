"""Features of made-up classes and their statistics, for tests of heads."""

import numpy as np
import torch

from smope_hf import ContinualTrainingArguments
from smope_hf.heads.alignment import StatisticsAccumulator

SIZE = 6


def make_features(counts, size=SIZE, seed=0, spread=1.0):
    """Classes with correlated dimensions of unlike scale, in mixed order: features (n, D), labels (n,)."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(counts)), counts))
    mixing = random.normal(size=(size, size)) * np.geomspace(0.3, 3, size)
    means = 4 + spread * 2 * random.normal(size=(len(counts), size))
    features = means[labels] + random.normal(size=(len(labels), size)) @ mixing
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def statistics_of(features, labels, parts=1):
    accumulator = StatisticsAccumulator(int(labels.max()) + 1, features.shape[1])
    for rows in torch.arange(len(labels)).tensor_split(parts):
        accumulator.update(features[rows], labels[rows])
    return accumulator.result()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def arguments(**settings):
    return ContinualTrainingArguments(**{"batch_size": 32, "alignment_epochs": 10, **settings})
