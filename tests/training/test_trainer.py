"""The continual trainer on a tiny run: what it promises to leave behind, and that it repeats itself exactly."""

import copy
import json

import pytest
import torch
from datasets import DatasetDict
from PIL import Image
from runs import (
    NUM_TASKS,
    TEST_PER_CLASS,
    TRAIN_PER_CLASS,
    assert_same_tensors,
    read,
    save_backbone,
    tensors,
    tiny_args,
    tiny_stream,
    tiny_trainer,
)
from stopping import Stop
from transformers import ViTImageProcessorPil, ViTModel, pipeline

from smope_hf import ContinualTrainer, SMoPEForImageClassification, TaskStream
from smope_hf.data.augmentation import to_uint8
from smope_hf.data.embedded import digits
from smope_hf.metrics.summary import continual_metrics
from smope_hf.sharing.checkpoint import load_statistics
from smope_hf.training.callbacks import ContinualCallback
from smope_hf.training.phase import TrainingDivergedError
from smope_hf.training.statistics_pass import StatisticsStage
from smope_hf.training.yardsticks import run_yardsticks

WITH_PICTURES = True  # of the runs in this file


class Journal(ContinualCallback):
    """Notes what happens."""

    def __init__(self):
        self.events, self.losses = [], []

    def on_task_begin(self, trainer, task):
        self.events.append(("begin", task.index))

    def on_log(self, trainer, task, losses):
        self.losses.append(losses)

    def on_task_end(self, trainer, task):
        self.events.append(("end", task.index))

    def on_train_end(self, trainer, content):
        self.events.append(("done", content["metrics"]["final_average_accuracy"]))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def finished(backbone, tmp_path_factory):
    """One whole run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny_trainer(backbone, folder, callbacks=[Journal()])
    content = trainer.train()
    return folder, trainer, content


# ---------------------------------------------------------------------- what a run leaves behind


def test_files_of_a_run(finished):
    folder, trainer, content = finished
    expected = {"metrics.json", "accuracy_matrix.csv", "manifest.json", "plots", "task-01", "task-02", "task-03"}
    assert {path.name for path in folder.iterdir()} == expected
    assert {path.name for path in (folder / "plots").iterdir()} == {"accuracy_matrix.png", "average_accuracy.png"}
    files = {path.name for path in (folder / "task-02").iterdir()}
    assert files == {
        "config.json", "model.safetensors", "class_statistics.safetensors", "routing.json", "trainer_state.json",
        "preprocessor_config.json", "manifest.json", "README.md", "accuracy_matrix.png", "checksums.json",
    }  # fmt: skip
    assert read(folder, "metrics.json") == json.loads(json.dumps(content))
    assert read(folder, "manifest.json")["protocol_hash"] == content["protocol_hash"]


def test_metrics_are_those_of_the_accuracy_matrix(finished):
    _, trainer, content = finished
    counts = [2 * TEST_PER_CLASS] * NUM_TASKS
    assert content["metrics"] == continual_metrics(content["accuracy_matrix"], counts)
    assert trainer.evaluate()["accuracies"] == content["accuracy_matrix"][-1]
    assert [set(seconds) for seconds in content["seconds_by_task"]] == [
        {"training", "statistics", "alignment", "evaluation", "saving"}
    ] * NUM_TASKS


def test_callbacks_hear_everything_in_order(finished):
    _, trainer, content = finished
    journal = trainer.callbacks[0]
    tasks = [(what, index) for index in range(NUM_TASKS) for what in ("begin", "end")]
    assert journal.events == [*tasks, ("done", content["metrics"]["final_average_accuracy"])]
    assert journal.losses and all(set(losses) >= {"loss", "router_loss"} for losses in journal.losses)


def test_usage_counts_every_training_image_once_per_head(finished):
    folder, trainer, _ = finished
    for experts in trainer.model.prefix_experts:
        assert (experts.usage_counts.sum(dim=-1) == NUM_TASKS * 2 * TRAIN_PER_CLASS * 2).all()
    assert read(folder / "task-03", "routing.json")["images_by_task"] == [2 * TRAIN_PER_CLASS] * NUM_TASKS


def test_a_checkpoint_classifies_as_the_trainer_did(finished):
    """The trainer's cached uint8 images and the pipeline's image processor see the same pixels."""
    folder, trainer, content = finished
    model = SMoPEForImageClassification.from_pretrained(folder / "task-03")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    classifier = pipeline("image-classification", model=str(folder / "task-03"))
    right = 0
    for task in trainer.stream:
        found = classifier(task.test.images(range(len(task.test))))
        right += sum(model.config.label2id[f[0]["label"]] == label for f, label in zip(found, task.test.labels))
    assert right / (NUM_TASKS * 2 * TEST_PER_CLASS) == pytest.approx(content["metrics"]["weighted_final_accuracy"])


def test_statistics_are_those_of_the_masked_features(backbone, tmp_path):
    """The one pass runs on raw scores; its features are those that masked evaluation sees afterwards."""
    trainer = tiny_trainer(backbone, tmp_path, stream=tiny_stream(num_tasks=1), epochs=1)
    trainer.train()
    images = trainer.decoded(trainer.stream[0].train)
    pixels, labels, _ = images.batch(torch.arange(len(images)))
    with torch.no_grad():
        features = trainer.model(trainer.normalize(pixels)).pooled_output
    statistics, _ = load_statistics(tmp_path / "task-01")
    for index in range(6):
        mine = features[labels == index]
        torch.testing.assert_close(statistics.mean[index], mine.mean(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistics.variance[index], mine.var(dim=0, correction=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("compensation", ["none", "linear"])
def test_the_end_of_a_task_is_one_pass(backbone, tmp_path, compensation):
    """Usage and class statistics together; that features can be followed costs one pass before the training."""
    trainer = tiny_trainer(backbone, tmp_path, drift_compensation=compensation)
    first, task = trainer.stream[:2]
    trainer.model.begin_task(first.class_names)
    stage = StatisticsStage(trainer.model, first, trainer.decoded(first.train), trainer.passes)
    stage.finish(trainer.model, trainer.state)
    images = trainer.decoded(task.train)
    trainer.model.begin_task(task.class_names)
    passes = []
    forward = trainer.model.forward
    trainer.model.forward = lambda pixels, **kw: passes.append((len(pixels), "labels" in kw)) or forward(pixels, **kw)
    stage = StatisticsStage(trainer.model, task, images, trainer.passes)
    before = sum(count for count, _ in passes)
    stage.finish(trainer.model, trainer.state)
    one = 2 * TRAIN_PER_CLASS
    assert before == (0 if compensation == "none" else one) and sum(count for count, _ in passes) == before + one
    assert not any(with_labels for _, with_labels in passes) and len(trainer.state.statistics.count) == 4


# ---------------------------------------------------------------------- exactness


def test_one_seed_one_result(backbone, finished, tmp_path):
    folder, _, content = finished
    again = tiny_trainer(backbone, tmp_path).train()
    assert again["accuracy_matrix"] == content["accuracy_matrix"]
    for index in (1, 2, 3):
        assert_same_tensors(folder / f"task-0{index}", tmp_path / f"task-0{index}")


def test_another_seed_another_result(backbone, finished, tmp_path):
    folder, _, _ = finished
    tiny_trainer(backbone, tmp_path, seed=1).train()
    key = "model.safetensors/prefix_experts.0.keys"
    assert not torch.equal(tensors(folder / "task-03")[key], tensors(tmp_path / "task-03")[key])


def test_resumed_equals_uninterrupted(backbone, finished, tmp_path):
    folder, _, content = finished
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(backbone, tmp_path, callbacks=[Stop()]).train()
    (tmp_path / ".task-03.0123.partial").mkdir()  # what a kill in the middle of saving leaves
    torch.rand(7)  # the global generator stands elsewhere in another process
    resumed = tiny_trainer(backbone, tmp_path, resume=True, seed=0).train()
    assert resumed["accuracy_matrix"] == content["accuracy_matrix"] and resumed["metrics"] == content["metrics"]
    assert_same_tensors(folder / "task-03", tmp_path / "task-03")
    assert read(folder / "task-03", "routing.json") == read(tmp_path / "task-03", "routing.json")
    assert not list(tmp_path.glob(".*"))


def test_a_run_on_a_backbone_without_a_name_is_resumed(tmp_path):
    """Then the backbone is in each checkpoint, as of a model that was made in the script itself."""

    def trainer(folder: str, callbacks=(), **settings):
        backbone = ViTModel.from_pretrained(save_backbone(tmp_path / "vit"), add_pooling_layer=False)
        backbone.config.name_or_path = ""
        model = SMoPEForImageClassification.from_backbone(backbone, num_experts=6, top_k=2)
        processor = ViTImageProcessorPil.from_pretrained(tmp_path / "vit")
        return ContinualTrainer(model, tiny_args(tmp_path / folder, **settings), tiny_stream(), processor, callbacks)

    content = trainer("whole").train()
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", [Stop()]).train()
    assert trainer("cut", resume=True).train()["metrics"] == content["metrics"]
    assert_same_tensors(tmp_path / "whole" / "task-03", tmp_path / "cut" / "task-03")


def test_a_tracker_is_finished_once(backbone, tmp_path):
    """Some do not take it twice, and programs end Accelerate's training themselves."""

    class Tracker:
        finished = 0

        def log(self, *_, **__):
            assert not self.finished

        def finish(self):
            self.finished += 1

    tracker, trainer = Tracker(), tiny_trainer(backbone, tmp_path, stream=tiny_stream(num_tasks=2), epochs=1)
    trainer.accelerator.trackers.append(tracker)
    trainer.train()
    trainer.accelerator.end_training()
    assert tracker.finished == 1


def test_resuming_a_finished_run_changes_nothing(backbone, finished):
    folder, _, content = finished
    before = {path: path.read_bytes() for path in (folder / "task-03").iterdir()}
    assert tiny_trainer(backbone, folder, resume=True).train()["metrics"] == content["metrics"]
    assert {path: path.read_bytes() for path in (folder / "task-03").iterdir()} == before


def test_a_run_is_not_overwritten(backbone, finished):
    with pytest.raises(FileExistsError, match="already holds learned tasks, up to task-03"):
        tiny_trainer(backbone, finished[0]).train()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rate": 0.1}, "learning_rate was 0.005 and is 0.1"),
        ({"model_fields": {"top_k": 3}}, "top_k was 2 and is 3"),
        ({"stream": {"seed": 1}}, "tasks are others"),
    ],
)
def test_another_run_is_not_resumed(backbone, finished, change, message):
    change = dict(change)
    if "stream" in change:
        change["stream"] = tiny_stream(**change["stream"])
    with pytest.raises(ValueError, match=message):
        tiny_trainer(backbone, finished[0], resume=True, **change).train()


def test_gradient_accumulation_is_the_same_step(backbone, tmp_path):
    """Not to the bit: sums are taken in another order."""
    losses = []
    for parts in (1, 3):
        journal = Journal()
        trainer = tiny_trainer(
            backbone, tmp_path / str(parts), stream=tiny_stream(num_tasks=1), callbacks=[journal], epochs=1,
            dense_epochs=1, gradient_accumulation_steps=parts, logging_steps=1,
        )  # fmt: skip
        trainer.train()
        losses.append([losses["loss"] for losses in journal.losses])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-4)


def test_bf16_leaves_an_unpatched_model(backbone, tmp_path):
    """Autocast wraps the forward pass while training; a copy made afterwards must not share the original's."""
    trainer = tiny_trainer(backbone, tmp_path, stream=tiny_stream(num_tasks=1), epochs=1, mixed_precision="bf16")
    trainer.train()
    assert "forward" not in trainer.model.__dict__
    twin = copy.deepcopy(trainer.model)
    with torch.no_grad():
        twin.classifier.bias.add_(1)
        pixels = torch.zeros(1, 3, 16, 16)
        torch.testing.assert_close(twin(pixels).logits, trainer.model(pixels).logits + 1)


# ---------------------------------------------------------------------- choices and mistakes


def test_published_statistics_differ(backbone, finished, tmp_path):
    folder, _, _ = finished
    tiny_trainer(backbone, tmp_path, statistics="train").train()
    key = "class_statistics.safetensors/mean"
    assert not torch.allclose(tensors(folder / "task-01")[key], tensors(tmp_path / "task-01")[key], atol=1e-3)


@pytest.mark.parametrize("alignment", ["none", "gaussian", "gaussian-full"])
def test_alignment_changes_the_head_alone(backbone, finished, tmp_path, alignment):
    folder, _, _ = finished
    tiny_trainer(backbone, tmp_path, alignment=alignment, alignment_epochs=2).train()
    aligned, other = tensors(folder / "task-03"), tensors(tmp_path / "task-03")
    different = {name for name in aligned if not torch.equal(aligned[name], other[name])}
    assert different == {"model.safetensors/classifier.weight", "model.safetensors/classifier.bias"}


def test_divergence_names_the_step_and_the_last_checkpoint(backbone, tmp_path):
    class Spoil(ContinualCallback):
        def on_task_begin(self, trainer, task):
            if task.index == 1:
                trainer.model.prefix_experts[0].values.data.fill_(float("nan"))

    with pytest.raises(
        TrainingDivergedError, match="task 2 is not finite at step 1 .*last good checkpoint is .*task-01"
    ):
        tiny_trainer(backbone, tmp_path, callbacks=[Spoil()]).train()
    assert not (tmp_path / "task-02").exists()


def test_a_fresh_run_without_test_images_is_refused_before_it_begins(backbone, tmp_path):
    rows = digits()["train"].select(range(200))
    stream = TaskStream(DatasetDict({"train": rows}), num_tasks=2, allow_no_test=True)
    with pytest.raises(ValueError, match="Task 1 has no test images.* test_fraction"):
        tiny_trainer(backbone, tmp_path, stream)
    assert not list(tmp_path.iterdir())


def test_more_classes_than_a_checkpoint_may_list_are_refused_before_the_first_task(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("smope_hf.storage.config_guard.MAX_CLASSES", 5)
    with pytest.raises(ValueError, match="6 classes are not allowed.*at most 5"):
        tiny_trainer(backbone, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_with_classes_is_refused(backbone, finished, tmp_path):
    model = SMoPEForImageClassification.from_pretrained(finished[0] / "task-03")
    with pytest.raises(ValueError, match="already knows 6 classes"):
        ContinualTrainer(model, tiny_args(tmp_path), tiny_stream(), finished[1].image_processor)


def test_yardsticks(backbone, tmp_path):
    trainer = tiny_trainer(backbone, tmp_path, epochs=20, learning_rate=0.05)
    before = copy.deepcopy(trainer.model.state_dict())
    matrices = run_yardsticks(trainer.model, trainer.stream, trainer.decoded, trainer.passes)
    assert set(matrices) == {"ncm", "lda", "linear"}
    metrics = {name: continual_metrics(matrix.as_array()) for name, matrix in matrices.items()}
    assert metrics["linear"]["forgetting"] > metrics["ncm"]["forgetting"]  # nothing protects old classes there
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_yardsticks_begin_with_a_single_class(backbone, tmp_path):
    stream = tiny_stream(num_tasks=None, class_lists=[["a"], ["b", "c"]])
    trainer = tiny_trainer(backbone, tmp_path, stream=stream)
    matrices = run_yardsticks(trainer.model, trainer.stream, trainer.decoded, trainer.passes)
    assert matrices["lda"].as_array()[0, 0] == 1.0 and all(matrix.is_complete for matrix in matrices.values())


def test_image_size_is_the_processors(finished):
    trainer = finished[1]
    image = Image.new("RGB", (50, 31))
    expected = trainer.image_processor(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(trainer.normalize(to_uint8(trainer.image_processor, [image])), expected)
