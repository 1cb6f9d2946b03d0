"""How small the examples are run."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


TINY = [
    "--dataset", "embedded", "--backbone", "embedded", "--num_tasks", "5", "--max_train_samples_per_class", "4",
    "--max_test_samples_per_class", "3", "--epochs", "1", "--batch_size", "8", "--num_threads", "1",
]  # fmt: skip
