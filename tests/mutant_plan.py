"""Which mutants are tried: so many of each file of the world."""

import random
from collections.abc import Iterator
from pathlib import Path

from mutant_world import RIVALS
from mutants import Mutant, file_mutants, json_mutants, tensor_mutants

TASK = "smope/task-02"
JSON = {  # mutants of fields, by file
    f"{TASK}/config.json": 60, f"{TASK}/trainer_state.json": 40, f"{TASK}/manifest.json": 36,
    f"{TASK}/routing.json": 40, f"{TASK}/checksums.json": 16,
    "smope/metrics.json": 60, "smope/manifest.json": 16, "smope/routing_patterns.json": 30,
    "smope/routing_training.json": 30, "stopped/state/state.json": 50, "stopped/routing_patterns.json": 8,
    "stopped/routing_training.json": 8, "shards/model.safetensors.index.json": 12, "standalone/config.json": 16,
    "base/config.json": 10,
}  # fmt: skip
TENSORS = {
    f"{TASK}/model.safetensors": 20, f"{TASK}/class_statistics.safetensors": 20, "standalone/model.safetensors": 12,
    "stopped/other_alignments/task-01.safetensors": 16, "stopped/routing_selections/task-01.safetensors": 12,
    "base/model.safetensors": 6,
}  # fmt: skip
OTHERS = {"costs/results.csv": 8, "recipe.yaml": 8, "images/a.png": 8}
OF_A_RIVAL = {"config.json": 6, "trainer_state.json": 2, "manifest.json": 1}
TENSORS_OF_A_RIVAL = {"model.safetensors": 3, "class_statistics.safetensors": 2}
WHOLE = 6  # of each file that is listed above, all kinds of it in turn


def sample(world: Path, folder: str, chance: random.Random) -> Iterator[Mutant]:
    """A few mutants of each file of one checkpoint."""
    names = ("config.json", "trainer_state.json", "manifest.json", "routing.json", "checksums.json")
    for name in names:
        yield from json_mutants(world, f"{folder}/{name}", 6, chance)
        yield from file_mutants(world, f"{folder}/{name}", f"{folder}/model.safetensors", chance, 2)
    yield from tensor_mutants(world, f"{folder}/class_statistics.safetensors", 10, chance)
    yield from file_mutants(world, f"{folder}/class_statistics.safetensors", f"{folder}/config.json", chance, 2)


def plan(world: Path, chance: random.Random) -> Iterator[Mutant]:
    """All mutants, in a fixed order."""
    state = next((world / "stopped" / "state").glob("*.safetensors")).relative_to(world)
    tensors = {**TENSORS, str(state): 16}
    for file, count in JSON.items():
        yield from json_mutants(world, file, count, chance)
    for file, count in tensors.items():
        yield from tensor_mutants(world, file, count, chance)
    listed = [*JSON, *tensors, *OTHERS]
    for place, file in enumerate(listed):
        other = listed[(place + 3) % len(listed)]
        yield from file_mutants(world, file, other, chance, OTHERS.get(file, WHOLE))
    for name in RIVALS:
        for file, count in OF_A_RIVAL.items():
            yield from json_mutants(world, f"{name}/task-02/{file}", count, chance)
        for file, count in TENSORS_OF_A_RIVAL.items():
            yield from tensor_mutants(world, f"{name}/task-02/{file}", count, chance)
