"""The package's log, apart from absl's, which other libraries use, and text tables."""

import logging
import sys
from collections.abc import Sequence

from absl import logging as absl_logging

log = logging.getLogger("sparse_tube_vit")

_TIME = "%m-%d %H:%M:%S"


class _Stderr(logging.StreamHandler):
    """Writes to the current sys.stderr, which tests and notebooks replace."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr


def to_stderr() -> None:
    """Shows the package's log with date and time, and other libraries' errors.

    Other libraries' warnings are hidden: orbax logs four for every checkpoint it reads.
    So are traces of errors that orbax and gcsfs raise as well.
    """
    absl_logging.set_verbosity(absl_logging.ERROR)
    _hide_repeated_errors()
    if not log.handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", _TIME))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def _hide_repeated_errors():
    """Hides traces of errors that orbax and gcsfs raise as well, after every retry."""
    absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)
    for name in ("asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _print_unraisable


def _is_not_of_orbax(record):
    return "orbax" not in record.pathname


def _print_unraisable(unraisable):
    """Prints unraisable errors, except of orbax's tasks that outlived their loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def name_host(index: int) -> None:
    """Adds this host's number to its lines; only the first host logs below warnings.

    The others would log the same.
    """
    if index:
        log.setLevel(logging.WARNING)
    for handler in log.handlers:
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s host {index}: %(message)s", _TIME)
        )


def format_table(rows: Sequence[tuple]) -> list[str]:
    """Returns the lines of a text table: the first column left, the others right."""
    widths = [
        max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)
    ]
    return [
        "  ".join(
            str(cell).ljust(width) if i == 0 else str(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
