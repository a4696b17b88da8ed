"""The package's own log, apart from absl's, which the libraries beneath it fill."""

import logging
import sys

from absl import logging as absl_logging

log = logging.getLogger("sparse_tube_vit")


def to_stderr() -> None:
    """Shows our log with the time of day, and of the libraries' errors alone.

    Their warnings are about themselves: orbax has four for every checkpoint it reads.
    """
    absl_logging.set_verbosity(absl_logging.ERROR)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
