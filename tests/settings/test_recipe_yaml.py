"""A recipe in YAML is read within limits, and refused with its file, the line and the key."""

import os
import time
import tracemalloc

import pytest
import yaml

from smope_hf.settings.recipe_yaml import MAX_BYTES, MAX_DEPTH, RecipeLoader, load_recipe
from smope_hf.training.run_arguments import read_recipe

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
REFUSED = {  # text -> line and key of the message, or what else it says
    "a key twice": ("seed: 1\nepochs: 3\nepochs: 30\n", "line 3: 'epochs' is given twice"),
    "a key twice, once in quotes": ('epochs: 3\n"epochs": 30\n', "line 2: 'epochs' is given twice"),
    "a key twice, inside": ("seed: {a: 1, b: 2, a: 3}\n", "line 1: 'a' is given twice"),
    "a key twice, on one line": ("{epochs: 1, epochs: 2}", "line 1: 'epochs' is given twice"),
    "500 lists": ("epochs: 3\ncrop_scale: " + "[" * 500 + "]" * 500, "line 2: 'crop_scale' nests deeper than 4"),
    "500 open lists": ("crop_scale: " + "[" * 500, "line 1: 'crop_scale' nests deeper than 4"),
    "500 objects": ("crop_scale: " + "{a: " * 500 + "1" + "}" * 500, "'a' nests deeper than 4"),
    "500 lists by dashes": ("crop_scale:\n" + "- " * 500 + "1", "'crop_scale' nests deeper than 4"),
    "500 objects by blanks": ("".join(" " * n + "a:\n" for n in range(300)), "'a' nests deeper than 4"),
    "lists alone, as many as fit": ("[" * (MAX_BYTES - 1), "nests deeper than 4"),
    "a billion laughs": (LAUGHS, "line 1: 'a0' is an anchor or alias"),
    "an alias of itself": ("seed: &s [*s]", "line 1: 's' is an anchor or alias"),
    "a merge": ("<<: {epochs: 3}\n", "'<<' is no setting"),
    "a tag of Python": ("seed: !!python/object/apply:os.system [ls]", "line 1: 'tag:yaml.org,2002:python/object"),
    "a tag that is no number": ("seed: !!int abc", "is a tag"),
    "a number of 5,000 digits": ("seed: 1\nepochs: " + "9" * 5000, "line 2: 'epochs' is a number of 5000 digits"),
    "a long number in hexadecimal": ("epochs: 0x" + "f" * 5000, "line 1: 'epochs' is a number of 5002 digits"),
    "a long number by colons": ("epochs: 1" + ":59" * 3000, "line 1: 'epochs' is a number of"),
    "a long key": ("k" * 1000 + ": 1", "kkk.* is no setting"),
    "a key that is too long": ("k" * 60_000 + ": 1", "is not a YAML file"),
    "a list as a key": ("? [a, b]\n: 1\n", "is not a YAML file"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "is not a YAML file"),
    "a control character": ("seed: \x07", "is not a YAML file"),
    "no UTF-8": (b"seed: \xff", "is not a YAML file"),
    "too many bytes": ("# " + "x" * MAX_BYTES, f"larger than {MAX_BYTES} bytes"),
    "an open quote": ('seed: "' + "x" * 60_000, "is not a YAML file"),
    "many quotes": ("seed: [" + "'a', " * 3000, "is not a YAML file"),
}  # fmt: skip


def written(folder, content):
    path = folder / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named_at_once(tmp_path, case):
    text, message = REFUSED[case]
    path = written(tmp_path, text)
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as refused:
        read_recipe(path)
    assert time.process_time() - start < 2
    assert str(refused.value).startswith(str(path)) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("case", ["a billion laughs", "500 lists", "500 open lists", "lists alone, as many as fit"])
def test_nothing_is_built_of_what_is_refused(tmp_path, case):
    path = written(tmp_path, REFUSED[case][0])
    tracemalloc.start()
    with pytest.raises(ValueError):
        read_recipe(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10e6


def test_what_waits_or_is_a_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, kind in ((tmp_path / "pipe.yaml", "a named pipe"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=f"it is {kind}, and only regular files are read"):
            read_recipe(path)
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "none.yaml")


def test_what_recipes_hold_is_read_as_yaml_reads_it(tmp_path):
    text = (
        "# a comment\nseed: 3\nlearning_rate: 1e-3\ncrop_scale: [0.7, 1]\ncompare_alignments:\n  - lda\n  - none\n"
        'dataset: "a: b"\noutput_dir: |\n  two\n  lines\nmax_grad_norm: ~\nprompt_layers: [0, 0]\n'
    )
    path = written(tmp_path, text)
    assert load_recipe(path) == yaml.load(text, Loader=RecipeLoader)
    assert read_recipe(path)["prompt_layers"] == [0, 0]  # the same value twice is no key twice
    assert load_recipe(written(tmp_path, "\ufeffseed: 1")) == {"seed": 1}
    nested = "seed: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert load_recipe(written(tmp_path, nested)) == yaml.safe_load(nested)
