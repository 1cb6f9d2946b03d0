"""The picture of the method shows what the code computes; the files in the repository are what the script draws."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "figures"
SCRIPT = runpy.run_path(str(FOLDER / "method.py"))


def test_the_noise_turns_one_choice_away_and_leaves_one():
    """What the picture is to tell: a marked expert may stay on, and another gives way to a free one."""
    experts, scores = SCRIPT["small_layer"]()
    marked = set(experts.frequently_used[0].nonzero().flatten().tolist())
    noisy = set(experts.select(scores)[0, 0].tolist())
    plain = set(experts.eval().select(scores)[0, 0].tolist())
    assert len(marked & plain) == 2 and len(marked & noisy) == 1 and len(noisy) == SCRIPT["K"]


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_pictures_in_the_repository_are_those_of_the_script(name, tmp_path):
    SCRIPT["main"](tmp_path)
    assert (tmp_path / f"method-{name}.svg").read_bytes() == (FOLDER / f"method-{name}.svg").read_bytes()
