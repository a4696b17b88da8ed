"""Errors whose message says what was wrong, where, and what to do."""

import contextlib
import os
import select
import sys
import traceback


class TubeViTError(Exception):
    """Base of the named errors.

    Attributes:
        exit_code: Exit code of a command that it ends.
    """

    exit_code = 1


#: Exit code of a run that a signal stopped, which goes on if it is started again:
#: EX_TEMPFAIL of sysexits.h.
STOPPED = 75


class UnwritableOutput(TubeViTError, OSError):
    """The output of a command cannot be written."""


#: Packages of the extra `train`, by the names that they are imported by.
TRAIN = (
    *("PIL", "array_record", "clu", "cv2", "grain", "matplotlib", "tensorboard"),
    "tensorflow_datasets",
)


class MissingPackage(TubeViTError, ModuleNotFoundError):
    """A package of the extra `train` is not installed."""


@contextlib.contextmanager
def reported():
    """Ends a command without a trace on named errors, Ctrl-C and a closed output pipe.

    Names of files that are not in UTF-8 are printed with escapes, as in JSON.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except (TubeViTError, ModuleNotFoundError) as error:
        if not isinstance(named := _named(error), TubeViTError):
            raise
        print_error(named)
        # Else what they hold, such as batches in shared memory, would outlive the
        # threads and processes that release it.
        traceback.clear_frames(error.__traceback__)
        sys.exit(named.exit_code)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_has_ended():
            raise
        # Else Python flushes once more at the end, and fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as of SIGPIPE


def _reader_has_ended():
    """Whether nothing reads what is printed any longer, as after `| head`."""
    try:
        stdout = sys.stdout.fileno()
    except (AttributeError, OSError):  # a notebook's
        return False
    poll = select.poll()
    poll.register(stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def report_uncaught(kind, error, trace) -> None:
    """Prints a missing package of the extra `train` without a trace, as sys.excepthook.

    For commands: they import packages before `reported` is entered.
    """
    if isinstance(named := _named(error), MissingPackage):
        print_error(named)
    else:
        sys.__excepthook__(kind, error, trace)


def _named(error):
    """Returns MissingPackage if a package of the extra is absent, or else the error."""
    if not isinstance(error, ModuleNotFoundError) or isinstance(error, TubeViTError):
        return error
    package = (error.name or "").partition(".")[0]
    if package not in TRAIN:
        return error
    return MissingPackage(
        f"This needs {package}, which is not installed. It comes with the extra "
        '`train`: in the folder of the repository, pip install ".[train]"'
    )


def print_error(error: TubeViTError) -> None:
    """Prints an error's name and message to stderr."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


class IndivisibleBatch(TubeViTError, ValueError):
    """A batch cannot be split evenly over hosts or devices."""


class DatasetError(TubeViTError):
    """A data set cannot be prepared or read."""
