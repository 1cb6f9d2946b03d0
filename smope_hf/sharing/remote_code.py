"""A model's code as files of one folder, for machines without smope_hf.

transformers copies a modeling file and what it imports relatively from its own folder. In the package the files that a
model needs lie in several folders. Here they are brought into one, and their imports are written for that.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..models import modeling_incremental
from ..models.modeling_incremental import IncrementalClassifier
from ..storage.config_fields import CODE

_PACKAGE = Path(modeling_incremental.__file__).parents[1]
_IMPORT = re.compile(r"from\s+\.+\w[\w.]*\s+import\b")
Module = tuple[str, ...]  # its packages below smope_hf, and its name


def auto_map(model_class: type[IncrementalClassifier]) -> dict[str, str]:
    """Where transformers' Auto classes find a model's code beside its config."""
    return CODE[model_class.config_class.model_type]


def code_of(model_class: type[IncrementalClassifier]) -> dict[str, str]:
    """The source files that a model needs to be loaded without smope_hf.

    Returns:
        Name of each file -> its source. Every relative import in it names another of the files.

    Raises:
        ValueError: for a relative import that names no module's file.
    """
    wanted = [("models", reference.split(".")[0]) for reference in auto_map(model_class).values()]
    imports: dict[Module, dict[int, Module]] = {}
    while wanted:
        module = wanted.pop()
        if module not in imports:
            imports[module] = _relative_imports(module)
            wanted += imports[module].values()
    names = _flat_names(imports)
    return {f"{names[module]}.py": _rewritten(module, imports[module], names) for module in sorted(imports)}


def write_code(model_class: type[IncrementalClassifier], folder: Path) -> dict[str, Path]:
    """Write `code_of` a model into a folder: name of each file -> the file."""
    sources = code_of(model_class)
    for name, source in sources.items():
        (folder / name).write_text(source, encoding="utf-8")
    return {name: folder / name for name in sources}


def _file(module: Module) -> Path:
    return _PACKAGE.joinpath(*module).with_suffix(".py")


def _relative_imports(module: Module) -> dict[int, Module]:
    """Line of each relative import of a module -> the module that it imports from."""
    found = {}
    for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = module[: len(module) - node.level]
            target = (*package, *(node.module or node.names[0].name).split("."))
            beside = node.module is None and node.level == 1 and len(node.names) == 1  # from . import module
            if not _file(target).is_file() or (node.module is None and not beside):
                raise ValueError(
                    f"{_file(module)}:{node.lineno} imports from {'.'.join(target)}, which is no module's file. Code "
                    "that travels with a model names the module: from .module import name, or from . import module."
                )
            found[node.lineno] = target
    return found


def _flat_names(modules: Iterable[Module]) -> dict[Module, str]:
    """A name for each module in one folder: its own, or its whole path where two have the same."""
    count = Counter(module[-1] for module in modules)
    return {module: module[-1] if count[module[-1]] == 1 else "_".join(module) for module in modules}


def _rewritten(module: Module, imports: dict[int, Module], names: dict[Module, str]) -> str:
    lines = _file(module).read_text(encoding="utf-8").splitlines(keepends=True)
    for line, target in imports.items():
        lines[line - 1] = _IMPORT.sub(f"from .{names[target]} import", lines[line - 1], count=1)
    return "".join(lines)
