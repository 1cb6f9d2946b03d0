"""Every file that comes from elsewhere is opened by one function, which checks it: no other place opens one."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("smope_hf", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
OPENING = {
    "read_json", "json.load", "json.loads", "load_file", "safe_open", "open", "os.open", "io.open", "fsspec.open",
    "read_text", "read_bytes", "read_table", "open_regular", "yaml.load", "yaml.safe_load", "yaml.parse", "csv.reader",
    "csv.DictReader", "np.load", "np.fromfile", "np.loadtxt", "np.genfromtxt", "torch.load", "pickle.load",
    "pickle.loads", "safetensors.torch.load", "load_image", "Image.open",
}  # fmt: skip
READERS = {  # function -> what it opens; as many calls as files
    "smope_hf/storage/config_guard.py read_config_content": ["config.json"],
    "smope_hf/storage/checkpoint_guard.py shard_names": ["model.safetensors.index.json"],
    "smope_hf/storage/checkpoint_guard.py _check_header_size": ["the header of any .safetensors"],
    "smope_hf/storage/checkpoint_guard.py read_header": ["names and shapes of any .safetensors"],
    "smope_hf/storage/checkpoint_guard.py read_tensors": ["tensors of any .safetensors, behind its header"],
    "smope_hf/storage/checksums.py listed": ["checksums.json"],
    "smope_hf/storage/checksums.py sha256": ["any file, for its hash"],
    "smope_hf/sharing/run_files.py load_state": ["trainer_state.json"],
    "smope_hf/sharing/run_files.py load_manifest": ["manifest.json"],
    "smope_hf/sharing/run_files.py load_metrics": ["metrics.json"],
    "smope_hf/routing/usage.py load_routing": ["routing.json"],
    "smope_hf/routing/record.py open_record": ["routing_patterns.json and routing_training.json"],
    "smope_hf/storage/state_folder.py read_content": ["state.json"],
    "smope_hf/metrics/accuracy_matrix.py from_csv": ["accuracy_matrix.csv"],
    "smope_hf/reports/cost_plots.py read_costs": ["results.csv, for a plot"],
    "smope_hf/settings/recipe_yaml.py _text": ["recipe.yaml"],
    "smope_hf/settings/recipe_yaml.py _check_events": ["recipe.yaml, its shape"],
    "smope_hf/settings/recipe_yaml.py load_recipe": ["recipe.yaml, its shape known"],
    "smope_hf/models/image_processors.py _read": ["processor_config.json", "preprocessor_config.json"],
    "smope_hf/storage/state_folder.py read_tensors": ["tensors of state/, behind their hash"],
    "smope_hf/training/run_lock.py _holder": [".smope-run.lock, for a message"],
    "smope_hf/sharing/source.py find_checkpoint": ["each other .json, before libraries read it"],
    "smope_hf/sharing/hub_files.py _git_sha1": ["any file, for its hash on the Hub"],
    "smope_hf/cli/predict.py check_images": ["an image"],
    "smope_hf/cli/predict.py read_image": ["an image"],
    "smope_hf/data/split.py _content": ["an image", "an image in an archive of the Hub"],
    "smope_hf/data/folder_layout.py has_own_configuration": ["README.md of a folder of images"],
    "smope_hf/data/image_reading.py _decode": ["an image's bytes"],
    "smope_hf/storage/safe_json.py read_json": ["any JSON", "any JSON, its counts known"],
    "smope_hf/storage/foreign_files.py open_regular": ["any file"],
    "smope_hf/storage/foreign_files.py read_bytes": ["any file"],
    "smope_hf/storage/foreign_files.py read_text": ["any text"],
    "smope_hf/storage/foreign_files.py read_table": ["any CSV", "any CSV, its text"],
    "examples/benchmark_records.py read_record": ["record.json"],
    "examples/benchmark_records.py read_settings": ["settings.json"],
    "examples/benchmark_records.py read_peak_memory": ["process.json"],
    "examples/benchmark_records.py read_realigned": ["realigned.json"],
    "examples/benchmark_records.py read_results": ["results.csv, for a table"],
}
OWN = {  # what the program itself has written a moment ago, brings along, or opens to write
    "smope_hf/storage/files.py sync": 1,
    "smope_hf/storage/files.py _in_use": 1,
    "smope_hf/storage/files.py _is_alive": 1,
    "smope_hf/storage/output_check.py _probe": 1,
    "smope_hf/training/run_lock.py _open": 2,
    "smope_hf/sharing/staged_upload.py additions": 1,
    "smope_hf/metrics/accuracy_matrix.py to_csv": 1,
    "smope_hf/sharing/model_card.py build_card": 1,
    "smope_hf/sharing/remote_code.py _relative_imports": 1,
    "smope_hf/sharing/remote_code.py _rewritten": 1,
    "smope_hf/reports/report_html.py embedded": 1,
    "examples/benchmark.py settings_of": 1,
    "examples/benchmark.py write_table": 2,
    "examples/tune.py write_tables": 2,
    "examples/sample_efficiency.py write_tables": 2,
    "examples/speed_memory.py peak_bytes": 2,
    "examples/results_tables.py main": 1,
    "examples/pretrain_backbone.py save": 1,
}
PAGE = ("examples/space/",)  # has a guard of its own for what visitors send


def name_of(call: ast.Call) -> str | None:
    """The name under which a call opens something, such as json.loads or read_text; None where it opens nothing."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id if function.id in OPENING else None
    if not isinstance(function, ast.Attribute):
        return None
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    dotted = f"{owner}.{function.attr}"
    if dotted in OPENING:
        return dotted
    return function.attr if function.attr in ("open", "read_text", "read_bytes", "load_file", "safe_open") else None


def openings(path: Path):
    """Each call that opens something: the innermost function around it, and its line."""
    tree, where = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):  # outer functions come first, so that the innermost one stays
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            where.update({id(inner): node.name for inner in ast.walk(node)})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node):
            yield f"{path.relative_to(ROOT).as_posix()} {where.get(id(node), 'module')}", node.lineno, name_of(node)


def test_no_other_place_opens_a_file():
    found, unknown = Counter(), []
    for path in SOURCES:
        for place, line, name in openings(path):
            found[place] += 1
            if place not in READERS and place not in OWN and not place.startswith(PAGE):
                unknown.append(f"{path.relative_to(ROOT)}:{line} calls {name} in {place.split()[1]}")
    assert not unknown, "\n".join(unknown)
    allowed = {place: len(files) for place, files in READERS.items()} | OWN
    different = {place: (found[place], count) for place, count in allowed.items() if found[place] != count}
    assert not different, "calls found, calls allowed"


def test_each_file_has_one_reader():
    files = Counter(file for files in READERS.values() for file in files if file.endswith((".json", ".csv", ".yaml")))
    assert len(files) > 12 and set(files.values()) == {1}


def test_the_search_finds_every_form(tmp_path, monkeypatch):
    forms = [
        "read_json(p)", "json.load(f)", "json.loads(t)", "load_file(p)", "safetensors.torch.load_file(p)", "open(p)",
        "safe_open(p, framework='pt')", "p.open()", "p.read_text()", "(a / b).read_bytes()", "yaml.load(f)",
        "csv.DictReader(f)", "np.load(p)", "torch.load(p)", "os.open(p, 0)",
    ]  # fmt: skip
    file = tmp_path / "module.py"
    file.write_text("def f(p):\n" + "".join(f"    {form}\n" for form in forms))
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [(place, line) for place, line, _ in openings(file)] == [("module.py f", n + 2) for n in range(len(forms))]
