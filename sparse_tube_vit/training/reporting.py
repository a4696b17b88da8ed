"""What a run tells while it goes: progress line, TensorBoard and JSON lines."""

import concurrent.futures
import contextlib
import json
import os
import time

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import write_whole

#: What the time of a run is spent on, see `Stopwatch`.
PARTS = ("input", "step", "logging", "checkpoint", "evaluation")


class DamagedMetrics(TubeViTError, ValueError):
    """A line of metrics.jsonl is not what a run writes."""


def read_metrics(workdir) -> list[dict]:
    """The lines of a run's metrics.jsonl: {"step": int, name: float, ...}.

    The log tells of a last line that is left out, cut short as the run was killed.

    Raises:
      DamagedMetrics: another line is broken.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    lines, found = path.read_bytes().splitlines(keepends=True), []
    for number, line in enumerate(lines, start=1):
        try:
            metrics = json.loads(line)
            if not isinstance(metrics, dict) or "step" not in metrics:
                raise ValueError("it has no step")
        except ValueError as error:  # of json, or of text that is not in UTF-8
            where = f"{path}:{number}"
            if number == len(lines) and not line.endswith(b"\n"):
                log.warning("%s is left out: the run was killed in it", where)
                break
            raise DamagedMetrics(
                f"{where} is no line of metrics: {error}. Remove that line."
            ) from error
        found.append(metrics)
    return found


class Stopwatch:
    """Splits a loop's time into parts that add up to it.

    As long as the devices compute a step, time is the step's, whatever the loop does
    meanwhile, as reading the next batch. When they stand idle, it is spent on the part
    that the loop is in; in none, it is the step's.
    """

    def __init__(self, clock=time.perf_counter):
        self._clock, self._part, self._since = clock, "step", clock()
        self._spans = []  # (part, begin, end) since the devices were last looked at
        self._done = None  # when they finish all that they were given, a future
        self._wait = concurrent.futures.ThreadPoolExecutor(1, "wait_for_devices")
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def time(self, part: str):
        """The body is of this part, one of `PARTS`."""
        outer = self._switch(part)
        try:
            yield
        finally:
            self._switch(outer)

    def given(self, result) -> None:
        """The devices were given a step, which is done once `result` is there."""
        self._settle()
        self._done = self._wait.submit(self._when_there, result)

    def read(self) -> dict[str, float]:
        """Seconds of every part since the last reading."""
        self._settle()
        seconds, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return seconds

    def _when_there(self, result):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the loop gets it too
            jax.block_until_ready(result)
        return self._clock()

    def _switch(self, part):
        now, before = self._clock(), self._part
        self._spans.append((before, self._since, now))
        self._since, self._part = now, part
        return before

    def _settle(self):
        self._switch(self._part)
        idle_since = -np.inf
        if self._done is not None:
            idle_since = self._done.result() if self._done.done() else np.inf
        for part, begin, end in self._spans:
            idle = max(0.0, end - max(begin, idle_since))
            self._seconds[part] += idle
            self._seconds["step"] += end - begin - idle
        self._spans.clear()

    def close(self):
        self._wait.shutdown(wait=False)


class Reporter:
    """Writes metrics of training and evaluation, on the first host alone.

    TensorBoard files and `metrics.jsonl` go to the work directory, progress to the log.
    """

    def __init__(self, workdir: epath.Path, start: int, total: int, first_host: bool):
        self.total_steps, self.first_host = total, first_host
        self.lines = workdir / "metrics.jsonl"
        if first_host:
            # Here, because it imports tensorflow, which announces itself on stderr.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
            from clu import metric_writers

            self.writer = metric_writers.create_default_writer(
                str(workdir), asynchronous=False
            )
            self._drop_from(start)
        self._watch, self._steps = Stopwatch(), 0
        self._total = dict.fromkeys(PARTS, 0.0)

    def _drop_from(self, start):
        """Drops what came after the last checkpoint and is done again."""
        if self.lines.exists():
            kept = [
                line
                for line in read_metrics(self.lines.parent)
                if line["step"] < start
                or (line["step"] == start and "train/loss" in line)  # not evaluations
            ]
            text = "".join(json.dumps(x) + "\n" for x in kept)
            write_whole(self.lines, text.encode())

    def time(self, part: str):
        """Context whose time is spent on `part`, one of `PARTS`."""
        return self._watch.time(part)

    def given(self, metrics):
        """Counts a step that the devices were given; `metrics` will be its result."""
        self._watch.given(metrics)
        self._steps += 1

    def compiled(self):
        """Leaves the first step, which is mostly compilation, out of the step time."""
        seconds, self._steps = self._watch.read(), 0
        self._total = {"compilation": seconds["step"]} | seconds | {"step": 0.0}
        log.info("Compiled in %.1f s", seconds["step"])

    def training(self, step: int, metrics: dict, clips_per_step: int):
        """Reports the metrics of `step`, and where the time since the last went.

        Seconds of all parts add up to it, on the first host. The time of a step is that
        of training: of input, step and logging. Of the waits for input the longest of
        any host counts: the others wait for it.
        """
        with self.time("logging"):
            steps, self._steps = self._steps, 0
            if steps:  # else it was just compiled: there is no speed to tell
                seconds = self._read()
                training = seconds["input"] + seconds["step"] + seconds["logging"]
                waits = multihost_utils.process_allgather(np.float32(seconds["input"]))
                speed = {
                    "step_seconds": training / steps,
                    "clips_per_second": clips_per_step * steps / training,
                    "waiting_share": min(waits.max() / training, 1.0),
                    **{f"seconds/{part}": x for part, x in seconds.items()},
                }
                self._log_progress(step, metrics, speed, waits, seconds)
                metrics = metrics | speed
            self.write(step, {f"train/{name}": x for name, x in metrics.items()})

    def _log_progress(self, step, metrics, speed, waits, seconds):
        accuracies = "".join(
            f", {name.rpartition('/')[0]} {value:.1%}"
            for name, value in metrics.items()
            if name.endswith(("/accuracy", "/precision_at_1"))
        )
        told = waits.argmax() and speed["waiting_share"] >= 0.01
        longest = f" (on host {waits.argmax()})" if told else ""
        log.info(
            "step %d of %d: loss %.3f%s; %.3f s a step, %.1f clips/s, %.0f%% waiting "
            "for data%s; time: %s; %s left",
            step,
            self.total_steps,
            metrics["loss"],
            accuracies,
            speed["step_seconds"],
            speed["clips_per_second"],
            100 * speed["waiting_share"],
            longest,
            _shares(seconds),
            _clock_time(speed["step_seconds"] * (self.total_steps - step)),
        )

    def write(self, step: int, scalars: dict):
        """Writes scalars to TensorBoard and as one JSON line."""
        scalars = {name: float(value) for name, value in scalars.items()}
        if self.first_host:
            self.writer.write_scalars(step, scalars)
            with self.lines.open("a") as file:
                file.write(json.dumps({"step": step} | scalars) + "\n")

    def _read(self):
        seconds = self._watch.read()
        for part, x in seconds.items():
            self._total[part] += x
        return seconds

    def close(self):
        """Tells where the time of the whole run went."""
        self._read()
        self._watch.close()
        total = sum(self._total.values())
        log.info("%s in all: %s", _clock_time(total), _shares(self._total))
        if self.first_host:
            self.writer.close()


def _shares(seconds):
    """Where the time went, in per cent, the most first, without what rounds to 0."""
    total = sum(seconds.values())
    shares = {part: x / total for part, x in seconds.items() if x / total >= 0.005}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{share:.0%} {part}" for part, share in ordered)


def _clock_time(seconds):
    days, rest = divmod(round(seconds), 24 * 3600)
    return f"{days} d " * bool(days) + time.strftime("%H:%M:%S", time.gmtime(rest))
