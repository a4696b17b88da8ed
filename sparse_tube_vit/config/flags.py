"""Command lines: configs and what several commands take."""

import argparse
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from sparse_tube_vit.config.schema import ConfigDict, message_of


def parse_views(text: str) -> tuple[int, int]:
    """(temporal, spatial) of a command line's "4x3"."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form TxS, two numbers of at least 1, as 4x3"
        )
    temporal, spatial = text.split("x")
    return int(temporal), int(spatial)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of commands that load a model, for `load_model`."""
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
    """A whole number of at least 1, as argparse takes it."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def read(arguments: Sequence[str]) -> ConfigDict:
    """The config of `--config=FILE` and any `--config.key=value`.

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
    """Parses flags for absl.app; a config that does not load ends with its message."""
    try:
        rest = values(argv)
        # A file that is not there is an error only once something is asked of it.
        getattr(values.config, "seed", None)
        return rest
    except flags.Error as error:
        # What a config file raises comes as the text of its traceback.
        _, _, message = str(error).rpartition("Traceback (most recent call last):")
        _, named, text = message.partition("InvalidConfig: ")
        sys.exit(f"{named}{text}".strip() if named else message.strip())
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [
            f"{f.filename}:{f.lineno}: " for f in frames if f.name == "get_config"
        ]
        sys.exit(f"InvalidConfig: {places[-1] if places else ''}{message_of(error)}")
