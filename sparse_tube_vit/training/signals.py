"""Signals that ask a run to stop."""

import signal

from sparse_tube_vit.datasets.processes import STOP_SIGNALS
from sparse_tube_vit.errors import STOPPED, TubeViTError


class Interrupted(TubeViTError, RuntimeError):
    """A signal asked the run to stop; its state is saved."""

    exit_code = STOPPED


class StopSignals:
    """Turns SIGTERM and Ctrl-C into a request to stop, from `catch` to `restore`.

    Clouds send SIGTERM before they take a machine away. A second Ctrl-C interrupts at
    once.
    """

    requested = False

    def __init__(self):
        self._handlers = {}

    def catch(self) -> None:
        """Begins to catch the signals."""
        self._handlers = {s: signal.signal(s, self._request) for s in STOP_SIGNALS}

    def restore(self) -> None:
        """Restores the handlers from before `catch`, if it was called."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _request(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
