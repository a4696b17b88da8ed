"""Commands start quietly, and import nothing that they do not need."""

import subprocess
import sys
from pathlib import Path

import pytest

import sparse_tube_vit

PACKAGE = Path(sparse_tube_vit.__file__).parent
COMMANDS = sorted(
    {path.stem for path in PACKAGE.glob("*.py")}
    - {"__init__", "errors", "log", "storage"}
) + ["benchmark", "figures"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_starts_without_a_warning(command):
    """None is imported before it runs: Python warns of that, and it is loaded twice."""
    done = run("-m", f"sparse_tube_vit.{command}", "--help")
    assert "RuntimeWarning" not in done.stderr
    assert "Traceback" not in done.stderr
    assert command in done.stdout


def test_training_imports_no_matplotlib_before_it_draws():
    loaded = "import sys, sparse_tube_vit.train; print('matplotlib' in sys.modules)"
    assert run("-c", loaded).stdout.split() == ["False"]
    drawing = loaded.replace("train;", "figures;")
    assert run("-c", drawing).stdout.split() == ["True"]


def test_the_public_face_is_light():
    program = (
        "import sys, sparse_tube_vit as stv\n"
        "print(*dir(stv))\n"
        "heavy = {'jax', 'flax', 'numpy', 'tensorflow', 'grain', 'av'}\n"
        "print(*heavy & set(sys.modules))"
    )
    face, heavy = run("-c", program).stdout.split("\n")[:2]
    assert {"Tube", "TubeViT", "load", "read_clip", "read_image"} <= {*face.split()}
    assert not heavy
