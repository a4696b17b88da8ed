"""Progress line, TensorBoard and JSON lines of a run."""

import concurrent.futures
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from etils import epath

from sparse_tube_vit.distributed import hosts
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import GrowingFile, write_whole
from sparse_tube_vit.training.tensorboard import EventFile, keep_events
from sparse_tube_vit.training.utilization import Utilization, rates_in_words

#: The parts that the time of a run is split into, see `Stopwatch`.
PARTS = ("input", "step", "logging", "checkpoint", "evaluation")

#: The parts that make the step time of training.
TRAINING = ("input", "step", "logging")


#: Share of waiting for data from which the log says what helps.
LONG_WAIT = 0.05


class DamagedMetrics(TubeViTError, ValueError):
    """A line of metrics.jsonl that no run has written."""


def read_metrics(workdir) -> list[dict]:
    """Reads the lines of a run's metrics.jsonl: {"step": int, name: float, ...}.

    A last line that was cut short when the run was killed is skipped with a warning.

    Raises:
        DamagedMetrics: Another line is broken.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    lines, parsed = path.read_bytes().splitlines(keepends=True), []
    for number, line in enumerate(lines, start=1):
        try:
            metrics = json.loads(line)
            if not isinstance(metrics, dict) or "step" not in metrics:
                raise ValueError("it has no step")
        except ValueError as error:  # of json, or of text that is not in UTF-8
            where = f"{path}:{number}"
            if number == len(lines) and not line.endswith(b"\n"):
                log.warning("%s is ignored: the run was killed while writing it", where)
                break
            raise DamagedMetrics(
                f"{where} is no line of metrics: {error}. Remove that line."
            ) from error
        parsed.append(metrics)
    return parsed


def drop_from(workdir: epath.Path, start: int, again: Iterable[str] = ()) -> None:
    """Removes the metrics that a run resumed after step `start` writes again.

    Removed are all of later steps, and those of the evaluations `again`, from
    metrics.jsonl and TensorBoard's files, which would show them twice.

    Args:
        workdir: The work directory of the run.
        start: The number of steps already taken.
        again: Names of evaluations that run again at `start`.
    """
    repeated = tuple(f"evaluation/{name}/" for name in again)

    def is_kept(step, names):
        repeats = any(name.startswith(repeated) for name in names)
        return step < start or (step == start and not repeats)

    if (path := workdir / "metrics.jsonl").exists():
        lines = [x for x in read_metrics(workdir) if is_kept(x["step"], x)]
        write_whole(path, "".join(json.dumps(x) + "\n" for x in lines).encode())
    keep_events(workdir, is_kept)


def training_metrics(line: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of training in a line of metrics.jsonl, without "train/"."""
    return {
        name.removeprefix("train/"): x
        for name, x in line.items()
        if name.startswith("train/")
    }


class Stopwatch:
    """Splits a loop's time into parts that sum to it.

    While a device is busy, time counts as step; while it is idle, as the part that the
    host loop is in, or as step if it is in none.
    """

    def __init__(self, clock=time.perf_counter):
        self._clock, self._part, self._since = clock, "step", clock()
        self._spans = []  # (part, begin, end) since the devices were last checked
        self._done = None  # future: when all steps that were dispatched are done
        self._wait = concurrent.futures.ThreadPoolExecutor(1, "wait_for_devices")
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def time(self, part: str):
        """Counts the body's time as this part, one of `PARTS`."""
        outer = self._switch(part)
        try:
            yield
        finally:
            self._switch(outer)

    def dispatched(self, result) -> None:
        """Notes that a step was dispatched, which is done once `result` is ready."""
        self._settle()
        self._done = self._wait.submit(self._when_ready, result)

    def elapsed(self) -> dict[str, float]:
        """Returns the seconds of every part since the last lap, which goes on."""
        self._settle()
        return dict(self._seconds)

    def lap(self) -> dict[str, float]:
        """Returns the seconds of every part since the last lap, and begins another."""
        self._settle()
        seconds, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return seconds

    def _when_ready(self, result):
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
    """Writes metrics of training and evaluation, on the first host only.

    TensorBoard files and `metrics.jsonl` go to the work directory, progress to the log.

    Args:
        workdir: The work directory of the run.
        start: The number of steps already taken.
        total: The number of steps of the run.
        first_host: Whether this host writes.
        steps_left: Maps a step to the time left, in units of that step's time; by
            default the number of steps after it.
        utilization: Computes the rates that are reported beside step time.
        again: Names of evaluations that run again at `start`.
    """

    def __init__(
        self,
        workdir: epath.Path,
        start: int,
        total: int,
        first_host: bool,
        steps_left: Callable[[int], float] | None = None,
        utilization: Utilization | None = None,
        again: Iterable[str] = (),
    ):
        self.total_steps, self.first_host = total, first_host
        self._steps_left = steps_left or (lambda step: total - step)
        self._utilization = utilization
        if first_host:
            drop_from(workdir, start, again)
            self._events = EventFile(workdir)
            self._lines = GrowingFile(workdir / "metrics.jsonl")
        self._watch, self._steps = Stopwatch(), 0
        self._advised = False
        self.timed_steps = 0  # since the last compilation
        self._seconds_before = 0.0  # of training, up to that compilation
        self._total = dict.fromkeys(PARTS, 0.0)

    def time(self, part: str):
        """Counts the body's time as this part, one of `PARTS`."""
        return self._watch.time(part)

    def dispatched(self, metrics):
        """Counts a step that was dispatched, whose result is `metrics`."""
        self._watch.dispatched(metrics)
        self._steps += 1
        self.timed_steps += 1

    def exclude_compilation(self):
        """Excludes the step since the last report, mostly compilation, from times."""
        seconds, self._steps = self._watch.lap(), 0
        for part, x in seconds.items():
            part = "compilation" if part == "step" else part
            self._total[part] = self._total.get(part, 0.0) + x
        self.timed_steps, self._seconds_before = 0, self._training_seconds()
        log.info("Compiled in %.1f s", seconds["step"])

    def step_seconds(self) -> float:
        """Returns the mean time of the timed steps, as `report_step` reports it."""
        return (self._training_seconds() - self._seconds_before) / self.timed_steps

    def _training_seconds(self):
        seconds = self._watch.elapsed()
        return sum(self._total[part] + seconds[part] for part in TRAINING)

    def report_step(self, step: int, metrics: dict):
        """Reports the metrics of a step, and the time spent since the last report.

        Step time is that of training, input, step and logging, on the first host:
        without evaluation, checkpoints and compilation. Rates follow from it. The share
        of waiting for input is that of the slowest host, for which the others wait.

        Args:
            step: The step, counted from 1.
            metrics: Its metrics by name.
        """
        with self.time("logging"):
            steps, self._steps = self._steps, 0
            if steps:  # else it was just compiled, and there is no speed to report
                seconds = self._lap()
                training = sum(seconds[part] for part in TRAINING)
                waits = hosts.gather(f"waits/{step}", str(seconds["input"]))
                waits = np.array(waits, float)
                speed = {"step_seconds": training / steps}
                if self._utilization:
                    speed |= self._utilization.rates(step, speed["step_seconds"])
                speed |= {
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
        slowest = waits.argmax() if speed["waiting_share"] >= 0.01 else 0
        longest = f" (on host {slowest})" if slowest else ""
        log.info(
            "step %d of %d: loss %.3f%s; %s, %.0f%% waiting for data%s; time: %s; "
            "%s left",
            step,
            self.total_steps,
            metrics["loss"],
            accuracies,
            rates_in_words(speed),
            100 * speed["waiting_share"],
            longest,
            _shares(seconds),
            clock_time(speed["step_seconds"] * self._steps_left(step)),
        )
        if speed["waiting_share"] >= LONG_WAIT and not self._advised:
            self._advised = True
            log.info(
                "Steps wait for data. More CPU cores help, videos made small (prepare "
                "--transcode), fewer frames, more hosts; see docs/pods.md, Feeding."
            )

    def write(self, step: int, scalars: dict):
        """Writes scalars to TensorBoard and as a line of metrics.jsonl."""
        scalars = {name: float(value) for name, value in scalars.items()}
        if self.first_host:
            self._events.write_scalars(step, scalars)
            self._lines.append((json.dumps({"step": step} | scalars) + "\n").encode())

    def flush(self):
        """Waits until all that was written is in the work directory."""
        if self.first_host:
            self._lines.flush()
            self._events.flush()

    def _lap(self):
        seconds = self._watch.lap()
        for part, x in seconds.items():
            self._total[part] += x
        return seconds

    def close(self):
        """Logs how the time of the whole run was spent, and waits as `flush`."""
        self._lap()
        self._watch.close()
        total = sum(self._total.values())
        log.info("%s in all: %s", clock_time(total), _shares(self._total))
        self.flush()


def _shares(seconds):
    """Percentages of the parts, the largest first, without those that round to 0."""
    total = sum(seconds.values())
    shares = {part: x / total for part, x in seconds.items() if x / total >= 0.005}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{share:.0%} {part}" for part, share in ordered)


def clock_time(seconds: float) -> str:
    """Returns a time in words, as "1 d 00:17:30"."""
    days, rest = divmod(round(seconds), 24 * 3600)
    return f"{days} d " * bool(days) + time.strftime("%H:%M:%S", time.gmtime(rest))
