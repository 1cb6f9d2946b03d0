"""A model that is taught class after class, a hundred times: what it says of its past stays readable."""

import datasets
import pytest
from PIL import Image

from smope_hf import TaskStream
from smope_hf.data.continued_stream import ContinuedStream
from smope_hf.data.manifest import check_manifest, earlier_runs
from smope_hf.sharing.model_card import _hub_datasets
from smope_hf.storage.files import write_json
from smope_hf.storage.safe_json import read_json

ADDITIONS = 100


def one_class(index: int) -> TaskStream:
    pictures = [Image.new("RGB", (4, 4), (index, shade, 0)) for shade in (0, 100)]
    label = datasets.ClassLabel(names=[f"class {index}"])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    split = {name: datasets.Dataset.from_dict({"image": [picture], "label": [0]}, features=features)
             for name, picture in zip(("train", "test"), pictures, strict=True)}  # fmt: skip
    stream = TaskStream(datasets.DatasetDict(split), num_tasks=1, name=f"data {index % 3}")
    stream.source = {"name_or_path": f"owner/data-{index % 3}", "local": False}
    return stream


def depth(value) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, parts), default=0)


@pytest.fixture(scope="module")
def manifests() -> list[dict]:
    found = [one_class(0).manifest()]
    for index in range(1, ADDITIONS):
        found.append(ContinuedStream(found[-1], one_class(index)).manifest())
    return found


def test_the_manifest_is_read_back_and_nests_no_deeper(manifests, tmp_path):
    write_json(tmp_path / "manifest.json", manifests[-1])
    content = read_json(tmp_path / "manifest.json")
    check_manifest(content, tmp_path / "manifest.json")
    assert content == manifests[-1] and depth(manifests[-1]) == depth(manifests[2])


def test_it_tells_of_every_run_that_was_gone_on_from(manifests):
    runs = earlier_runs(manifests[-1]["information"])
    assert [run["num_tasks"] for run in runs] == list(range(1, ADDITIONS))
    assert [run["protocol_hash"] for run in runs] == [manifest["protocol_hash"] for manifest in manifests[:-1]]
    assert runs[-1] == manifests[-1]["information"]["continues"]


def test_its_size_grows_with_the_additions_and_not_with_their_square(manifests):
    sizes = [len(str(manifest)) for manifest in manifests]
    assert sizes[-1] - sizes[-2] < 1.1 * (sizes[3] - sizes[2])


def test_a_manifest_of_an_earlier_version_that_nests_its_runs_tells_the_same(manifests):
    nested = manifests[0]
    for manifest in manifests[1:6]:
        before = {name: value for name, value in nested.items() if name != "tasks"}
        information = {name: value for name, value in manifest["information"].items() if name != "earlier"}
        continues = {"num_tasks": len(nested["tasks"]), **before}
        nested = {**manifest, "information": {**information, "continues": continues}}
    check_manifest(nested, "manifest.json")
    assert earlier_runs(nested["information"]) == earlier_runs(manifests[5]["information"])
    assert ContinuedStream(nested, one_class(6)).manifest() == manifests[6]


def test_the_card_names_each_data_set_once(manifests):
    assert _hub_datasets(manifests[-1]) == ["owner/data-0", "owner/data-1", "owner/data-2"]
