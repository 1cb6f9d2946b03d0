"""Nobody is handed the whole trainer: read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import smope_hf.training.trainer
from smope_hf.training.callbacks import ContinualCallback

PACKAGE = Path(smope_hf.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
HEARD = {name for name in vars(ContinualCallback) if name.startswith("on_")} | {"saved_state", "restore_state"}
TRAINER = {cls.__name__ for cls in smope_hf.training.trainer.ContinualTrainer.__mro__ if cls is not object}
ALLOWED = {  # method of the trainer's classes, and what it may give the trainer to
    ("_tell", "getattr(callback, event)"),  # callbacks are told by it: their interface
    ("_take_folder", "weakref.finalize"),  # lets the folder go when the trainer is gone
}


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for file in FILES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef):
                yield file, node


def callback_classes() -> set[str]:
    """Names of the classes that are callbacks, however far down."""
    found, before = {"ContinualCallback"}, set()
    while found != before:
        before = set(found)
        found |= {node.name for _, node in classes() if found & {ast.unparse(base) for base in node.bases}}
    return found


def parameters(node) -> list[ast.arg]:
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [one for one in every if one is not None]


def takes_a_trainer(one: ast.arg) -> bool:
    annotated = "" if one.annotation is None else ast.unparse(one.annotation)
    return one.arg == "trainer" or "ContinualTrainer" in annotated


def test_no_function_takes_a_trainer_but_what_callbacks_hear():
    callbacks, found = callback_classes(), []
    for file in FILES:
        tree = parsed(file)
        heard = {
            part
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.name in callbacks
            for part in node.body
            if isinstance(part, ast.FunctionDef) and part.name in HEARD
        }
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and node not in heard:
                found += [f"{file.name}:{node.lineno}" for one in parameters(node) if takes_a_trainer(one)]
            if isinstance(node, ast.Attribute) and node.attr in ("trainer", "_trainer"):
                found += [f"{file.name}:{node.lineno}"]
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "trainer":  # a field of a dataclass
                found += [f"{file.name}:{node.lineno}"]
    assert callbacks > {"ContinualCallback"} and not found


def test_the_trainer_gives_itself_to_nobody():
    found, read = [], set()
    for file, node in classes():
        if node.name not in TRAINER:
            continue
        read.add(node.name)
        for method in node.body:
            for call in ast.walk(method):
                if isinstance(call, ast.Call):
                    given = [*call.args, *(word.value for word in call.keywords)]
                    given = [one.value if isinstance(one, ast.Starred) else one for one in given]
                    bare = any(isinstance(one, ast.Name) and one.id == "self" for one in given)
                    if bare and (method.name, ast.unparse(call.func)) not in ALLOWED:
                        found.append(f"{file.name}:{call.lineno}: {ast.unparse(call)}")
    assert read == TRAINER and not found
