"""What a run tells while it goes: progress line, TensorBoard and JSON lines."""

import contextlib
import json
import os
import time

from etils import epath

from sparse_tube_vit.log import log


def read_metrics(workdir) -> list[dict]:
    """The lines of a run's metrics.jsonl: {"step": int, name: float, ...}."""
    text = (epath.Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


class Reporter:
    """Writes metrics of training and evaluation, on the first host alone.

    TensorBoard files and `metrics.jsonl` go to the work directory, progress to the log.
    """

    def __init__(self, workdir: epath.Path, start: int, total: int, first_host: bool):
        self.total_steps, self.first_host = total, first_host
        # Here, because it imports tensorflow, which announces itself on stderr.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        from clu import metric_writers

        self.writer = metric_writers.create_default_writer(
            str(workdir), just_logging=not first_host, asynchronous=False
        )
        self.lines = workdir / "metrics.jsonl"
        if first_host and self.lines.exists():
            # What came after the last checkpoint, evaluations first, is done again.
            kept = [
                line
                for line in read_metrics(workdir)
                if line["step"] < start
                or (line["step"] == start and "train/loss" in line)
            ]
            self.lines.write_text("".join(json.dumps(x) + "\n" for x in kept))
        self._restart()

    def _restart(self):
        self.started, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def waiting(self, seconds: float):
        """Counts a step and the time that it waited for its data."""
        self.waited += seconds
        self.steps += 1

    def compiled(self):
        """Leaves the first step, which is mostly compilation, out of the step time."""
        log.info("Compiled in %.1f s", time.perf_counter() - self.started)
        self._restart()

    @contextlib.contextmanager
    def pause(self):
        """Leaves what is not training, an evaluation say, out of the step time."""
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before

    def training(self, step: int, metrics: dict, clips_per_step: int):
        """Reports the metrics of `step`, and the speed since the last report."""
        if not self.steps:  # the step just compiled: there is no speed to tell
            self.write(
                step, {f"train/{name}": value for name, value in metrics.items()}
            )
            return
        elapsed = time.perf_counter() - self.started
        step_time = elapsed / self.steps
        metrics = metrics | {
            "step_seconds": step_time,
            "clips_per_second": clips_per_step / step_time,
            "waiting_share": self.waited / elapsed,
        }
        left = time.gmtime(step_time * (self.total_steps - step))
        accuracies = "".join(
            f", {name.rpartition('/')[0]} {value:.1%}"
            for name, value in metrics.items()
            if name.endswith(("/accuracy", "/precision_at_1"))
        )
        log.info(
            "step %d of %d: loss %.3f%s; %.3f s a step, %.1f clips/s, %.0f%% waiting "
            "for data, %s left",
            step,
            self.total_steps,
            metrics["loss"],
            accuracies,
            step_time,
            metrics["clips_per_second"],
            100 * metrics["waiting_share"],
            f"{left.tm_yday - 1} d " * (left.tm_yday > 1)
            + time.strftime("%H:%M:%S", left),
        )
        self.write(step, {f"train/{name}": value for name, value in metrics.items()})
        self._restart()

    def write(self, step: int, scalars: dict):
        """Writes scalars to TensorBoard and as one JSON line."""
        scalars = {name: float(value) for name, value in scalars.items()}
        if self.first_host:
            self.writer.write_scalars(step, scalars)
            with self.lines.open("a") as file:
                file.write(json.dumps({"step": step} | scalars) + "\n")

    def close(self):
        self.writer.close()
