"""Errors that are messages to the user: what was wrong, where, and what to do."""

import contextlib
import sys


class TubeViTError(Exception):
    """Base of the named errors; the message says all that a user needs."""


class UnwritableOutput(TubeViTError, OSError):
    """What a command makes cannot be written where it is to go."""


@contextlib.contextmanager
def reported():
    """Ends a command on a named error with its message instead of a stack trace."""
    try:
        yield
    except TubeViTError as error:
        print_error(error)
        sys.exit(1)


def print_error(error: TubeViTError) -> None:
    """Prints an error's name and message to stderr."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


class IndivisibleBatch(TubeViTError, ValueError):
    """A batch cannot be shared out evenly among hosts or devices."""


class DatasetError(TubeViTError):
    """A data set that cannot be made or read; the message says what to do."""
