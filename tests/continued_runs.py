"""A run to go on from, and what its continuation is given."""

from runs import save_backbone, tiny_stream, tiny_trainer

SETTINGS = {"learning_rate": 0.01, "normalization": "reference", "alignment": "gaussian", "alignment_epochs": 2}
COMPUTING = {"disable_progress": True, "eval_batch_size": 8}  # not part of the recipe


def whole_run(tmp_path_factory):
    """One run over all three tasks."""
    backbone = save_backbone(tmp_path_factory.mktemp("backbone"))
    trainer = tiny_trainer(backbone, tmp_path_factory.mktemp("run"), **SETTINGS)
    trainer.train()
    return trainer


def folder_of(trainer, number: int):
    from pathlib import Path

    return Path(trainer.args.output_dir) / f"task-{number:02d}"


def new_stream(trainer, *numbers: int, **options):
    """The classes of some tasks, as somebody who has only these images would load them."""
    lists = [list(trainer.stream[number - 1].class_names) for number in numbers]
    return tiny_stream(num_tasks=None, class_lists=lists, **options)


def old_tests(trainer, count: int):
    return [task.test for task in trainer.stream[:count]]


def interrupt(trainer):
    raise KeyboardInterrupt
