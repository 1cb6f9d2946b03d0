"""A world of good runs and checkpoints to break: SMoPE with all its records, every rival, a run that was stopped."""

import json
import shutil
import stat
from hashlib import sha256
from pathlib import Path

import datasets
import torch
from runs import AtStep, save_backbone, tiny_args, tiny_stream, tiny_trainer
from transformers import ViTImageProcessorPil

from smope_hf import ContinualTrainer, SMoPEForImageClassification
from smope_hf.models.modeling_prompted import PromptedForImageClassification
from smope_hf.training.routing_recorder import RoutingRecorder
from smope_hf.training.training_recorder import TrainingRoutingRecorder

RIVALS = ("l2p", "coda-prompt", "dualprompt", "ovor", "finetune", "linear", "ncm", "lda", "one-prompt")
FEW = {"epochs": 1}
COMPARED = {"compare_alignments": ["none", "gaussian"]}


class Stopped(Exception):
    pass


def stop(trainer):
    raise Stopped


def recorders() -> list:
    return [RoutingRecorder(images_per_task=4), TrainingRoutingRecorder()]


def build_world(root: Path) -> Path:
    """Train everything, each as short as can be."""
    base, stream = save_backbone(root / "base"), tiny_stream(num_tasks=2)
    tiny_trainer(base, root / "smope", stream, recorders(), **FEW, **COMPARED).train()
    stopped_trainer(root, [AtStep(1, 1, stop)], resume=False)
    for name in RIVALS:
        rival(base, name, root / name, stream)
    model = SMoPEForImageClassification.from_pretrained(root / "smope" / "task-02")
    shutil.copytree(root / "smope" / "task-02", root / "shards")
    model.save_pretrained(root / "shards", include_backbone=True, max_shard_size="40KB")
    shutil.copytree(root / "smope" / "task-02", root / "standalone")
    model.save_pretrained(root / "standalone", include_backbone=True)
    tests = [task.test for task in stream]
    (root / "images").mkdir()
    tests[0].images([0])[0].save(root / "images" / "a.png")
    for test in tests:
        for row in range(len(test)):
            name = "abcdef"[test.labels[row]]
            (root / "data" / "test" / name).mkdir(parents=True, exist_ok=True)
            test.images([row])[0].save(root / "data" / "test" / name / f"{row}.png")
    columns = "method,FAA,FAA std,parameters,GFLOPs train,GFLOPs test\n"
    (root / "costs").mkdir()
    (root / "costs" / "results.csv").write_text(columns + "smope,80.5,1.5,1000,0.5,0.5\nl2p,70,,2000,1,1\n")
    (root / "recipe.yaml").write_text(
        "epochs: 1\nbatch_size: 8\nbackbone: embedded\ndataset: embedded\nnum_tasks: 2\n"
    )
    return root


def rival(base: str, name: str, folder: Path, stream):
    torch.manual_seed(0)
    if name == "one-prompt":
        fields = {"num_experts": 6, "top_k": 6, "router_loss_coef": 0.0, "prototype_loss_coef": 0.0}
        model = SMoPEForImageClassification.from_backbone(base, **fields)
    else:
        model = PromptedForImageClassification.from_backbone(base, method=name)
    args = tiny_args(folder, **FEW, **({"alignment": name} if name in ("ncm", "lda") else {}))
    ContinualTrainer(model, args, stream, ViTImageProcessorPil.from_pretrained(base)).train()


def stopped_trainer(root: Path, callbacks, resume: bool = True):
    """A run that ends in its second task, behind the first step; with `resume` the same again."""
    options = {**FEW, **COMPARED, "checkpoint_every": 1, "resume": resume}
    trainer = tiny_trainer(str(root / "base"), root / "stopped", tiny_stream(), [*recorders(), *callbacks], **options)
    try:
        trainer.train()
    except Stopped:
        return
    raise AssertionError("the run was not stopped")


def new_classes(root: Path):
    """A stream of two classes that the models do not know."""
    from smope_hf import TaskStream

    rows = datasets.load_dataset("imagefolder", data_dir=str(root / "data"), split="test")
    rows = rows.cast_column("label", datasets.ClassLabel(names=list("uvwxyz")))
    return TaskStream(datasets.DatasetDict({"train": rows, "test": rows}), class_lists=[["u", "v"]])


def rehash(folder: Path, changed: str):
    """Make the hash of a file anew where its folder keeps it, as an attacker would."""
    file, listed, state = folder / changed, folder / "checksums.json", folder / "state.json"
    if not stat.S_ISREG(file.lstat().st_mode):
        return
    digest = sha256(file.read_bytes()).hexdigest()
    if changed != listed.name and listed.is_file():
        content = json.loads(listed.read_text())
        if changed in content["sha256"]:
            content["sha256"][changed] = digest
            listed.write_text(json.dumps(content))
    if changed != state.name and state.is_file():
        content = {name: value for name, value in json.loads(state.read_text()).items() if name != "sha256"}
        content["tensors"]["sha256"] = digest
        own = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        state.write_text(json.dumps({**content, "sha256": own}))
