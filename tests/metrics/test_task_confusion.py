"""Which task's classes images are taken for: counted as the accuracies are measured, kept by the run."""

import json

import numpy as np
import pytest
import torch
from runs import TEST_PER_CLASS, read, save_backbone, tiny_stream, tiny_trainer

from smope_hf.metrics.task_confusion import confusion_row
from smope_hf.sharing.checkpoint import load_state


def test_predictions_are_counted_by_the_task_of_their_class():
    tasks = [[0, 1], [2], [3, 4]]
    assert confusion_row(torch.tensor([0, 3, 4, 4, 1, 3]), tasks) == [2, 0, 4]
    assert confusion_row(torch.tensor([], dtype=torch.long), tasks) == [0, 0, 0]
    for wrong in (5, -1):
        with pytest.raises(ValueError, match=f"class {wrong} was predicted, which is of none of 3 tasks"):
            confusion_row(torch.tensor([0, wrong]), tasks)


def test_a_run_keeps_the_counts_of_every_task(tmp_path):
    stream = tiny_stream()
    trainer = tiny_trainer(save_backbone(tmp_path / "vit"), tmp_path / "run", stream)
    trainer.train()
    found = read(tmp_path / "run", "metrics.json")
    counts = np.array(found["task_confusion"])
    assert counts.sum(axis=1).tolist() == [2 * TEST_PER_CLASS] * 3
    own_task = counts.diagonal() / counts.sum(axis=1)
    assert (own_task >= np.array(found["accuracy_matrix"][-1])).all()  # a right class is one of the right task
    for index, task in enumerate(stream):
        predicted = trainer.predict(trainer.decoded(task.test))
        assert counts[index].tolist() == [int(((predicted // 2) == other).sum()) for other in range(3)]
    for index in range(3):  # each task's folder holds those of its time
        state = load_state(tmp_path / "run" / f"task-{index + 1:02d}")
        assert np.shape(state["task_confusion"]) == (index + 1, index + 1)

    (tmp_path / "run" / "metrics.json").unlink()
    again = tiny_trainer(str(tmp_path / "vit"), tmp_path / "run", tiny_stream(), resume=True)
    assert again.train()["task_confusion"] == found["task_confusion"]


def test_a_broken_count_is_refused_and_an_older_file_is_not(tmp_path):
    tiny_trainer(save_backbone(tmp_path / "vit"), tmp_path / "run", tiny_stream(num_tasks=2)).train()
    folder = tmp_path / "run" / "task-02"
    state = read(folder, "trainer_state.json")
    (folder / "checksums.json").unlink()
    for wrong in ([[1, 2]], [[1, -2], [0, 1]], [[1.5, 0], [0, 1]], "text"):
        (folder / "trainer_state.json").write_text(json.dumps({**state, "task_confusion": wrong}))
        with pytest.raises(ValueError, match="task_confusion is"):
            load_state(folder)
    del state["task_confusion"]
    (folder / "trainer_state.json").write_text(json.dumps(state))
    load_state(folder)
