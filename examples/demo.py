"""The whole story in one command, without a Hub: learn handwritten digits two by two, then use the result.

    python examples/demo.py        # or: make demo

A small ViT that has only ever seen rendered letters (examples/pretrain_backbone.py made it) learns scikit-learn's
handwritten digits in 5 tasks of 2. Three yardsticks run on the same tasks. Then a fresh process loads the last
checkpoint through transformers' pipeline and classifies three test images.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from train import main as train

from smope_hf.base.home import home_path
from smope_hf.base.printing import say
from smope_hf.data.embedded import NAMES, digits
from smope_hf.training.run_lock import LOCK_FILE, hold_folder

RECIPE = [
    "--dataset", "embedded", "--num_tasks", "5", "--backbone", "embedded", "--yardsticks", "true",
    "--epochs", "10", "--batch_size", "32", "--learning_rate", "0.0005",
    "--crop_scale", "0.8", "1.0", "--flip_probability", "0",
]  # fmt: skip
CLASSIFY = """
import sys
import smope_hf
from transformers import pipeline
classifier = pipeline("image-classification", model=sys.argv[1], trust_remote_code=False)
for path, (best, *_) in zip(sys.argv[2:], classifier(sys.argv[2:])):
    print(f"{path}: {best['label']} ({best['score']:.2f})")
"""


def main():
    parser = argparse.ArgumentParser(description="Learn digits task after task and use the result.")
    parser.add_argument("--output_dir", type=home_path, default=Path("runs/demo"))
    parser.add_argument("--num_threads", default="2")
    options = parser.parse_args()
    remove_last_demo(options.output_dir)  # a run that goes on there is not
    train([*RECIPE, "--output_dir", str(options.output_dir), "--num_threads", options.num_threads])
    images = save_images(options.output_dir / "images")
    print("A fresh process loads the last checkpoint and classifies three test images:", flush=True)
    checkpoint = str(options.output_dir / "task-05")
    subprocess.run([sys.executable, "-W", "ignore", "-c", CLASSIFY, checkpoint, *images], check=True)
    say(f"Checkpoints, metrics and plots: {options.output_dir}")


def remove_last_demo(folder: Path):
    """Start anew each time, but delete nothing that is not a run, or a run that goes on."""
    try:
        hold = hold_folder(folder)
    except OSError as error:
        sys.exit(f"error: {error}")
    try:
        there = [path for path in folder.iterdir() if path.name != LOCK_FILE]
        if there and not (folder / "task-01" / "trainer_state.json").is_file():
            sys.exit(f"error: {folder} is not empty and holds no run of this demo. Give another --output_dir.")
        for path in there:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    finally:
        hold.release()


def save_images(folder: Path) -> list[str]:
    """Write three test images, of different digits, as files that carry their true name."""
    folder.mkdir(parents=True, exist_ok=True)
    test = digits()["test"]
    paths = []
    for digit in (0, 4, 9):
        row = test["label"].index(digit)
        paths.append(str(folder / f"{NAMES[digit]}.png"))
        test[row]["image"].save(paths[-1])
    return paths


if __name__ == "__main__":
    main()
