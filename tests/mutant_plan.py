"""Which mutants are tried: so many of each file of the world."""

import random
from collections.abc import Iterator
from pathlib import Path

from mutant_world import RIVALS
from mutants import Mutant, file_mutants, json_mutants, tensor_mutants

TASK = "smope/task-02"
JSON = {  # mutants of fields, by file
    f"{TASK}/config.json": 48, f"{TASK}/trainer_state.json": 30, f"{TASK}/manifest.json": 26,
    f"{TASK}/routing.json": 30, f"{TASK}/checksums.json": 12, f"{TASK}/preprocessor_config.json": 16,
    "smope/metrics.json": 44, "smope/manifest.json": 10,
    "smope/routing_patterns.json": 22, "smope/routing_training.json": 22, "stopped/state/state.json": 36,
    "stopped/routing_patterns.json": 5, "stopped/routing_training.json": 5,
    "shards/model.safetensors.index.json": 10, "standalone/config.json": 12, "base/config.json": 8,
}  # fmt: skip
TENSORS = {
    f"{TASK}/model.safetensors": 18, f"{TASK}/class_statistics.safetensors": 18, "standalone/model.safetensors": 10,
    "stopped/other_alignments/task-01.safetensors": 12, "stopped/routing_selections/task-01.safetensors": 8,
    "base/model.safetensors": 6,
}  # fmt: skip
OTHERS = {"costs/results.csv": 6, "recipe.yaml": 6, "images/a.png": 6}
OF_A_RIVAL = {"config.json": 5, "trainer_state.json": 2, "manifest.json": 1}
TENSORS_OF_A_RIVAL = {"model.safetensors": 2, "class_statistics.safetensors": 2}
OF_THE_STATE = 12  # of the tensors in state/
WHOLE = 5  # of each file that is listed above, all kinds of it in turn


def sample(world: Path, folder: str, chance: random.Random) -> Iterator[Mutant]:
    """A few mutants of each file of one checkpoint."""
    names = ("config.json", "trainer_state.json", "manifest.json", "routing.json", "checksums.json")
    for name in names:
        yield from json_mutants(world, f"{folder}/{name}", 4, chance)
        yield from file_mutants(world, f"{folder}/{name}", f"{folder}/model.safetensors", chance, 1)
    yield from tensor_mutants(world, f"{folder}/class_statistics.safetensors", 5, chance)
    yield from file_mutants(world, f"{folder}/class_statistics.safetensors", f"{folder}/config.json", chance, 1)


def plan(world: Path, chance: random.Random) -> Iterator[Mutant]:
    """All mutants, in a fixed order."""
    state = next((world / "stopped" / "state").glob("*.safetensors")).relative_to(world)
    tensors = {**TENSORS, str(state): OF_THE_STATE}
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
