"""Errors whose message says what was wrong, where, and what to do."""

import contextlib
import sys
import traceback


class TubeViTError(Exception):
    """Base of the named errors."""


class UnwritableOutput(TubeViTError, OSError):
    """The output of a command cannot be written."""


@contextlib.contextmanager
def reported():
    """Context manager that ends a command without a trace: by a named error or Ctrl-C.

    Names of files that are not in UTF-8 are printed with escapes, as in JSON.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except TubeViTError as error:
        print_error(error)
        # Else what they hold, such as batches in shared memory, would outlive the
        # threads and processes that release it.
        traceback.clear_frames(error.__traceback__)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def print_error(error: TubeViTError) -> None:
    """Prints an error's name and message to stderr."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


class IndivisibleBatch(TubeViTError, ValueError):
    """A batch cannot be split evenly over hosts or devices."""


class DatasetError(TubeViTError):
    """A data set cannot be prepared or read."""
