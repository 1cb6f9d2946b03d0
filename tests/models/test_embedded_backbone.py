"""The embedded backbone is small, loads as promised, and its generator repeats itself and never draws a digit."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModel

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = ROOT / "smope_hf" / "models" / "embedded" / "letters-vit"
SCRIPT = ROOT / "examples" / "pretrain_backbone.py"


@pytest.fixture(scope="module")
def letters():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import letters
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return letters


@pytest.fixture(scope="module")
def glyphs(letters):
    return letters.render_glyphs(strokes=(0.0,))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_are_present_and_small():
    for name in ("config.json", "preprocessor_config.json", "training.json"):
        json.loads((BACKBONE / name).read_text())
    assert (BACKBONE / "model.safetensors").stat().st_size <= 4 * 2**20


def test_loads_in_float32_with_no_key_missing_or_left_over():
    model, info = AutoModel.from_pretrained(
        BACKBONE, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) <= 1_500_000
    assert model.config.num_hidden_layers == 12


def test_stored_in_half_precision_and_loaded_in_float32_unless_told_otherwise():
    with safe_open(BACKBONE / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}
    assert AutoModel.from_pretrained(BACKBONE, add_pooling_layer=False).dtype == torch.float32


def test_processor_feeds_an_8x8_grey_image_to_the_model_and_images_get_different_features():
    processor = AutoImageProcessor.from_pretrained(BACKBONE)
    model = AutoModel.from_pretrained(BACKBONE, add_pooling_layer=False, dtype=torch.float32).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    inputs = processor([Image.fromarray(image).convert("RGB") for image in pixels], return_tensors="pt")
    with torch.no_grad():
        features = model(**inputs).last_hidden_state[:, 0]  # (4, D)
    assert features.isfinite().all()
    assert torch.cdist(features, features).fill_diagonal_(1).min() > 0.1


def test_recorded_checksum_is_that_of_the_weights():
    record = json.loads((BACKBONE / "training.json").read_text())
    assert record["sha256"] == sha256(BACKBONE / "model.safetensors")


def test_only_latin_letters_are_drawn(letters, glyphs):
    assert len(letters.ALPHABET) == 52
    assert letters.ALPHABET.isascii() and letters.ALPHABET.isalpha()
    assert set(glyphs.classes) <= set(letters.ALPHABET)
    for path in letters.font_paths():
        drawn = letters.letter_characters(path)
        assert set(drawn.values()) <= set(letters.ALPHABET)
        assert not any(character.isnumeric() for character in drawn)


def test_fonts_without_latin_letters_are_left_out(glyphs):
    # cmex10 keeps brackets at the letters' code points, and LastResort one box for all scripts.
    assert {"cmex10", "LastResortHE-Regular", "STIXNonUni"} <= set(glyphs.left_out)
    assert {"DejaVuSans", "STIXGeneral", "cmr10"} <= set(glyphs.fonts)


def test_one_seed_gives_one_first_batch_and_another_seed_another(letters, glyphs):
    def first_batch(seed):
        return letters.letter_batch(glyphs, 16, 32, torch.Generator().manual_seed(seed))

    images, labels = first_batch(0)
    assert images.shape == (16, 3, 32, 32)
    assert images.min() >= -1 and images.max() <= 1
    again, labels_again = first_batch(0)
    assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert not torch.equal(images, first_batch(1)[0])


def test_script_runs_for_two_steps(tmp_path):
    arguments = ["--steps", "2", "--batch_size", "8", "--eval_batches", "1", "--num_threads", "1"]
    command = [sys.executable, str(SCRIPT), *arguments, "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["sha256"] == sha256(tmp_path / "model.safetensors")
    assert record["sha256"] in done.stdout and "left out" in done.stdout
    model = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert model.config.num_hidden_layers == 12
