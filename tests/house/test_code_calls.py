"""No library call of ours can run code of a repository: what calls there are is read from the sources.

Read are the package, the examples with the page, the notebooks, the code blocks of README, docs and model cards, the
template of model cards, and code that stands in a text of those. A call that may run code has to say
`trust_remote_code=False` (or what is like it); what is left stands in `ALLOWED` with the reason.
"""

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from doc_blocks import blocks_of

from smope_hf.settings.recipe_yaml import RecipeLoader

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "smope_hf/sharing/model_card_template.md"
OURS = "a class of smope_hf: it takes code from no repository, whatever it is told"
USERS = "the reader's own repository, whose code is documented there as the reader's own option"
ALLOWED = {  # file and what is called -> why
    (
        "smope_hf/models/pretrained.py",
        "super().from_pretrained",
    ): "transformers' loader of our class, with tensors",
    ("smope_hf/training/trainer_folder.py", "type(self.model).from_pretrained"): OURS,
    ("smope_hf/sharing/hub_files.py", "model_class.from_pretrained"): OURS,
    ("smope_hf/sharing/source.py", "model_class.from_pretrained"): OURS,
    ("smope_hf/__init__.py", "importlib.import_module"): "the module's name is from a table beside it",
    ("smope_hf/base/moved_modules.py", "importlib.import_module"): "the module's name is from a table beside it",
    ("smope_hf/metrics/__init__.py", "importlib.import_module"): "the module's name stands beside it",
    ("smope_hf/models/auto_classes.py", "importlib.import_module"): "the module's name is from a table beside it",
    ("smope_hf/models/export.py", "torch.export.load"): "the file that was written in the line before",
    ("smope_hf/sharing/source.py", "snapshot_download"): "JSON and safetensors alone, by allow_patterns",
    (
        "smope_hf/data/reading.py",
        "datasets.load_dataset",
    ): "datasets 5 runs no script; there is no option that lets it",
    ("smope_hf/data/reading.py", "datasets.load_from_disk"): "Arrow files and JSON, which hold no code",
    ("docs/guides/own-data.md", "load_dataset"): "datasets 5 runs no script; there is no option that lets it",
    (TEMPLATE, "AutoModelForImageClassification.from_pretrained"): USERS,
    (TEMPLATE, "pipeline"): "the repository of the card's own reader, whose image processor a run has written",
    ("model_cards/letters-vit-digits.md", "pipeline"): "a folder of the reader's own",
}
NEVER = {
    "exec", "eval", "compile", "__import__", "execfile", "os.system", "os.popen", "runpy.run_path", "runpy.run_module",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load",
    "cloudpickle.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "torch.hub.load",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pandas.read_pickle", "pd.read_pickle",
    "get_class_from_dynamic_module", "get_kernel", "load_kernel", "importlib.import_module",
    "importlib.util.spec_from_file_location", "load_module", "snapshot_download", "huggingface_hub.snapshot_download",
    "load_dataset", "datasets.load_dataset", "load_dataset_builder", "load_from_disk", "datasets.load_from_disk",
}  # fmt: skip
"""Calls that stand in no source but where `ALLOWED` says why."""
NEVER_IMPORTED = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "imp", "kernels"}
OWN_FOLDERS = re.compile(r"(runs/|my-vit|taught-model|me/)")  # what the readers of our pages have made themselves


def _name(node: ast.Call | ast.Import | ast.ImportFrom) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


def _keyword(call: ast.Call, name: str):
    """The value of a keyword: a constant, or the text of what else stands there; None where it is not given."""
    for word in call.keywords:
        if word.arg == name:
            return word.value.value if isinstance(word.value, ast.Constant) else ast.unparse(word.value)
    return None


def _is_the_readers_own(call: ast.Call) -> bool:
    """Whether a page loads what its reader has made: such as a run's folder, or the embedded backbone."""
    given = [*call.args, *(word.value for word in call.keywords if word.arg == "model")]
    places = [part for part in given if not (isinstance(part, ast.Constant) and part.value == "image-classification")]
    if not places:
        return False
    place = places[0]
    if isinstance(place, ast.Constant) and isinstance(place.value, str):
        return OWN_FOLDERS.match(place.value) is not None
    return ast.unparse(place) == "local_name('embedded')" or "folder / 'run'" in ast.unparse(place)


def problem(call: ast.Call | ast.Import | ast.ImportFrom, is_page: bool) -> str | None:
    """What is wrong with a call or an import, if anything."""
    name = _name(call)
    if not isinstance(call, ast.Call):
        modules = [call.module or ""] if isinstance(call, ast.ImportFrom) else [alias.name for alias in call.names]
        return "it is there to run code" if NEVER_IMPORTED & {name.split(".")[0] for name in modules} else None
    last = name.rpartition(".")[2]
    trust = _keyword(call, "trust_remote_code")
    if trust is not None and trust is not False:
        return f"trust_remote_code={trust}"
    if name in NEVER:
        return "it can run code"
    if name.split(".")[0] in ("subprocess", "Popen") and _keyword(call, "shell") not in (None, False):
        return "a shell is started"
    if last == "load" and name.startswith("torch") and _keyword(call, "weights_only") is not True:
        return "weights_only=True is missing"
    if name in ("np.load", "numpy.load") and _keyword(call, "allow_pickle") not in (None, False):
        return "allow_pickle is on"
    if name == "yaml.load" and _keyword(call, "Loader") not in ("RecipeLoader", "yaml.SafeLoader"):
        return "Loader is no safe one"
    if name == "evaluate.load" and not [a for a in call.args if ast.unparse(a).endswith("EVALUATE_MODULE")]:
        return "evaluate.load runs what it fetches: give the package's own EVALUATE_MODULE"
    if last in ("from_pretrained", "pipeline", "get_pretrained"):
        if "ImageProcessor" in name and last == "from_pretrained" and not is_page:
            return "image processors are loaded by image_processors.load_image_processor alone"
        if trust is False or (is_page and _is_the_readers_own(call)):
            return None
        return "trust_remote_code=False is missing"
    return None


def calls_in(code: str, line: int = 1) -> Iterator[tuple[int, ast.Call | ast.Import | ast.ImportFrom]]:
    """The calls and imports of a source, and those of code that stands in its texts; each with its line."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Call, ast.Import, ast.ImportFrom)):
            yield line + node.lineno - 1, node
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            try:
                yield from calls_in(textwrap.dedent(node.value), line + node.lineno - 1)
            except SyntaxError:  # prose
                continue


def sources() -> Iterator[tuple[str, int, str, bool]]:
    """File, first line, code, and whether it is a page that people read."""
    for folder in ("smope_hf", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), 1, path.read_text(encoding="utf-8"), False
    for path in sorted((ROOT / "examples").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                lines = "".join(cell["source"]).splitlines()
                code = "\n".join("pass" if text.startswith(("%", "!")) else text for text in lines)
                yield f"{path.relative_to(ROOT)} (a cell)", 1, code, True
    pages = [ROOT / "README.md", *(path for place in ("docs", "model_cards", "smope_hf", "examples")
                                   for path in sorted((ROOT / place).rglob("*.md")))]  # fmt: skip
    for page in (page for page in pages if not page.is_symlink()):
        for block in blocks_of(page):
            if block.language in ("python", "py", "pycon"):
                code = re.sub(r"\{\{ \w+_argument \}\}", ", revision='x'", block.text)
                yield str(page.relative_to(ROOT)), block.line, re.sub(r"\{\{.*?\}\}", "x", code), True


def test_no_call_can_run_code_of_a_repository():
    found, used, files = [], set(), set()
    for file, first, code, is_page in sources():
        files.add(file)
        for line, call in calls_in(code, first):
            wrong = problem(call, is_page)
            place = (file, _name(call))
            if wrong and place in ALLOWED:
                used.add(place)
            elif wrong:
                found.append(f"{file}:{line}: {_name(call)}: {wrong}")
    assert not found, "\n" + "\n".join(found)
    assert not ALLOWED.keys() - used, f"allowed, but no longer there: {ALLOWED.keys() - used}"
    expected = {"smope_hf/cli/predict.py", "examples/space/checkpoints.py", "README.md", TEMPLATE, "docs/index.md"}
    assert expected <= files and any("quickstart" in file for file in files)


@pytest.mark.parametrize(
    ("code", "is_page"),
    [("AutoModel.from_pretrained(name)", False), ("AutoConfig.from_pretrained(n, trust_remote_code=True)", False),
     ("AutoConfig.from_pretrained(n, trust_remote_code=trust)", False), ("pipeline('image-classification', m)", False),
     ("AutoImageProcessor.from_pretrained(f, trust_remote_code=False)", False), ("x = eval(text)", False),
     ("ViTImageProcessor.from_pretrained(folder)", False), ("transformers.pipeline(model=name)", False),
     ("load_dataset(name)", False), ("torch.load(path)", False), ("np.load(path, allow_pickle=True)", False),
     ("yaml.load(file, Loader=yaml.Loader)", False), ("evaluate.load('accuracy')", False), ("exec(code)", False),
     ("subprocess.run(line, shell=True)", False), ("pickle.load(file)", False), ("joblib.load(file)", False),
     ("from pickle import loads", False), ("import numpy, dill", False),
     ("AutoModel.from_pretrained('somebody/model')", True), ("pipeline('image-classification', 'a/b')", True),
     ("AutoModel.from_pretrained('runs/x', trust_remote_code=True)", True),
     ("TEXT = '''\nimport pickle\npickle.load(file)\n'''", False), ("evaluate.load('accuracy')", True)],
)  # fmt: skip
def test_what_it_looks_for_is_found(code, is_page):
    assert any(problem(call, is_page) for _, call in calls_in(code))


@pytest.mark.parametrize(
    ("code", "is_page"),
    [("AutoConfig.from_pretrained(n, trust_remote_code=False)", False), ("torch.load(p, weights_only=True)", False),
     ("AutoImageProcessor.from_pretrained(local_name('embedded'), backend='pil')", True), ("np.load(path)", False),
     ("pipeline('image-classification', model='runs/digits/task-05')", True), ("model.eval()", False),
     ("subprocess.run([program], check=True)", False), ("yaml.load(file, Loader=RecipeLoader)", False)],
)  # fmt: skip
def test_what_runs_no_code_may_stand_there(code, is_page):
    assert not any(problem(call, is_page) for _, call in calls_in(code))


def test_recipes_are_read_by_a_loader_that_makes_no_objects():
    assert issubclass(RecipeLoader, yaml.SafeLoader)
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load("a: !!python/object/apply:os.getcwd []", Loader=RecipeLoader)
