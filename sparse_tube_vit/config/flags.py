"""Command lines: config files, and arguments that several commands take."""

import argparse
import contextlib
import math
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from sparse_tube_vit.config import files
from sparse_tube_vit.config.keys import REQUIRED
from sparse_tube_vit.config.schema import (
    EVALUATION,
    SCHEMA,
    STREAM,
    leaves,
    message_of,
    set_key,
)


class CommandParser(argparse.ArgumentParser):
    """Parser of one command's arguments.

    Options are spelt with underscores or with dashes, and not abbreviated. Of
    `--option=~/path` the home directory is expanded, which no shell does behind a =.

    Args:
        command: Name of the command, "predict"; a parser of subcommands passes `prog`.
        options: As for `argparse.ArgumentParser`.
    """

    def __init__(self, command: str = "", **options):
        options.setdefault("prog", f"sparse-tube-vit {command}")
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options | {"allow_abbrev": False})

    def parse_known_args(self, args=None, namespace=None):
        args = list(sys.argv[1:] if args is None else args)
        options = {
            option.replace("-", "_"): option
            for action in self._actions
            for option in action.option_strings
        }
        end = args.index("--") if "--" in args else len(args)
        for i, arg in enumerate(args[:end]):
            name, equals, value = arg.partition("=")
            name = options.get(name.replace("-", "_"), name)
            args[i] = name + equals + os.path.expanduser(value)
        return super().parse_known_args(args, namespace)

    def parse_with_config(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parses `--config FILE` and any `--config.key=value` beside the arguments.

        `args.config` becomes the config. Overrides without a file end the program.
        """
        args, overrides = self.parse_known_args(argv)
        if getattr(args, "config", None):
            args.config = read([f"--config={args.config}", *overrides])
        elif overrides:
            self.error(f"unrecognized arguments: {' '.join(overrides)}")
        return args


def parse_views(text: str) -> tuple[int, int]:
    """Returns (temporal, spatial) views of a command line's "4x3"."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form TxS, two numbers of at least 1, as 4x3"
        )
    temporal, spatial = text.split("x")
    return int(temporal), int(spatial)


def at_least(least: int) -> Callable[[str], int]:
    """Returns the type of arguments that are whole numbers of at least `least`."""

    def parse(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number of at least {least}"
            )
        return int(text)

    return parse


positive = at_least(1)


def above_zero(text: str) -> float:
    """Returns a finite number above 0, as an argument's type."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")


def named(number: Callable[[str], float]) -> Callable[[str], tuple[str, float]]:
    """Returns the type of arguments NAME=NUMBER, as pairs."""

    def parse(text):
        name, found, value = text.partition("=")
        if not (name and found):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=NUMBER")
        return name, number(value)

    return parse


def add_views(parser: argparse.ArgumentParser, default=None) -> None:
    """Adds --views of inference and --batch_size.

    Args:
        parser: The parser.
        default: (temporal, spatial) views; None: as the run's evaluation has.
    """
    standard = "x".join(map(str, default)) if default else "as the run's evaluation"
    parser.add_argument(
        "--views",
        type=parse_views,
        default=default,
        help=f"temporal x spatial views of videos; default: {standard}",
    )
    parser.add_argument("--batch_size", type=positive, help="files at a time")


def add_model(container, image_vits: bool = True, **options) -> None:
    """Adds --model to a parser or a group; --workdir is the same, for one of a run.

    Args:
        container: A parser or a group of one.
        image_vits: Whether weights of image ViTs are models for the command.
        options: As for `add_argument`; required, if `required` is not given.
    """
    kinds = "a release, or weights of an image ViT" if image_vits else "or a release"
    container.add_argument(
        "--model",
        "--workdir",
        dest="model",
        **{"required": True, "metavar": "MODEL"} | options,
        help=f"a run's work directory, a step of its checkpoints, {kinds}; a path, "
        "gs://..., hf://USER/NAME, or demo",
    )


def add_checkpoint_arguments(
    parser: argparse.ArgumentParser, image_vits: bool = True
) -> None:
    """Adds --model, which step and kind of its parameters to take, --normalization."""
    add_model(parser, image_vits)
    parser.add_argument("--step", type=int, help="of a run; default: the latest")
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the averaged parameters, if there are any",
    )
    if image_vits:
        add_normalization(parser)


def add_normalization(parser: argparse.ArgumentParser) -> None:
    """Adds --normalization, of the inputs of an image ViT that another option names."""
    parser.add_argument(
        "--normalization",
        default="",
        help="of an image ViT's inputs: half, imagenet or clip; default: as its files "
        "tell",
    )


def add_config(container, **options) -> None:
    """Adds --config to a parser or a group, for `CommandParser.parse_with_config`."""
    container.add_argument(
        "--config",
        **{"required": True, "metavar": "FILE"} | options,
        help="a config file, or the name of one that comes with the package, "
        "FILE:ARGUMENTS; --config.key=value sets a key of it: `sparse-tube-vit train "
        "--help` lists them",
    )


def describe_keys() -> Iterator[str]:
    """Yields lines that list every key of a config, with default, rule and meaning."""
    sections = (
        ("Keys of a config", "config.", SCHEMA),
        ("Keys of a stream", "config.streams.NAME.", STREAM),
        ("Keys of an evaluation", "config.evaluations.NAME.", EVALUATION),
    )
    for title, prefix, schema in sections:
        yield f"\n{title}:"
        for name, key in leaves(schema, f"--{prefix}"):
            default = "" if key.default in (REQUIRED, None) else f"={key.default!r}"
            yield f"  {name}{default}"
            rule = f" ({key.rule.words})" if key.rule else ""
            text = f"{key.meaning}{rule}"
            yield textwrap.fill(
                text, 88, initial_indent=" " * 6, subsequent_indent=" " * 6
            )


def read(arguments: Sequence[str]) -> ConfigDict:
    """Returns the config of `--config=FILE` and any `--config.key=value`.

    Whatever a config file raises ends the program with a message: its place in the
    file, if it is no InvalidConfig, and its text.
    """
    values, argv = flags.FlagValues(), ["", *map(_spelt, arguments)]
    argv, unset = _without_none(argv)
    file = _config_file(argv)
    if file is not None:
        if not file.is_file():
            sys.exit(f"InvalidConfig: {files.explain_missing(file)}")
        files.make_neighbours_importable(file)
    config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=argv
    )
    try:
        _, *unknown = values(argv)
        config = values.config
        getattr(config, "seed", None)  # a missing file is an error only now
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
    else:
        if unknown:
            sys.exit(f"Unknown command line argument {unknown[0]!r}")
        for key in unset:
            set_key(config, key, None)
        return config
    places = [f"{name}:{line}: " for name, line in frames if _same(name, file)]
    sys.exit(f"InvalidConfig: {places[-1] if places else ''}{message}")


def _spelt(argument):
    """Finds the config file, and spells keys with underscores."""
    name, equals, value = argument.partition("=")
    if name == "--config":
        path, colon, rest = value.partition(":")
        return f"{name}={files.find(path)}{colon}{rest}"
    if not name.startswith("--config."):
        return argument
    keys = {
        part
        for schema in (SCHEMA, STREAM, EVALUATION)
        for key, _ in leaves(schema)
        for part in key.split(".")
    }
    parts = [  # streams may have names with dashes
        underscored if (underscored := part.replace("-", "_")) in keys else part
        for part in name[2:].split(".")
    ]
    return f"--{'.'.join(parts)}{equals}{value}"


def _without_none(argv):
    """Returns arguments without `--config.key=None`, and the keys that end as None.

    absl parses None as a number where a key has a number.
    """
    names = {f"--config.{k}": k for k, key in leaves(SCHEMA) if key.default is None}
    none = {f"{name}=None" for name in names}
    last = {arg.partition("=")[0]: arg for arg in argv}
    unset = [key for name, key in names.items() if last.get(name) in none]
    return [arg for arg in argv if arg not in none], unset


def _config_file(argv):
    """Returns the path that --config names, without arguments; None for no path."""
    name = next((x for x in argv if x.startswith("--config=")), "").partition("=")[2]
    return Path(name.partition(":")[0]) if name else None


def _same(name, file):
    return file is not None and Path(name).resolve() == file.resolve()
