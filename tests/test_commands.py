"""Commands start quietly, and import nothing that they do not need."""

import subprocess
import sys
from pathlib import Path

import pytest

import sparse_tube_vit
from sparse_tube_vit import __main__

PACKAGE = Path(sparse_tube_vit.__file__).parent
COMMANDS = sorted(sum(__main__.COMMANDS.values(), ()))


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120
    )


def test_every_module_of_the_package_is_a_command_or_one_that_all_use():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    modules -= {"__init__", "__main__", "errors", "log", "storage"}
    assert sorted(modules | {"benchmark", "figures"}) == COMMANDS


def test_one_command_line_lists_the_commands_and_runs_them():
    """Nothing heavy is imported for the list."""
    for arguments in ([], ["--help"]):
        done = run("-X", "importtime", "-m", "sparse_tube_vit", *arguments)
        assert "jax" not in done.stderr and "numpy" not in done.stderr
        listed = [line.split()[0] for line in done.stdout.split("\n") if "  " in line]
        assert sorted(listed) == COMMANDS
    for name in ("scale_up", "scale-up"):
        done = run("-m", "sparse_tube_vit", name, "--help")
        assert done.stdout.startswith("usage: sparse-tube-vit scale_up")
    done = run("-m", "sparse_tube_vit", "--version")
    assert done.stdout.strip() == sparse_tube_vit.__version__
    done = run("-m", "sparse_tube_vit", "predct")
    assert done.returncode == 1 and "Did you mean predict?" in done.stderr


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
    assert sorted(face.split()) == sorted([*sparse_tube_vit.__all__, "__version__"])
    assert not heavy


def test_errors_that_gcsfs_raises_as_well_are_not_shown_twice():
    """It logs them, with their traces, before it raises them."""
    program = (
        "import logging, sparse_tube_vit.log\n"
        "logging.basicConfig()\n"
        "sparse_tube_vit.log.to_stderr()\n"
        "logging.getLogger('gcsfs').error('Cannot connect to host')"
    )
    assert run("-c", program).stderr == ""
