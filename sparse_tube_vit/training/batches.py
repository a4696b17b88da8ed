"""Batches of all streams on the devices, and what hosts exchange with each step."""

import contextlib
from collections.abc import Mapping

import jax
from etils import epath
from jax.sharding import Mesh

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.distributed import cores, hosts, sharding
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.input import pipeline, workers
from sparse_tube_vit.log import log
from sparse_tube_vit.models.losses import check_loss
from sparse_tube_vit.storage import UnreachableStorage
from sparse_tube_vit.training import undecodable
from sparse_tube_vit.training.reporting import Reporter
from sparse_tube_vit.training.signals import Interrupted, StopSignals


def open_streams(config: ConfigDict) -> dict[str, Split]:
    """Opens the split that each stream reads; returns them by the streams' names.

    Raises:
        DatasetError: The named errors of `reading.open_split`.
        LossDoesNotFit: A stream's loss is for other labels.
    """
    splits = {}
    for name, s in config.streams.items():
        split = reading.open_split(s.dataset, s.split, config.data_dir, s.kind)
        check_loss(f"streams.{name}", s.loss, split.name, split.multi_label)
        splits[name] = split
    return splits


class InputFailed(TubeViTError, RuntimeError):
    """A host could not load a batch, or not at once."""


class TrainingBatches:
    """Batches of every stream, step after step; a context manager.

    On exit, as by `save_undecodable`, it writes the list of undecodable examples.

    With each step the hosts exchange which examples they could not decode, and whether
    one of them has to stop: all of them act on it after the same step, which is saved.
    Reasons are a signal; too many examples that do not decode; and a worker process
    that died or storage that did not answer, whose batch is then loaded once more.

    Args:
        config: The config of the run.
        splits: The split that each stream reads, by the stream's name.
        mesh: The mesh over all devices.
        workdir: The run's work directory, where what does not decode is noted.
        first_step: The number of steps already taken; batches begin with the next one.
        signals: Requests to stop this host.
        reporter: Counts the time that is spent here as input.
    """

    def __init__(
        self,
        config: ConfigDict,
        splits: Mapping[str, Split],
        mesh: Mesh,
        workdir: epath.Path,
        first_step: int,
        signals: StopSignals,
        reporter: Reporter,
    ):
        self._mesh, self._workdir, self._reporter = mesh, workdir, reporter
        self._config, self._splits = config, splits
        self._share = sharding.batch_share(mesh)
        self._loaders = workers.training_loaders(
            config, splits, cores.worker_cores(), self._share
        )
        self._loaded = self._taken = first_step  # last steps whose batches were
        self._streams = {name: self._open(name) for name in config.streams}
        self._undecodable = {
            name: undecodable.Undecodable(split, config.loader.max_undecodable)
            for name, split in splits.items()
        }
        undecodable.restore(workdir, self._undecodable, first_step)
        self._unsaved = False  # whether the work directory lacks some of them
        self._unsent = {}  # stream -> id -> problem, new since the last exchange
        self._prefetched = None
        self._signals, self._messages = signals, hosts.HostMessages()
        self._own_failures = {}  # why this host has to stop, beside signals, by stream
        self._failures = []  # why hosts have to stop, beside signals
        self.too_many = None  # TooManyUndecodable, on all hosts after the same step

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.ExitStack() as stack:
            for stream in self._streams.values():
                stack.callback(stream.close)
            stack.callback(self.save_undecodable)

    def take(self) -> dict:
        """Returns the next step's batches, and sends this host's messages to all.

        Returns:
            For each stream global arrays: "video" uint8 (B, T, H, W, 3), "label" (B,)
            or multi-hot (B, C), "weight" (B,).
        """
        batches, self._prefetched = self._prefetched or self._load(), None
        self._messages.send(
            stop=self._signals.requested,
            failed="\n".join(self._own_failures.values()),
            undecodable=dict(self._unsent),
        )
        self._unsent.clear()
        self._taken += 1
        return batches

    def prefetch(self) -> None:
        """Loads the next step's batches and starts their transfer.

        Does nothing if this host has to stop: a failure here would lose the step.
        """
        if not (self._signals.requested or self._own_failures):
            self._prefetched = self._load()

    def receive(self) -> bool:
        """Receives what the hosts sent by `take`; returns whether the run has to stop.

        Undecodable examples of all hosts are logged, each once.
        """
        stop = False
        for message in self._messages.receive():
            stop |= message["stop"] or bool(message["failed"])
            if message["failed"]:
                self._failures.append(message["failed"])
            self._unsaved |= bool(message["undecodable"])
            for name, problems in message["undecodable"].items():
                try:
                    for line in self._undecodable[name].note(problems, self._taken):
                        log.warning(line)
                except undecodable.TooManyUndecodable as error:
                    self.too_many, stop = error, True
        return stop

    def save_undecodable(self) -> None:
        """Notes what does not decode in the work directory, where there is more by now.

        Raises:
            UnwritableOutput: The file cannot be written.
        """
        if self._unsaved and jax.process_index() == 0:
            undecodable.save(self._workdir, self._undecodable)
        self._unsaved = False

    def stopped(self, where: str) -> TubeViTError:
        """Returns the error that ends the run.

        It is TooManyUndecodable, InputFailed or Interrupted.

        Args:
            where: Which step is saved in which directory, as a sentence.
        """
        if self.too_many:
            return undecodable.TooManyUndecodable(f"{self.too_many}\n{where}")
        if self._failures:
            return InputFailed("\n".join([*self._failures, where]))
        return Interrupted(f"Stopped by a signal. {where}")

    def stop_requested(self) -> bool:
        """Returns whether any host was asked to stop; every host has to call it."""
        self._messages.send(stop=self._signals.requested)
        return bool(self._messages.receive())

    def undecodable_counts(self) -> dict[str, int]:
        """Returns the number of undecodable examples of every stream, for metrics."""
        return {
            f"{name}/undecodable": len(each.problems)
            for name, each in self._undecodable.items()
        }

    def _load(self):
        with self._reporter.time("input"):
            batches = {name: self._next(name) for name in self._streams}
            self._loaded += 1
            for name, parts in batches.items():
                for part in parts:
                    if new := self._undecodable[name].find(part):
                        self._unsent[name] = self._unsent.get(name, {}) | new
            parts = [
                {
                    name: {key: batch[i][key] for key in ("video", "label", "weight")}
                    for name, batch in batches.items()
                }
                for i in range(self._share.parts)
            ]
            return sharding.to_devices(parts, self._mesh)

    def _next(self, name):
        """Returns a stream's next share, in parts; loaded again if that failed."""
        try:
            return self._take_parts(name)
        except (pipeline.LoaderDied, UnreachableStorage) as error:
            if name in self._own_failures:
                raise
            self._own_failures[name] = str(error)
            log.warning("%s The run stops after the next step.", error)
        self._streams[name].close()
        self._streams[name] = self._open(name)
        return self._take_parts(name)

    def _take_parts(self, name):
        return [next(self._streams[name]) for _ in range(self._share.parts)]

    def _open(self, name):
        return pipeline.training_batches(
            self._splits[name],
            name,
            self._config.streams[name],
            self._config.clip,
            self._loaders[name],
            self._config.seed,
            self._loaded,
            self._share,
        )
