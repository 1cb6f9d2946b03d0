"""Modules that were directly in `smope_hf` before it had packages: their old names still import, with a warning.

One table, and one finder that Python asks only for names that nothing else is found under.
"""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

MOVED = {  # old name in smope_hf -> where it is now
    "accuracy_matrix": "metrics.accuracy_matrix",
    "accuracy_plots": "reports.accuracy_plots",
    "alignment": "heads.alignment",
    "augmentation": "data.augmentation",
    "auto_classes": "models.auto_classes",
    "backbones": "models.backbones",
    "background": "data.background",
    "base_guard": "models.base_guard",
    "batches": "data.batches",
    "callbacks": "training.callbacks",
    "checked_arguments": "settings.checked_arguments",
    "checkpoint": "sharing.checkpoint",
    "checkpoint_guard": "storage.checkpoint_guard",
    "checkpoint_source": "sharing.source",
    "checksums": "storage.checksums",
    "class_names": "settings.class_names",
    "class_recall": "metrics.class_recall",
    "cli_add_classes": "cli.add_classes",
    "cli_common": "cli.common",
    "cli_errors": "cli.errors",
    "cli_evaluate": "cli.evaluate",
    "cli_export": "cli.export",
    "cli_info": "cli.info",
    "cli_inspect": "sharing.inspection",
    "cli_options": "cli.options",
    "cli_plot": "cli.plot",
    "cli_predict": "cli.predict",
    "cli_push": "cli.push",
    "cli_report": "cli.report",
    "cli_train": "cli.train",
    "comparison_report": "reports.comparison_report",
    "compiled_backbone": "training.compiled_backbone",
    "config_fields": "storage.config_fields",
    "config_guard": "storage.config_guard",
    "configuration_incremental": "models.configuration_incremental",
    "configuration_prompted": "models.configuration_prompted",
    "configuration_smope": "models.configuration_smope",
    "continuation": "training.continuation",
    "continued_stream": "data.continued_stream",
    "cost_plots": "reports.cost_plots",
    "cpu_attention": "models.cpu_attention",
    "curve_plots": "reports.curve_plots",
    "drift": "heads.drift",
    "efficiency_plots": "reports.efficiency_plots",
    "embedded_data": "data.embedded",
    "evaluation": "training.evaluation",
    "exporting": "models.export",
    "field_checks": "storage.field_checks",
    "file_lock": "storage.file_lock",
    "files": "storage.files",
    "folder_layout": "data.folder_layout",
    "foreign_files": "storage.foreign_files",
    "formatting": "base.formatting",
    "hub": "sharing.hub",
    "hub_answers": "sharing.hub_answers",
    "hub_files": "sharing.hub_files",
    "image_check": "data.image_check",
    "image_places": "data.image_places",
    "image_processors": "models.image_processors",
    "image_reading": "data.image_reading",
    "image_store": "data.image_store",
    "imbalance": "data.imbalance",
    "incremental_head": "models.incremental_head",
    "interruption": "training.interruption",
    "joint_stream": "data.joint_stream",
    "known_tasks": "data.known_tasks",
    "method_coda": "models.methods.coda",
    "method_dualprompt": "models.methods.dualprompt",
    "method_l2p": "models.methods.l2p",
    "method_ovor": "models.methods.ovor",
    "method_plain": "models.methods.plain",
    "methods": "models.methods.table",
    "mid_task": "training.mid_task",
    "model_card": "sharing.model_card",
    "modeling_incremental": "models.modeling_incremental",
    "modeling_outputs": "models.modeling_outputs",
    "modeling_prompted": "models.modeling_prompted",
    "modeling_smope": "models.modeling_smope",
    "named_settings": "base.named_settings",
    "optimization": "training.optimization",
    "other_alignments": "training.other_alignments",
    "output_check": "storage.output_check",
    "plot_style": "reports.plot_style",
    "plots": "reports.plots",
    "prefix_attention": "models.prefix_attention",
    "prefix_experts": "models.prefix_experts",
    "pretrained": "models.pretrained",
    "printable": "base.printable",
    "printing": "base.printing",
    "process_group": "training.process_group",
    "prompt_method": "models.methods.base",
    "prompt_methods": "models.methods.rivals",
    "random_routing": "models.random_routing",
    "recipe_guard": "settings.recipe_guard",
    "recipe_yaml": "settings.recipe_yaml",
    "registry": "models.registry",
    "report_html": "reports.report_html",
    "results": "reports.results",
    "routing_patterns": "routing.patterns",
    "routing_plots": "reports.routing_plots",
    "routing_record": "routing.record",
    "routing_recorder": "training.routing_recorder",
    "routing_report": "routing.usage",
    "run_arguments": "training.run_arguments",
    "run_files": "sharing.run_files",
    "run_folder": "reports.run_folder",
    "run_groups": "reports.run_groups",
    "run_health": "training.health",
    "run_lock": "training.run_lock",
    "run_pictures": "reports.run_pictures",
    "run_place": "training.run_place",
    "run_report": "reports.run_report",
    "run_room": "training.run_room",
    "run_state": "training.run_state",
    "run_warnings": "reports.run_warnings",
    "safe_json": "storage.safe_json",
    "seeding": "data.seeding",
    "staged_upload": "sharing.staged_upload",
    "state_folder": "storage.state_folder",
    "state_guard": "sharing.statistics_file",
    "statistics_pass": "training.statistics_pass",
    "stopwatch": "metrics.stopwatch",
    "task_confusion": "metrics.task_confusion",
    "task_data": "data.reading",
    "task_manifest": "data.manifest",
    "task_partition": "data.partition",
    "task_split": "data.split",
    "tasks": "data.tasks",
    "terminal": "reports.terminal",
    "trainer": "training.trainer",
    "trainer_folder": "training.trainer_folder",
    "trainer_hub": "training.trainer_hub",
    "training_args": "settings.training_args",
    "training_phase": "training.phase",
    "training_routing": "training.training_recorder",
    "training_routing_record": "routing.training_record",
    "unchanged_files": "storage.unchanged_files",
    "usage_plots": "reports.usage_plots",
    "version_changes": "storage.version_changes",
    "weight_files": "storage.weight_files",
    "yardsticks": "training.yardsticks",
}


class _Moved(Loader):
    """Gives the module of the new place under the old name, as the same object."""

    def __init__(self, place: str):
        self.place = place

    def create_module(self, spec: ModuleSpec):
        return None

    def exec_module(self, module):
        sys.modules[module.__name__] = importlib.import_module(self.place)  # what Python hands out is read from there


class _Finder(MetaPathFinder):
    """Finds what `MOVED` names."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        if package != self.package or old not in MOVED:
            return None
        from .printable import printable

        place = f"{package}.{MOVED[old]}"
        warnings.warn(
            printable(f"{name} is now {place}. Import it from there: a later version drops the old name."),
            DeprecationWarning,
            stacklevel=2,
        )
        return ModuleSpec(name, _Moved(place))


def find_moved(package: str):
    """Have the old names of a package's modules import from now on.

    Args:
        package: name of the package; `smope_hf`.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder(package))
