"""What the package may be installed with, and `make audit`, which looks up what is known against it."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNBOUNDED = {"fsspec"}  # versions are dates, and datasets says which it takes
EXTRAS = ("demo", "docs", "trackers", "export")  # what users install


def users_requirements() -> list[Requirement]:
    named = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in EXTRAS)]
    return [Requirement(line) for lines in named for line in lines]


def pinned(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if "==" in line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("requirement", users_requirements(), ids=lambda each: each.name)
def test_a_next_major_version_is_not_taken_unseen(requirement):
    signs = {specifier.operator for specifier in requirement.specifier}
    assert requirement.name in UNBOUNDED or {"<", ">="} <= signs, str(requirement)


def test_the_tested_and_the_lowest_versions_are_allowed():
    tested, lowest = pinned("constraints.txt"), pinned("constraints-oldest.txt")
    for requirement in users_requirements():
        for versions in (tested, lowest):
            version = versions.get(requirement.name.lower())
            assert version is None or version in requirement.specifier, f"{requirement} and {version}"
    assert {"torch", "numpy", "pillow", "safetensors", "rich", "typer", "pyyaml", "gradio"} <= tested.keys()


# ---------------------------------------------------------------------- make audit

KNOWN = {"id": "PYSEC-1", "fix_versions": ["12.3.1"], "aliases": [], "description": ""}
FINE = {"name": "numpy", "version": "2.4.6", "vulns": []}
BAD = {"name": "pillow", "version": "12.3.0", "vulns": [KNOWN]}
UNKNOWN = {"name": "torch", "version": "2.13.0", "skip_reason": "not found"}


def audit(folder: Path, answers: dict) -> subprocess.CompletedProcess:
    """`.ci/audit` with a pip-audit of ours in place of the real one, which says what `answers` has for a service."""
    (folder / "pip_audit.py").write_text(
        "import json, sys\n"
        f"answers = {answers!r}\n"
        "service = sys.argv[sys.argv.index('--vulnerability-service') + 1]\n"
        "if service not in answers:\n    sys.exit('Failed to resolve the host of ' + service)\n"
        "listed = open(sys.argv[sys.argv.index('--requirement') + 1]).read()\n"
        "assert 'numpy==' in listed and '+' not in listed and 'smope' not in listed, listed\n"
        "print(json.dumps({'dependencies': answers[service], 'fixes': []}))\n"
    )
    command = [sys.executable, str(ROOT / ".ci" / "audit"), sys.executable]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)})


@pytest.mark.parametrize(
    ("answers", "status", "says"),
    [
        ({"osv": [FINE, FINE]}, 0, "2 of 2 packages looked up, 0 known vulnerabilities."),
        ({"osv": [FINE, BAD]}, 1, "pillow 12.3.0: PYSEC-1, fixed in 12.3.1"),
        ({"osv": [FINE, UNKNOWN]}, 0, "not looked up: torch: not found"),
        ({"pypi": [BAD]}, 1, "1 of 1 packages looked up, 1 known"),
        ({"pypi": [UNKNOWN, UNKNOWN]}, 3, "no network: no advisories could be reached"),
        ({}, 3, "no network: no advisories could be reached"),
    ],
    ids=["fine", "known", "one unknown", "second service", "nobody knows any", "no network"],
)
def test_the_audit_tells_clean_from_not_looked_up(tmp_path, answers, status, says):
    result = audit(tmp_path, answers)
    assert result.returncode == status and says in result.stdout, json.dumps([result.stdout, result.stderr])
