"""Wheel and sdist hold the whole package: each is built, installed into an empty environment, and tried there.

Setuptools and `build` of the running environment build them, without isolation, so no network is needed.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from PIL import Image

import smope_hf

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
NOT_COPIED = shutil.ignore_patterns(".*", "runs", "site", "build", "dist", "*.egg-info", "__pycache__")
MEGABYTES = {"wheel": 3.5, "sdist": 3.5}  # most of it is the embedded backbone
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="virtual environments lie differently")]


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, run without anything of this process' own Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The two distributions, built by the command of `make dist` from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    source = shutil.copytree(ROOT, folder / "source", ignore=NOT_COPIED, symlinks=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", cwd=source)
    shutil.rmtree(source)
    (wheel,), (sdist,) = folder.glob("dist/*.whl"), folder.glob("dist/*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def files_of_the_package() -> set[str]:
    package = ROOT / "smope_hf"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


# ---------------------------------------------------------------------- what is in them


def test_the_wheel_holds_the_files_of_the_package_and_no_others(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names, information = set(wheel.namelist()), f"smope_hf-{smope_hf.__version__}.dist-info/"
        metadata = Parser().parsestr(wheel.read(f"{information}METADATA").decode())
        licence = wheel.read(f"{information}licenses/LICENSE").decode()
    assert {name for name in names if not name.startswith(information)} == files_of_the_package()
    assert licence == (ROOT / "LICENSE").read_text() and metadata["License-Expression"] == "Apache-2.0"


def test_the_sdist_holds_the_package_and_what_builds_it(built):
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames() if sdist.getmember(name).isfile()}
    made = {name for name in names if name.startswith("smope_hf.egg-info/")}
    beside = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "MANIFEST.in"}
    assert names - made == {*files_of_the_package(), *beside, "pyproject.toml", "PKG-INFO", "setup.cfg"}


@pytest.mark.parametrize("kind", MEGABYTES)
def test_neither_is_large(built, kind):
    assert built[kind].stat().st_size < MEGABYTES[kind] * 1e6


# ---------------------------------------------------------------------- installed and tried


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request, built, tmp_path_factory) -> Path:
    """The folder of commands of an empty environment with one distribution in it, and our dependencies in sight."""
    folder = tmp_path_factory.mktemp(f"installed-{request.param}")
    pip = (sys.executable, "-m", "pip")
    file = built[request.param]
    if request.param == "sdist":  # as pip does itself, but in the environment that has setuptools
        run(*pip, "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, file, cwd=folder)
        (file,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    commands = folder / "venv" / "bin"
    run(*pip, "--python", commands / "python", "install", "-q", "--no-deps", "--no-index", file, cwd=folder)
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # these folders are looked into, but not their own .pth files: an editable smope_hf in them stays out of sight
    (next(folder.glob("venv/lib/*/site-packages")) / "dependencies.pth").write_text("\n".join(ours) + "\n")
    return commands


TRAIN = (
    "train --dataset embedded --backbone embedded --num-tasks 5 --max-tasks 2 --max-train-samples-per-class 8 "
    "--max-test-samples-per-class 8 --epochs 1 --batch-size 16 --output-dir run"
).split()
METRIC = """
import json, evaluate, smope_hf
from smope_hf.metrics import EVALUATE_MODULE
metric = evaluate.load(EVALUATE_MODULE)
metric.add_batch(predictions=[0, 1], references=[0, 1], task_ids=[0, 0], stages=[0, 0])
metric.add_batch(predictions=[0, 0, 2, 3], references=[0, 1, 2, 3], task_ids=[0, 0, 1, 1], stages=[1, 1, 1, 1])
print(json.dumps([smope_hf.__file__, metric.compute()["final_average_accuracy"]]))
"""


def test_what_is_installed_trains_tells_and_predicts(installed, tmp_path):
    assert run(installed / "smope", "--version", cwd=tmp_path) == f"smope_hf {smope_hf.__version__}\n"
    run(installed / "smope", *TRAIN, cwd=tmp_path)  # loads the embedded backbone
    assert "<style>" in (tmp_path / "run" / "report.html").read_text()  # of the reports' templates
    assert "# " in (tmp_path / "run" / "task-02" / "README.md").read_text()  # of the model card's
    told = json.loads(run(installed / "smope", "info", "run", "--json", cwd=tmp_path))
    assert told["num_classes"] == 4 and len(told["tasks"]) == 2
    Image.new("RGB", (32, 32), "white").save(tmp_path / "digit.png")
    (found,) = json.loads(run(installed / "smope", "predict", "run", "digit.png", "--json", cwd=tmp_path))
    assert found["predictions"][0]["label"] in {name for task in told["tasks"] for name in task["classes"]}
    place, accuracy = json.loads(run(installed / "python", "-c", METRIC, cwd=tmp_path))
    assert Path(place).is_relative_to(installed.parent) and accuracy == 0.75
