"""Metric for the `evaluate` library: the continual-learning metrics from one record for each image and stage."""

import datasets
import evaluate
import numpy as np

from smope_hf.metrics.summary import accuracy_matrix_from_records, continual_metrics

_DESCRIPTION = """
Metrics of class-incremental learning: final and cumulative average accuracy, forgetting, backward and forward
transfer, and the sample-weighted final accuracy, all as fractions.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: predicted class ids.
    references: true class ids.
    task_ids: for each record, the task of the image, from 0 on.
    stages: for each record, the task after which the image was classified, from 0 on.
    baseline: accuracy of chance or of an untrained model on each task, for forward transfer. Default: None.

Returns:
    final_average_accuracy, cumulative_average_accuracy, forgetting, backward_transfer, forward_transfer,
    weighted_final_accuracy: a float each, None where it is not defined.
    accuracy_matrix: list of rows, None where an entry was not measured.

Examples:
    >>> metric = evaluate.load(smope_hf.metrics.summary.EVALUATE_MODULE)
    >>> result = metric.compute(
    ...     predictions=[0, 1, 0, 0, 2, 3], references=[0, 1, 0, 1, 2, 3], task_ids=[0, 0, 0, 0, 1, 1],
    ...     stages=[0, 0, 1, 1, 1, 1],
    ... )
    >>> result["final_average_accuracy"], result["forgetting"]
    (0.75, 0.5)
"""

_CITATION = """
@inproceedings{lopezpaz2017gradient,
  title={Gradient Episodic Memory for Continual Learning},
  author={Lopez-Paz, David and Ranzato, Marc'Aurelio},
  booktitle={Advances in Neural Information Processing Systems},
  year={2017}
}
@inproceedings{chaudhry2018riemannian,
  title={Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence},
  author={Chaudhry, Arslan and Dokania, Puneet K. and Ajanthan, Thalaiyasingam and Torr, Philip H. S.},
  booktitle={European Conference on Computer Vision},
  year={2018}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ContinualMetrics(evaluate.Metric):
    """Build the accuracy matrix from the records and compute the metrics on it with `smope_hf.metrics.summary`."""

    def _info(self) -> evaluate.MetricInfo:
        columns = ("predictions", "references", "task_ids", "stages")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({name: datasets.Value("int64") for name in columns}),
            reference_urls=["https://arxiv.org/abs/1706.08840", "https://arxiv.org/abs/1801.10112"],
        )

    def _compute(self, predictions, references, task_ids, stages, baseline=None) -> dict:
        matrix, test_counts = accuracy_matrix_from_records(predictions, references, task_ids, stages)
        rows = [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()]
        return {**continual_metrics(matrix, test_counts, baseline), "accuracy_matrix": rows}
