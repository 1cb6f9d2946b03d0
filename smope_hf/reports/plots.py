"""Every plot of smope_hf: of a run, of several runs, of a benchmark, as PNG or SVG files, light or dark."""

from .accuracy_plots import plot_accuracy_matrix, plot_task_confusion
from .cost_plots import plot_costs, read_costs
from .curve_plots import plot_average_accuracy, plot_forgetting
from .efficiency_plots import plot_sample_efficiency
from .plot_style import DARK, LIGHT
from .routing_plots import plot_balance, plot_survival, plot_task_overlap, plot_training_balance
from .usage_plots import plot_expert_usage, plot_image_experts

__all__ = [
    "DARK",
    "LIGHT",
    "plot_accuracy_matrix",
    "plot_average_accuracy",
    "plot_balance",
    "plot_costs",
    "plot_expert_usage",
    "plot_forgetting",
    "plot_image_experts",
    "plot_sample_efficiency",
    "plot_survival",
    "plot_task_confusion",
    "plot_task_overlap",
    "plot_training_balance",
    "read_costs",
]
