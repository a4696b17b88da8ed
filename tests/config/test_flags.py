import subprocess
import sys
from pathlib import Path

import pytest

from sparse_tube_vit.config.flags import read


@pytest.mark.parametrize(
    "given, message",
    [
        (
            ["--config=no/such.py"],
            "[Errno 2] No such file or directory: 'no/such.py'",
        ),
        (["--config=FILE", "--config.nonsense=1"], "There is no key 'nonsense'."),
        (["--config=FILE", "--config.clip.x.y=1"], "There is no key 'x'."),
        (
            ["--config=FILE", "--config.clip.frame=1"],
            'There is no key \'frame\'. Did you mean "frames" instead of "frame"?',
        ),
    ],
)
def test_a_command_line_is_refused_in_a_line(given, message):
    given = [g.replace("FILE", "configs/moving_shapes.py") for g in given]
    with pytest.raises(SystemExit) as end:
        read(given)
    assert end.value.code == f"InvalidConfig: {message}"


@pytest.mark.parametrize(
    "config, override, message",
    [
        ("moving_shapes.py", "--config.optimizer.learning_rat=3", "learning_rate"),
        ("moving_shapes.py", "--config.total_steps=many", "total_steps"),
        ("moving_shapes.py", "--config.model.tubes=5", "no set of tubes '5'"),
        ("moving_shapes.py", "--config.init.weights=a.npz", "whose patches no tube"),
        ("kinetics.py:classes=500", "", "InvalidConfig: The config takes no argument"),
    ],
)
def test_a_wrong_command_line_ends_with_what_is_wrong(
    config, override, message, tmp_path
):
    command = [sys.executable, "-m", "sparse_tube_vit.train"]
    command += [f"--config=configs/{config}", f"--workdir={tmp_path}"]
    command += ["--config.model.kernels=interpolated"] * ("weights" in override)
    command += [override] if override else []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_file_is_read_from_any_directory(tmp_path):
    """Its neighbour `configs.common` too, though another `configs` is nearer."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").touch()
    root = Path(__file__).parents[2]
    code = (
        "import sys; from sparse_tube_vit.config.flags import read; "
        "print(read(sys.argv[1:]).optimizer.learning_rate)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"--config={root}/configs/kinetics.py:variant=L"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1e-05\n", done.stderr


@pytest.mark.parametrize(
    "text, message",
    [
        ("import no_such_module", ":1: No module named 'no_such_module'"),
        ("from configs.common import smok", ":1: cannot import name 'smok' from"),
        ("def get_config():\n    return 1 / 0", ":2: division by zero"),
        ("def get_config():\n    return int('x')", ":2: ValueError: invalid literal"),
        ("def get_config(:", "invalid syntax"),
        ("x = 1", "has no attribute 'get_config'"),
        (
            "from configs.common import arguments\n"
            "def get_config():\n    arguments('x')",
            "InvalidConfig: The config takes no argument 'x'; it takes none.",
        ),
    ],
)
def test_what_a_config_file_raises_is_a_message(text, message, tmp_path, monkeypatch):
    # Another config file has been loaded under this name.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(SystemExit) as end:
        read([f"--config={file}"])
    assert end.value.code.startswith("InvalidConfig: ")
    assert (f"{file}{message}" if message[0] == ":" else message) in end.value.code
    assert "Traceback" not in end.value.code and 'File "' not in end.value.code
