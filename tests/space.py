"""Where the page of examples/space is, for the tests of it; importing this makes its modules importable."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "examples" / "space"

pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[demo]'")
if str(SPACE) not in sys.path:
    sys.path.insert(0, str(SPACE))


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, by path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
