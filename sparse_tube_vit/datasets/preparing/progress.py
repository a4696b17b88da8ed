"""Progress of a long task on stderr."""

import sys
import time

from tqdm import tqdm


class Progress:
    """A progress bar on a terminal; elsewhere an equivalent line every 30 seconds.

    Args:
        total: Number of examples.
        unit: Printed after the count, such as " videos".
        task: Printed before the bar.
    """

    LINE_EVERY_SECONDS = 30
    LINE = "{n_fmt} of {total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}]"

    def __init__(self, total: int, unit: str, task: str | None = None):
        self.bar = tqdm(desc=task, total=total, unit=unit, disable=None)
        self.total, self.unit, self.count = total, unit, 0
        self.start = self.printed = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def update(self, more: int) -> None:
        """Adds to the count of examples that are done."""
        self.bar.update(more)
        self.count += more
        now = time.monotonic()
        if self.bar.disable and now >= self.printed + self.LINE_EVERY_SECONDS:
            self.printed = now
            line = self.bar.format_meter(
                self.count,
                self.total,
                now - self.start,
                unit=self.unit,
                bar_format=self.LINE,
            )
            print(line, file=sys.stderr, flush=True)
