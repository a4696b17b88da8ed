"""Signals that ask a run to stop."""

import signal

from sparse_tube_vit.errors import TubeViTError


class StopOnSignal:
    """Takes SIGTERM, which clouds send before taking a machine, as a wish to stop.

    So it takes Ctrl-C; a second one interrupts at once.
    """

    requested = False

    def __enter__(self):
        def request(number, frame):
            if self.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.requested = True

        signals = (signal.SIGTERM, signal.SIGINT)
        self.before = {number: signal.signal(number, request) for number in signals}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Interrupted(TubeViTError, RuntimeError):
    """A signal asked the run to stop; its state is saved."""
