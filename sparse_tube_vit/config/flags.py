"""Command lines: config files, and arguments that several commands take."""

import argparse
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from sparse_tube_vit.config.schema import message_of


def parse_views(text: str) -> tuple[int, int]:
    """Returns (temporal, spatial) views of a command line's "4x3"."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form TxS, two numbers of at least 1, as 4x3"
        )
    temporal, spatial = text.split("x")
    return int(temporal), int(spatial)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of commands that load a model."""
    parser.add_argument(
        "--model",
        required=True,
        help="a run's work directory, one step of its checkpoints, or a release",
    )
    parser.add_argument("--step", type=int, help="of a run; default: the latest")
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the averaged parameters, if there are any",
    )


def positive(text: str) -> int:
    """Returns a whole number of at least 1, as an argument's type."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def read(arguments: Sequence[str]) -> ConfigDict:
    """Returns the config of `--config=FILE` and any `--config.key=value`.

    For commands with other arguments of their own; ends with a message as parse_flags.
    """
    values, argv = flags.FlagValues(), ["", *arguments]
    config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=argv
    )
    _, *unknown = parse_flags(argv, values)
    if unknown:
        sys.exit(f"Unknown command line argument {unknown[0]!r}")
    return values.config


def parse_flags(argv, values: flags.FlagValues = flags.FLAGS):
    """Parses flags for absl.app.

    Whatever a config file raises ends the program with a message: its place in the
    file, if it is no InvalidConfig, and its text.
    """
    file = _config_file(argv)
    _make_importable(file)
    try:
        rest = values(argv)
        # A missing file is an error only when the config is accessed.
        getattr(values.config, "seed", None)
        return rest
    except flags.Error as error:
        # TypeError and ValueError of a config file arrive as text of their traceback.
        _, is_trace, trace = str(error).rpartition("Traceback (most recent call last):")
        if not is_trace:
            sys.exit(str(error))
        _, named, text = trace.partition("InvalidConfig: ")
        if named:
            sys.exit(f"InvalidConfig: {text}".strip())
        frames = re.findall(r'File "(.+)", line (\d+), in', trace)
        message = re.sub(r"^[\w.]*\.(?=\w+: )", "", trace.strip().splitlines()[-1])
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)
        frames = [(frame.filename, frame.lineno) for frame in trace]
        message = message_of(error)
    places = [f"{name}:{line}: " for name, line in frames if _same(name, file)]
    sys.exit(f"InvalidConfig: {places[-1] if places else ''}{message}")


def _config_file(argv):
    """Returns the path that --config names, without arguments; None for no path."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-config", nargs="?")
    path = parser.parse_known_args(argv[1:])[0].config
    return Path(path.partition(":")[0]) if path else None


def _same(name, file):
    return file is not None and Path(name).resolve() == file.resolve()


def _make_importable(file):
    """Lets a config file import `configs.common`, from whatever directory."""
    if (root := str(Path(__file__).resolve().parents[2])) not in sys.path:
        sys.path.append(root)
    if file is not None and (folder := file.resolve().parent).name == "configs":
        sys.path.insert(0, str(folder.parent))  # its own, should there be several
