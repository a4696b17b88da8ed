import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_tube_vit.config import ConfigDict, default_config
from sparse_tube_vit.config.flags import (
    CommandParser,
    above_zero,
    add_config,
    describe_keys,
    named,
    parse_views,
    positive,
    read,
)
from sparse_tube_vit.config.schema import EVALUATION, STREAM


@pytest.mark.parametrize(
    "given, message",
    [
        (
            ["--config=no/such.py"],
            "There is no config file no/such.py.",
        ),
        (
            ["--config=configs/kinetcs.py:smoke"],
            "There is no config file configs/kinetcs.py. Did you mean kinetics?",
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


def learning_rate(config, directory):
    """Reads a config in a process of its own; returns what it prints."""
    code = (
        "import sys; from sparse_tube_vit.config.flags import read; "
        "print(read(sys.argv[1:]).optimizer.learning_rate)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"--config={config}"],
        cwd=directory,
        env={
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "JAX_PLATFORMS": "cpu",
            "PATH": "",
        },
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["configs/kinetics.py", "kinetics.py", "kinetics"])
def test_a_config_of_the_package_is_found_from_any_directory(name, tmp_path):
    assert learning_rate(f"{name}:variant=L", tmp_path) == "1e-05"


def test_a_config_file_that_is_there_is_read_and_imports_its_neighbours(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "kinetics.py").write_text(
        "from configs.rates import RATE\n"
        "from sparse_tube_vit.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.optimizer.learning_rate = RATE\n"
        "    return config\n"
    )
    (folder / "rates.py").write_text("RATE = 0.125\n")
    assert learning_rate("configs/kinetics.py", tmp_path) == "0.125"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert learning_rate(folder / "kinetics.py", elsewhere) == "0.125"


def test_a_home_directory_is_expanded_behind_a_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = CommandParser("some")
    add_config(parser)
    parser.add_argument("--workdir")
    given = ["--config=configs/kinetics.py", "--config.data_dir=~/data"]
    args = parser.parse_with_config([*given, "--workdir=~/runs/a=~/b"])
    assert args.config.data_dir == "/home/me/data"
    assert args.workdir == "/home/me/runs/a=~/b"


def test_dashes_are_underscores():
    parser = CommandParser("some")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction)
    parser.add_argument("files", nargs="*")
    for spelt in ("--batch-size", "--batch_size"):
        given = [spelt, "3", "--no-ema", "--", "--batch-size"]
        args = parser.parse_args(given)
        assert (args.batch_size, args.ema, args.files) == (3, False, ["--batch-size"])
    with pytest.raises(SystemExit):
        parser.parse_args(["--batch=3"])  # nothing is abbreviated

    config = read(
        [
            "--config=configs/kinetics.py",
            "--config.optimizer.learning-rate=3",
            "--config.streams.video.batch-size=7",
        ]
    )
    assert config.optimizer.learning_rate == 3 and config.streams.video.batch_size == 7


def test_none_is_a_value_of_keys_that_may_be_none():
    config = read(
        [
            "--config=configs/finetune.py:last=4",
            "--config.optimizer.trained_layers=None",
            "--config.loader.workers=2",
            "--config.loader.workers=None",
            "--config.model.gate-after=None",
            "--config.model.gate_after=3",
            "--config.peak_flops=None",
        ]
    )
    assert config.optimizer.trained_layers is None
    assert config.loader.workers is config.peak_flops is None
    assert config.model.gate_after == 3
    for argument in ("seed=None", "model.dropout=None", "optimizer.x=None"):
        with pytest.raises(SystemExit):
            read(["--config=configs/finetune.py", f"--config.{argument}"])


def test_every_key_is_described():
    """As many as a config has, and all of streams and evaluations."""
    text = "\n".join(describe_keys())
    config = default_config()
    named = set(re.findall(r"(?m)^  --config\.([\w.]+)", text))

    def names(section, prefix=""):
        for name in section:
            if isinstance(section.get(name), ConfigDict):
                yield from names(section[name], f"{prefix}{name}.")
            else:
                yield prefix + name

    wanted = {*names(config)}
    wanted |= {f"streams.NAME.{key}" for key in STREAM}
    wanted |= {f"evaluations.NAME.{key}" for key in EVALUATION}
    assert named == wanted
    rate = config.optimizer.learning_rate
    assert f"--config.optimizer.learning_rate={rate!r}\n" in text


@pytest.mark.parametrize(
    "text, message",
    [
        ("import no_such_module", ":1: No module named 'no_such_module'"),
        ("from sparse_tube_vit.config import smok", ":1: cannot import name 'smok'"),
        ("def get_config():\n    return 1 / 0", ":2: division by zero"),
        ("def get_config():\n    return int('x')", ":2: ValueError: invalid literal"),
        ("def get_config(:", "invalid syntax"),
        ("x = 1", "has no attribute 'get_config'"),
        (
            "from sparse_tube_vit.config import arguments\n"
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


def test_views_are_temporal_x_spatial():
    assert parse_views("4x3") == (4, 3)
    for text in ("", "4", "4x", "0x3", "4x3x1", "-1x3", "4X3"):
        with pytest.raises(argparse.ArgumentTypeError, match="of the form TxS"):
            parse_views(text)


def test_numbers_of_a_command_line():
    assert (positive("12"), above_zero(".5")) == (12, 0.5)
    assert named(positive)("kinetics400=400") == ("kinetics400", 400)
    for parse, texts in {
        positive: ("0", "-1", "1.5", "", "²", "x"),
        above_zero: ("0", "-1", "nan", "inf", "", "x"),
        named(positive): ("kinetics400", "=4", "a=", "a=0", "a=x"),
    }.items():
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match="is no"):
                parse(text)
