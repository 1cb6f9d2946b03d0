"""`compare_alignments` gives what separate runs would have given, from one training."""

from types import SimpleNamespace

import pytest
import torch
from runs import assert_same_tensors, read, save_backbone, tiny_args, tiny_stream, tiny_trainer
from transformers import ViTImageProcessorPil

from smope_hf import ContinualTrainer, PromptedForImageClassification
from smope_hf.heads.alignment import ClassStatistics
from smope_hf.models.incremental_head import IncrementalHead
from smope_hf.training.callbacks import ContinualCallback
from smope_hf.training.other_alignments import FOLDER, OtherAlignments

OTHERS = ["none", "gaussian", "gaussian-full", "ncm", "lda-uncompensated", "gaussian-uncompensated"]
SETTINGS = {"alignment_epochs": 2, "alignment_learning_rate": 0.01, "alignment_shrinkage": 0.1}


class StopsAfterTwo(ContinualCallback):
    def on_task_end(self, trainer, task):
        if task.index == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


def trainer_of(method, backbone, output_dir, stream=None, **settings):
    settings = {**SETTINGS, **settings}
    if method == "smope":
        return tiny_trainer(backbone, output_dir, **settings)
    torch.manual_seed(0)
    model = PromptedForImageClassification.from_backbone(backbone, method=method)
    processor = ViTImageProcessorPil.from_pretrained(backbone)
    return ContinualTrainer(model, tiny_args(output_dir, **settings), stream or tiny_stream(), processor)


@pytest.mark.parametrize(
    "method", ["smope", *(pytest.param(name, marks=pytest.mark.slow) for name in ("finetune", "ovor"))]
)
@pytest.mark.slow
def test_each_matrix_is_that_of_a_run_of_its_own(method, backbone, tmp_path):
    content = trainer_of(method, backbone, tmp_path / "one", compare_alignments=OTHERS).train()
    found = {"lda": content["accuracy_matrix"]}
    found |= {name: result["accuracy_matrix"] for name, result in content["other_alignments"].items()}
    assert set(found) == {"lda", *OTHERS}
    for name, matrix in found.items():
        settings = {"alignment": name.removesuffix("-uncompensated")}
        if name.endswith("-uncompensated"):
            settings["drift_compensation"] = "none"
        alone = trainer_of(method, backbone, tmp_path / name, **settings).train()
        assert matrix == alone["accuracy_matrix"], name
    assert len({str(matrix) for matrix in found.values()}) > 2  # the alignments do differ


def test_a_resumed_run_goes_on_with_every_head(backbone, tmp_path):
    whole = trainer_of("smope", backbone, tmp_path / "whole", compare_alignments=OTHERS)
    expected = whole.train()
    cut = trainer_of("smope", backbone, tmp_path / "cut", compare_alignments=OTHERS)
    cut.callbacks.append(StopsAfterTwo())
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = trainer_of("smope", backbone, tmp_path / "cut", compare_alignments=OTHERS, resume=True).train()
    assert again["other_alignments"] == expected["other_alignments"]
    assert_same_tensors(tmp_path / "whole" / "task-03", tmp_path / "cut" / "task-03")
    assert read(tmp_path / "cut", "metrics.json")["other_alignments"] == expected["other_alignments"]


def test_heads_that_are_loaded_come_to_the_runs_device(tmp_path):
    """Nothing aligns them once more where a run is resumed behind its last task."""
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=3, tasks=[]), closed_form=None)
    args = tiny_args(tmp_path, alignment="none", compare_alignments=["ncm"])
    others = OtherAlignments(args, model)
    statistics = ClassStatistics(torch.eye(3)[:2], torch.ones(2, 3), torch.tensor([9, 9]), torch.eye(3))
    others.align(IncrementalHead(3, 0).grown(2), statistics, statistics, SimpleNamespace(index=0, class_ids=range(2)))
    others.add_rows([[0.5]])
    others.save(tmp_path, 0)
    again = OtherAlignments(args, model)
    again.load(tmp_path, 0, IncrementalHead(3, 0).grown(2).to("meta"))
    assert again.heads["ncm"].weight.device.type == "meta"


def test_what_was_kept_and_is_broken_is_refused_by_name(backbone, tmp_path):
    trainer_of("smope", backbone, tmp_path, compare_alignments=["none"]).train()
    file = tmp_path / FOLDER / "task-03.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="task-03.safetensors cannot be read"):
        trainer_of("smope", backbone, tmp_path, compare_alignments=["none"], resume=True).train()


def test_what_a_killed_save_left_is_removed_by_the_next(backbone, tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / ".tmp5kIPb9").write_bytes(b"half")
    trainer_of("smope", backbone, tmp_path, compare_alignments=["none"]).train()
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
        "task-02.safetensors",
        "task-03.safetensors",
    ]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"compare_alignments": ["all"]}, "compare_alignments = .'all'.* Allowed: some of"),
        ({"compare_alignments": ["none", "none"]}, "once each"),
        ({"compare_alignments": ["none"], "weight_decay": 0.1}, "none with weight_decay above 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_args(tmp_path, **settings)


def test_a_method_without_a_trained_head_has_nothing_to_compare(backbone, tmp_path):
    with pytest.raises(ValueError, match="a method that trains its head"):
        trainer_of("lda", backbone, tmp_path, compare_alignments=["none"])


@pytest.mark.parametrize("alignment", ["none", "gaussian", "gaussian-full", "ncm"])
def test_a_method_with_an_alignment_of_its_own_takes_no_other(alignment, backbone, tmp_path):
    with pytest.raises(ValueError, match=f"alignment = '{alignment}' is not allowed.*Allowed: 'lda'. Leave"):
        trainer_of("lda", backbone, tmp_path, alignment=alignment)
    assert not list(tmp_path.iterdir())


def test_a_method_with_an_alignment_of_its_own_that_goes_on(backbone, tmp_path, monkeypatch):
    """Another alignment is refused where it is given, and left alone where an older run's recipe has it."""
    with monkeypatch.context() as patch:
        patch.setattr("smope_hf.training.trainer.check_alignment", lambda *_: None)
        first = tiny_stream(num_tasks=None, class_lists=[["a", "b"]])
        trainer_of("ncm", backbone, tmp_path / "old", first, alignment="gaussian").train()
    more = tiny_stream(num_tasks=None, class_lists=[["c", "d"]])
    options = {"output_dir": tmp_path / "new", "disable_progress": True}
    with pytest.raises(ValueError, match="alignment = 'none' is not allowed.*Allowed: 'ncm'"):
        ContinualTrainer.from_checkpoint(tmp_path / "old", more, alignment="none", **options)
    trainer = ContinualTrainer.from_checkpoint(tmp_path / "old", more, **options)
    assert trainer.args.alignment == "gaussian" and trainer.model.closed_form == "ncm"


def test_an_alignment_that_too_few_images_allow_is_refused_before_training(backbone, tmp_path):
    few = tiny_stream(max_train_samples_per_class=5)
    with pytest.raises(ValueError, match="'lda' here: behind task 2 there are 20 images.* from 36 images"):
        tiny_trainer(backbone, tmp_path, few, alignment="none", compare_alignments=["lda"], alignment_shrinkage=0)
    assert not list(tmp_path.iterdir())


def test_a_compared_alignment_that_fails_is_named(tmp_path):
    args = tiny_args(tmp_path, alignment="none", compare_alignments=["lda"], alignment_shrinkage=0)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=3, tasks=[]), closed_form=None)
    equal = ClassStatistics(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([9, 9]), torch.zeros(3, 3))
    task = SimpleNamespace(index=1, class_ids=range(1, 2))
    others = OtherAlignments(args, model)
    others.heads["lda"] = IncrementalHead(3, 0).grown(1)
    with pytest.raises(ValueError, match="compare_alignments, lda: .*another output_dir.* Or compare without it"):
        others.align(IncrementalHead(3, 0).grown(2), equal, equal, task)
