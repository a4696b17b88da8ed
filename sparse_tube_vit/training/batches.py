"""Batches of all streams on the devices, and what hosts exchange with each step."""

import contextlib
from collections.abc import Mapping

from jax.sharding import Mesh

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.distributed import hosts, sharding
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.log import log
from sparse_tube_vit.training.reporting import Reporter
from sparse_tube_vit.training.signals import StopSignals
from sparse_tube_vit.training.undecodable import Undecodable


class TrainingBatches:
    """Batches of every stream, step after step, for `with`.

    With each step the hosts exchange which examples they could not decode, and whether
    one of them was asked to stop: all of them act on it after the same step. Within the
    `with` block, SIGTERM and Ctrl-C are such requests.

    Args:
        config: The config of the run.
        splits: The split that each stream reads, by the stream's name.
        mesh: The mesh over all devices.
        first_step: The number of steps already taken; batches begin with the next one.
        reporter: Counts the time that is spent here as input.
    """

    def __init__(
        self,
        config: ConfigDict,
        splits: Mapping[str, Split],
        mesh: Mesh,
        first_step: int,
        reporter: Reporter,
    ):
        self.examples_per_step = sum(s.batch_size for s in config.streams.values())
        self._mesh, self._reporter = mesh, reporter
        self._streams = {
            name: pipeline.training_batches(
                splits[name],
                name,
                stream,
                config.clip,
                config.loader,
                config.seed,
                first_step,
                *sharding.batch_share(mesh),
            )
            for name, stream in config.streams.items()
        }
        self._undecodable = {
            name: Undecodable(split, config.loader.max_undecodable)
            for name, split in splits.items()
        }
        self._unsent = {}  # stream -> id -> problem, new since the last exchange
        self._prefetched = None
        self._signals, self._messages = StopSignals(), hosts.HostMessages()

    def __enter__(self):
        self._signals.__enter__()
        return self

    def __exit__(self, *exception):
        with contextlib.ExitStack() as stack:
            stack.push(self._signals)
            for stream in self._streams.values():
                stack.callback(stream.close)

    def take(self) -> dict:
        """Returns the next step's batches, and sends this host's messages to all.

        Returns:
            For each stream global arrays: "video" uint8 (B, T, H, W, 3), "label" (B,)
            or multi-hot (B, C), "weight" (B,).
        """
        batches, self._prefetched = self._prefetched or self._load(), None
        self._messages.send(
            stop=self._signals.requested, undecodable=dict(self._unsent)
        )
        self._unsent.clear()
        return batches

    def prefetch(self) -> None:
        """Loads the next step's batches and starts their transfer."""
        self._prefetched = self._load()

    def receive(self) -> bool:
        """Receives what the hosts sent by `take`; returns whether the run is to stop.

        Undecodable examples of all hosts are logged, each once.

        Raises:
            TooManyUndecodable: More of a data set than the config allows.
        """
        stop = False
        for message in self._messages.receive():
            stop |= message["stop"]
            for name, problems in message["undecodable"].items():
                for line in self._undecodable[name].note(problems):
                    log.warning(line)
        return stop

    def stop_requested(self) -> bool:
        """Returns whether any host was asked to stop; every host has to call it."""
        self._messages.send(stop=self._signals.requested)
        return bool(self._messages.receive())

    def undecodable_counts(self) -> dict[str, int]:
        """Returns the number of undecodable examples of every stream, for metrics."""
        return {
            f"{name}/undecodable": len(undecodable.problems)
            for name, undecodable in self._undecodable.items()
        }

    def _load(self):
        with self._reporter.time("input"):
            batches = {name: next(stream) for name, stream in self._streams.items()}
            for name, batch in batches.items():
                if new := self._undecodable[name].find(batch):
                    self._unsent[name] = self._unsent.get(name, {}) | new
            return sharding.to_devices(
                {
                    name: {key: batch[key] for key in ("video", "label", "weight")}
                    for name, batch in batches.items()
                },
                self._mesh,
            )
