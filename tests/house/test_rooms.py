"""The house: which packages there are, that imports run downward only, and that nothing imports in a circle.

Imports inside functions and for type checking count like any other.
"""

import ast
import importlib
from pathlib import Path

import pytest

import smope_hf

PACKAGE = Path(smope_hf.__file__).parent
FLOORS = (
    "base", "storage", "settings", "metrics", "models", "data", "heads", "routing", "sharing", "training", "reports",
    "cli",
)  # fmt: skip
"""The packages of smope_hf, from the lowest up; each may import from those before it."""
AT_THE_TOP = {"__init__.py", "__main__.py", "version.py"}


def modules(package: Path) -> dict[str, Path]:
    """Dotted name below the package -> file, of every module; a package's own is its `__init__`."""
    files = {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}
    return {name: path for name, path in files.items() if ".for_evaluate." not in name}  # runs by itself, by its path


def imports(name: str, path: Path, known: dict[str, Path]) -> list[tuple[int, str, tuple[str, ...]]]:
    """Each import of another module of the package: its line, the module, and the names taken from it."""
    found = []
    here = name.split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "smope_hf"):
            start = here[: len(here) - node.level] if node.level else []
            module = (node.module or "").split(".") if node.level else node.module.split(".")[1:]
            target, names = ".".join([*start, *filter(None, module)]), tuple(alias.name for alias in node.names)
            below = [f"{target}.{one}".strip(".") for one in names]
            submodules = [one for one in below if one in known or f"{one}.__init__" in known]
            found += [(node.lineno, one, ()) for one in submodules]
            if len(submodules) < len(names):
                found.append((node.lineno, target, tuple(one for one in names if f"{target}.{one}" not in submodules)))
        elif isinstance(node, ast.Import):
            ours = [alias.name for alias in node.names if alias.name.split(".")[0] == "smope_hf"]
            found += [(node.lineno, one.partition(".")[2], ()) for one in ours]
    return [
        (line, target if target in known else f"{target}.__init__".strip("."), names) for line, target, names in found
    ]


def broken_rules(package: Path) -> list[str]:
    """Each import that breaks a rule: its file, its line and the rule."""
    known, broken = modules(package), []
    for name, path in known.items():
        room = name.split(".")[0]
        if f"{room}.py" in AT_THE_TOP:  # puts the packages together
            continue
        for line, target, names in imports(name, path, known):
            where, other = f"{path.relative_to(package.parent)}:{line} imports {target}", target.split(".")[0]
            if target not in known:
                broken.append(f"{where}: there is no such module")
            elif other == "__init__":
                broken.append(f"{where}: a package imports from the package below it, not from all of smope_hf")
            elif other != "version" and FLOORS.index(other) > FLOORS.index(room):
                broken.append(f"{where}: {room} is on a lower floor than {other}, and imports run downward only")
            if other != room:
                broken += [
                    f"{where}: {one} is private to {other}"
                    for one in names
                    if one.startswith("_") and not one.endswith("__")
                ]
    return broken + circles(package, known)


def circles(package: Path, known: dict[str, Path]) -> list[str]:
    """Each circle of imports between files, by its last import."""
    edges = {name: {target: line for line, target, _ in imports(name, path, known)} for name, path in known.items()}
    done, found = set(), []

    def follow(name: str, path: list[str]):
        for target, line in edges.get(name, {}).items():
            if target in path:
                circle = " -> ".join([*path[path.index(target) :], target])
                file = known[name].relative_to(package.parent)
                found.append(f"{file}:{line} imports {target}: files import in no circle, and here {circle}")
            elif target not in done:
                follow(target, [*path, target])
        done.add(name)

    for name in known:
        if name not in done and f"{name.split('.')[0]}.py" not in AT_THE_TOP:
            follow(name, [name])
    return found


def test_the_packages_are_those_of_the_plan_and_nothing_lies_beside_them():
    here = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert here == {*FLOORS, *AT_THE_TOP} and len(FLOORS) <= 12
    for floor in FLOORS:
        purpose = ast.get_docstring(ast.parse((PACKAGE / floor / "__init__.py").read_text(encoding="utf-8")))
        assert purpose and "Start with" in purpose, f"{floor} does not say what belongs there and where to start"


def test_imports_run_downward_and_in_no_circle():
    broken = broken_rules(PACKAGE)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("file", "source", "rule"),
    [
        ("storage/files.py", "from ..training import trainer", "storage is on a lower floor than training"),
        (
            "storage/files.py",
            "def f():\n    from ..training.trainer import Run",
            "files.py:2 imports training.trainer",
        ),
        ("training/trainer.py", "from smope_hf.cli.program import main", "training is on a lower floor than cli"),
        ("training/trainer.py", "import smope_hf.cli.program", "training is on a lower floor than cli"),
        ("training/trainer.py", "from .. import Run", "not from all of smope_hf"),
        ("training/trainer.py", "from ..storage.files import _write", "_write is private to storage"),
        ("training/trainer.py", "from .nowhere import Run", "there is no such module"),
        ("storage/files.py", "from .locks import lock", "files import in no circle"),
        ("storage/files.py", "if TYPE_CHECKING:\n    from .locks import lock", "files.py:2 imports storage.locks"),
    ],
)
def test_every_broken_rule_is_named(tmp_path, file, source, rule):
    package = tmp_path / "smope_hf"
    for name in ("__init__.py", "storage/files.py", "training/trainer.py", "cli/program.py", "storage/__init__.py"):
        (package / name).parent.mkdir(exist_ok=True, parents=True)
        (package / name).write_text("")
    (package / "storage/locks.py").write_text("from .files import write")
    assert not broken_rules(package)
    (package / file).write_text(source)
    assert any(rule in broken for broken in broken_rules(package)), broken_rules(package)


# ---------------------------------------------------------------------- the old places


def moved() -> dict[str, str]:
    return importlib.import_module("smope_hf.base.moved_modules").MOVED


@pytest.mark.parametrize("old", sorted(moved()))
def test_an_old_place_gives_the_module_of_the_new_one(old):
    import sys

    sys.modules.pop(f"smope_hf.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"smope_hf\.{old} is now smope_hf\.{moved()[old]}\. Import it from"):
        found = importlib.import_module(f"smope_hf.{old}")
    assert found is importlib.import_module(f"smope_hf.{moved()[old]}")
    assert found.__name__ == found.__spec__.name == f"smope_hf.{moved()[old]}"


def test_the_warning_names_the_users_line(tmp_path):
    import subprocess
    import sys

    script = tmp_path / "users.py"
    script.write_text("import sys\n\nfrom smope_hf.backbones import FAMILIES\nimport smope_hf.metrics\n")
    done = subprocess.run([sys.executable, "-W", "always", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"{script}:3: DeprecationWarning: smope_hf.backbones is now" in done.stderr


def test_what_was_never_there_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="smope_hf.nowhere"):
        importlib.import_module("smope_hf.nowhere")
