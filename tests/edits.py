"""Edits of a checkpoint that its hashes tell."""

import json

from runs import read
from safetensors.torch import load_file, save_file

from smope_hf import SMoPEForImageClassification
from smope_hf.sharing.checkpoint import load_manifest, load_state, load_statistics
from smope_hf.sharing.source import find_checkpoint
from smope_hf.sharing.statistics_file import load_routing


def edit_json(name, **fields):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **fields}, indent=2))

    return edit


def edit_tensors(name, tensor):
    """A value that every other check lets through."""

    def edit(folder):
        tensors = load_file(folder / name)
        tensors[tensor] = tensors[tensor].clone()
        tensors[tensor].flatten()[0] += 1
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return edit


def add_seconds(folder):
    state = read(folder, "trainer_state.json")
    state["seconds_by_task"][0]["training"] += 1
    (folder / "trainer_state.json").write_text(json.dumps(state))


def add_information(folder):
    manifest = read(folder, "manifest.json")
    edit_json("manifest.json", information={**manifest["information"], "note": "mine"})(folder)


load_model = SMoPEForImageClassification.from_pretrained


EDITS = {
    "config.json": (edit_json("config.json", noise_epsilon=0.41), load_model),
    "model.safetensors": (edit_tensors("model.safetensors", "prefix_experts.0.usage_counts"), load_model),
    "class_statistics.safetensors": (edit_tensors("class_statistics.safetensors", "mean"), load_statistics),
    "trainer_state.json": (add_seconds, load_state),
    "manifest.json": (add_information, load_manifest),
    "routing.json": (edit_json("routing.json", noise_epsilon=0.41), load_routing),
    "preprocessor_config.json": (edit_json("preprocessor_config.json", image_mean=[0.4] * 3), find_checkpoint),
}
