"""CPU cores that a pod's hosts need to feed a train step."""

import dataclasses
from collections.abc import Mapping

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.distributed.cores import MAIN_PROCESS
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.input import workers
from sparse_tube_vit.tpu.chips import Topology

# Milliseconds of one core: (for an example, more for each frame of 224x224 pixels),
# with two layers of RandAugment: docs/measurements.md, "Feeding a pod". Videos as they
# come are H.264 clips of 10 s; transcoded ones have `TRANSCODE`. Images are JPEGs of
# 500x375 pixels.
_MILLISECONDS = {
    "video": (67.1, 0.575),
    "transcoded": (16.1, 0.575),
    "image": (3.9, 0.575),
}
TRANSCODE = "--transcode short_side=256,gop=30,crf=23"


@dataclasses.dataclass(frozen=True)
class StreamCost:
    """Host CPU time of a stream.

    Attributes:
        kind: "video" or "image".
        examples: Number of examples of a step on a host.
        seconds: Seconds of one core for an example.
        source: "measured here", "given" or "estimated".
        transcoded: The estimate for a transcoded example.
    """

    kind: str
    examples: float
    seconds: float
    source: str
    transcoded: float


@dataclasses.dataclass(frozen=True)
class Feeding:
    """Cores that a host needs to feed a train step, and those that it has.

    Attributes:
        hosts: Number of hosts.
        machine: Machine type of a host.
        vcpus: Number of its vCPUs.
        step_seconds: Predicted time of a step.
        streams: Costs by stream.
    """

    hosts: int
    machine: str
    vcpus: int
    step_seconds: float
    streams: Mapping[str, StreamCost]

    @property
    def available(self) -> int:
        """vCPUs for worker processes."""
        return self.vcpus - MAIN_PROCESS

    @property
    def needed(self) -> float:
        """Cores of a host that decode as fast as the step computes."""
        return self._cores({name: s.seconds for name, s in self.streams.items()})

    @property
    def needed_transcoded(self) -> float:
        """The same, with videos that `prepare` has transcoded, by the estimate."""
        return self._cores(
            {
                name: min(s.seconds, s.transcoded) if s.kind == "video" else s.seconds
                for name, s in self.streams.items()
            }
        )

    @property
    def suffices(self) -> bool:
        """Whether the cores keep up with the step."""
        return self.needed <= self.available

    def _cores(self, seconds):
        step = sum(s.examples * seconds[name] for name, s in self.streams.items())
        return step / self.step_seconds

    def verdict(self) -> str:
        """Returns in a sentence whether the cores suffice, and what helps if not."""
        beside = (
            f"{self.needed:.1f} cores a host decode as fast as the step computes; "
            f"{self.machine} has {self.vcpus} vCPUs, {MAIN_PROCESS} of them for the "
            "main process"
        )
        if self.suffices:
            return f"{beside}: they suffice."
        step = 1e3 * self.step_seconds
        slowed = step * self.needed / self.available
        ways = ["fewer clip.frames", "fewer randaugment_layers", "more hosts"]
        if self.needed_transcoded < 0.9 * self.needed:
            ways.insert(
                0, f"prepare {TRANSCODE} (about {self.needed_transcoded:.1f} cores)"
            )
        return (
            f"{beside}: they do not suffice, and a step would take {slowed:.0f} ms "
            f"instead of {step:.0f}. What helps: {', '.join(ways)}."
        )


def feeding(
    config: ConfigDict,
    topology: Topology,
    batch_shares: int,
    step_seconds: float,
    given: Mapping[str, float],
) -> Feeding:
    """Returns the cores that a host needs for a predicted step.

    Args:
        config: The config of the run.
        topology: The pod.
        batch_shares: Number of equal shares of a batch; hosts that the tensor axis
            connects decode the same.
        step_seconds: Predicted time of a step.
        given: Seconds of one core for an example, by stream. For other streams it is
            measured here if their data set is prepared, else estimated.
    """
    hosts, costs = topology.hosts, {}
    for name, stream in config.streams.items():
        seconds, source = given.get(name), "given"
        if seconds is None:
            seconds, source = _measured(config, name, topology.chips), "measured here"
        if seconds is None:
            seconds, source = _estimate(config.clip, stream.kind), "estimated"
        kind = "transcoded" if stream.kind == "video" else "image"
        transcoded = _estimate(config.clip, kind)
        examples = stream.batch_size / batch_shares
        costs[name] = StreamCost(stream.kind, examples, seconds, source, transcoded)
    machine = topology.machine
    return Feeding(hosts, machine.name, machine.vcpus, step_seconds, costs)


def _measured(config, name, chips):
    """Returns the seconds of an example on this machine; None without its data set."""
    stream = config.streams[name]
    try:
        split = reading.open_split(
            stream.dataset, stream.split, config.data_dir, stream.kind
        )
    except DatasetError:
        return None
    return workers.stream_seconds(config, name, split, chips)


def _estimate(clip, kind):
    base, frame = _MILLISECONDS[kind]
    frames = 1 if kind == "image" else clip.frames
    return 1e-3 * (base + frame * frames * (clip.size / 224) ** 2)
