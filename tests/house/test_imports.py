"""What is imported when: commands and the package start without libraries that they do not need yet."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import tiny_model

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "numpy", "PIL", "sklearn", "matplotlib", "pandas")
COMMANDS = ("train", "evaluate", "add-classes", "predict", "info", "plot", "export", "push")


def run(code: str, *arguments: str):
    """What a fresh Python prints as JSON in its last line."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_a_help_page_needs_no_library_but_those_of_the_command_line(arguments):
    code = """
import json, sys
from smope_hf.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
print(json.dumps(sorted(sys.modules)))
"""
    loaded = run(code, *arguments)
    assert "typer" in loaded and not set(LIBRARIES).intersection(loaded)


def test_importing_the_package_adds_nothing_heavy_to_transformers_auto_classes():
    code = """
import json, sys
from transformers import AutoModel
before = set(sys.modules)
import smope_hf
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    assert run(code) == [
        "smope_hf", "smope_hf.base", "smope_hf.base.moved_modules", "smope_hf.models", "smope_hf.models.auto_classes",
        "smope_hf.training", "smope_hf.training.callbacks", "smope_hf.version",
    ]  # fmt: skip


def test_a_config_needs_no_code_of_models():
    """Reading what a checkpoint is must not wait for what runs it."""
    code = """
import json, sys
from transformers import AutoModel
before = set(sys.modules)
from smope_hf import SMoPEConfig
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    added = run(code)
    assert "smope_hf.models.configuration_smope" in added
    heavy = ("transformers.modeling_utils", "transformers.pipelines", "torch.distributed.tensor", "torch._dynamo")
    assert not {*heavy, *LIBRARIES, "scipy", "sympy"}.intersection(added)
    assert not [name for name in added if name.startswith("smope_hf.models.modeling_")]


def test_the_package_alone_imports_no_library():
    loaded = run("import json, sys, smope_hf; print(json.dumps(sorted(sys.modules)))")
    assert "smope_hf" in loaded and not set(LIBRARIES).intersection(loaded)


FIRST = (
    "import smope_hf",
    "from transformers import AutoModelForImageClassification; import smope_hf",
    "import smope_hf; from transformers import AutoConfig",
    "from transformers import AutoConfig; import smope_hf",
    "import smope_hf.models.configuration_smope",
    "import smope_hf.models.configuration_prompted",
    "import smope_hf.models.modeling_smope",
    "import smope_hf.models.prefix_experts",
    "import smope_hf.models.registry",
    "from smope_hf import SMoPEConfig",
    "from smope_hf import ContinualTrainer",
)


@pytest.mark.parametrize("first", FIRST)
def test_auto_classes_and_pipelines_know_the_models_in_whatever_order_things_are_imported(first, tmp_path):
    """Registration waits for transformers, and may then happen in the middle of the import of our own modules."""
    from transformers import ViTImageProcessorPil

    tiny_model().save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    code = f"""
{first}
import json, sys
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, pipeline
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder)
model = AutoModelForImageClassification.from_pretrained(folder)
fresh = AutoModelForImageClassification.from_config(config)
guess = pipeline("image-classification", model=folder)(Image.new("RGB", (20, 20)))
import smope_hf, smope_hf.models.modeling_smope, smope_hf.models.modeling_prompted
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as MAPPING
from smope_hf.models.configuration_prompted import PromptedConfig
print(json.dumps({{
    "config": type(config) is smope_hf.SMoPEConfig is smope_hf.models.configuration_smope.SMoPEConfig,
    "model": type(model) is type(fresh) is smope_hf.SMoPEForImageClassification,
    "guesses": len(guess),
    "entered": MAPPING[smope_hf.SMoPEConfig] is smope_hf.SMoPEForImageClassification,
    "rival": MAPPING[PromptedConfig] is smope_hf.models.modeling_prompted.PromptedForImageClassification,
}}))
"""
    assert run(code, str(tmp_path)) == {"config": True, "model": True, "guesses": 5, "entered": True, "rival": True}


def test_a_model_class_that_is_not_loaded_yet_acts_as_itself(tmp_path):
    code = """
import json, smope_hf
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as MAPPING, CONFIG_MAPPING
config = CONFIG_MAPPING["smope"](num_labels=3, backbone_config={
    "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
    "image_size": 8, "patch_size": 4,
})
kind = MAPPING[type(config)]
model = kind(config)
print(json.dumps([
    kind.__name__, kind.config_class is type(config), type(model) is smope_hf.SMoPEForImageClassification,
    isinstance(model, kind), issubclass(type(model), kind), kind.main_input_name,
]))
"""
    assert run(code) == ["SMoPEForImageClassification", True, True, True, True, "pixel_values"]


def test_every_public_name_is_there_and_listed():
    import smope_hf

    for name in smope_hf.__all__:
        assert getattr(smope_hf, name).__name__ == name and name in dir(smope_hf)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        smope_hf.Nothing
