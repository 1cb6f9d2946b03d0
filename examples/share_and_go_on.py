"""A model on the Hub: one person trains and pushes, another goes on from yesterday's task, a third uses both.

    python examples/share_and_go_on.py

Alice teaches a model six digits in three tasks and pushes each as it ends. Bob, on another machine, downloads her
`task-02`, which knows four of them, teaches it two other digits from a folder of images, and pushes the result to a
repository of his own. Carol loads both through transformers' pipeline. Nobody has the others' images.

Each person is a process of its own with an own cache and token. The Hub is the one that the tests run, on this machine
(tests/hub_server.py); with HF_ENDPOINT unset and real tokens the same commands speak to huggingface.co.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from smope_hf.data.embedded import NAMES, digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from hub_server import HubServer, environment  # noqa: E402

RECIPE = "--backbone embedded --batch-size 32 --learning-rate 0.0005 --crop-scale 0.8,1.0 --flip-probability 0"
CLASSIFY = """
import sys
import smope_hf
from transformers import pipeline
image = sys.argv[1]
for model, revision in (("alice/digits", "task-02"), ("alice/digits", "main"), ("bob/digits", "main")):
    classifier = pipeline("image-classification", model=model, revision=revision, trust_remote_code=False)
    best = classifier(image)[0]
    classes = ", ".join(classifier.model.config.id2label.values())
    print(f"{model} at {revision} knows {classes}; for {image} it says: {best['label']} ({best['score']:.2f})")
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", default="4", help="of each task")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, HubServer(Path(scratch) / "hub") as hub:
        here = Path(scratch)
        write_images(here / "alice" / "photos", NAMES[:6])
        write_images(here / "bob" / "photos", NAMES[8:])
        alice = Person(hub, "alice", here / "alice")
        alice.run(
            f"smope train --dataset photos --num-tasks 3 --epochs {options.epochs} {RECIPE} --output-dir runs/digits "
            "--push-to-hub --hub-model-id alice/digits"
        )
        bob = Person(hub, "bob", here / "bob")
        bob.run("smope info alice/digits --revision task-02")
        bob.run("smope add-classes alice/digits --revision task-02 --data photos --output runs/more --push bob/digits")
        carol = Person(hub, None, here / "carol")
        (here / "bob" / "photos" / "test" / "nine" / "0.png").rename(here / "carol" / "nine.png")
        carol.python(CLASSIFY, "nine.png")
        for repo in ("alice/digits", "bob/digits"):
            state = hub.state(repo)
            print(f"{repo} has {len(state['commits'])} commits and the tags {', '.join(sorted(state['tags']))}")


class Person:
    """Somebody with a machine: a folder, a cache and a token of their own."""

    def __init__(self, hub: HubServer, name: str | None, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.folder = name or "carol, who has no token", folder
        self.environment = {
            **environment(hub, f"hf_{name}" if name else None, folder / "cache"),
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "PYTHONWARNINGS": "ignore",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def run(self, command: str):
        """Run a command line as this person, in sight."""
        print(f"\n[{self.name}] $ {command}", flush=True)
        subprocess.run(shlex.split(command), cwd=self.folder, env=self.environment, check=True)

    def python(self, code: str, *arguments: str):
        """Run Python code as this person, in sight."""
        print(f"\n[{self.name}] $ python - {' '.join(arguments)}\n{code.strip()}\n", flush=True)
        command = [sys.executable, "-c", code, *arguments]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True)


def write_images(folder: Path, names: list[str]):
    """Some digits as a folder of images: train/zero/0.png and so on."""
    for split, rows in digits().items():
        for row in rows:
            name = NAMES[row["label"]]
            if name in names:
                place = folder / split / name
                place.mkdir(parents=True, exist_ok=True)
                row["image"].save(place / f"{len(list(place.iterdir()))}.png")


if __name__ == "__main__":
    main()
