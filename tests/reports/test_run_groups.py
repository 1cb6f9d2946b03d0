"""Several runs: which are seeds of one recipe, which are on other tasks, and what a run's folder tells."""

import json
import shutil

import numpy as np
import pytest
from runs import read, save_backbone, tiny_stream, tiny_trainer

from smope_hf.reports.run_folder import RunFolder, open_runs
from smope_hf.reports.run_groups import by_protocol, different_settings, group_runs
from smope_hf.reports.run_pictures import group_pictures


def write(folder, matrix=((0.9,), (0.8, 0.7)), method="SMoPE", protocol="p", model=None, **recipe):
    content = {"accuracy_matrix": matrix, "method": method, "protocol_hash": protocol, "recipe": recipe}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({**content, "model": model or {"top_k": 5}}))
    return folder


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path):
    paths = [write(tmp_path / f"a{seed}", seed=seed, epochs=2) for seed in range(3)]
    paths.insert(1, write(tmp_path / "longer", seed=0, epochs=9))
    paths.append(write(tmp_path / "wider", seed=0, epochs=2, model={"top_k": 9}))
    paths += [write(tmp_path / f"rival{seed}", seed=seed, epochs=2, method="L2P") for seed in range(2)]
    groups = group_runs(open_runs(paths))
    assert [list(group.runs) for group in groups] == [
        ["a0", "a1", "a2"], ["longer"], ["wider"], ["rival0", "rival1"]
    ]  # fmt: skip
    assert [group.label for group in groups] == ["SMoPE (epochs=2, top_k=5)", "longer", "wider", "L2P"]
    assert different_settings(groups) == ["epochs", "top_k"]
    average = next(picture for picture in group_pictures(groups) if picture.name == "average_accuracy")
    axes = average.draw(tmp_path / "a.png", dpi=50).axes[0]
    assert len(axes.lines) == 4 and len(axes.collections) == 2  # two groups of several seeds have bands


def test_what_cannot_be_averaged_stays_alone(tmp_path):
    whole = [write(tmp_path / f"a{seed}", seed=seed, epochs=2) for seed in range(2)]
    cut = write(tmp_path / "cut", matrix=[[0.9]], seed=2, epochs=2)
    gap = write(tmp_path / "gap", matrix=[[None], [0.5, 0.5]], seed=3, epochs=2)
    groups = group_runs(open_runs([*whole, cut, gap]))
    assert [list(group.runs) for group in groups] == [["a0", "a1"], ["cut"], ["gap"]]
    with pytest.raises(ValueError, match="gap: not every task was tested"):
        group_pictures(groups)
    unknown = [tmp_path / "x", tmp_path / "y"]  # nobody knows whether they are seeds of one recipe
    for path in unknown:
        path.mkdir()
        (path / "metrics.json").write_text(json.dumps({"accuracy_matrix": [[1]]}))
    assert [group.label for group in group_runs(open_runs(unknown))] == ["x", "y"]


def test_runs_on_other_tasks_are_parted(tmp_path):
    paths = [write(tmp_path / name, protocol=protocol) for name, protocol in (("a", "p"), ("b", "q"), ("c", "p"))]
    assert [list(part) for part in by_protocol(open_runs(paths))] == [["a", "c"], ["b"]]
    with pytest.raises(ValueError, match="given twice"):
        open_runs([paths[0], paths[0]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_trainer(save_backbone(folder / "vit"), folder / "run", tiny_stream()).train()
    return folder / "run"


def test_a_run_reads_the_same_with_and_without_its_results(run, tmp_path):
    cut = shutil.copytree(run, tmp_path / "cut")
    for name in ("metrics.json", "manifest.json"):
        (cut / name).unlink()
    whole, cut = RunFolder(run), RunFolder(cut)
    assert whole.finished and not cut.finished
    for name in ("method", "model", "recipe", "protocol_hash", "manifest"):
        assert getattr(whole, name) == getattr(cut, name), name
    assert whole.matrix.to_json() == cut.matrix.to_json() and whole.model["num_experts"] == 6
    np.testing.assert_array_equal(whole.confusion, cut.confusion)
    assert whole.usage.shape == (3, 2, 2, 6)
    second = RunFolder(run / "task-02")
    assert len(second.matrix) == 2 and second.usage.shape[0] == 2
    for layer in range(2):  # the marks of its time, read from the run or from the task alone
        np.testing.assert_array_equal(second.marks(1)[layer], whole.marks(1)[layer])
        for head in range(2):
            marked = read(run / "task-02", "routing.json")["layers"][layer]["frequently_used_experts"][head]
            assert np.flatnonzero(whole.marks(1)[layer][head]).tolist() == marked
    assert any(whole.marks(1)[layer].any() for layer in range(2)) and whole.marks(7) is None


def test_a_folder_without_a_run_and_broken_results_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunFolder(tmp_path)
    for broken, message in (
        ({"accuracy_matrix": [[2]]}, r"accuracy_matrix is \[\[2\]\]"),
        ({"method": 3}, "method is 3"),
        ({"task_confusion": [[1, 2]]}, "task_confusion is"),
        ({"yardstick_matrices": {"lda": [["x"]]}}, "yardstick_matrices.lda is"),
        ({"recipe": []}, "recipe is"),
    ):
        (tmp_path / "metrics.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            RunFolder(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="accuracy_matrix is missing"):
        RunFolder(tmp_path).matrix
