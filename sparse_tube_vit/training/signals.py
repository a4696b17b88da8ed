"""Signals that ask a run to stop."""

import signal

from sparse_tube_vit.errors import TubeViTError


class Interrupted(TubeViTError, RuntimeError):
    """A signal asked the run to stop; its state is saved."""


class StopSignals:
    """Turns SIGTERM and Ctrl-C into a request to stop, within a `with` block.

    Clouds send SIGTERM before they take a machine away. A second Ctrl-C interrupts at
    once.
    """

    requested = False

    def __enter__(self):
        signals = (signal.SIGTERM, signal.SIGINT)
        self._handlers = {s: signal.signal(s, self._request) for s in signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
