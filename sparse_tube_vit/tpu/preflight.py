"""Memory, time and collectives of a train step on a TPU pod, predicted."""

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping

import jax

from sparse_tube_vit.config import ConfigDict, validate
from sparse_tube_vit.datasets.catalog import OFFICIAL_CLASSES
from sparse_tube_vit.datasets.classes import classes_of
from sparse_tube_vit.distributed import sharding
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.models.flops import step_flops
from sparse_tube_vit.tpu import hlo
from sparse_tube_vit.tpu.chips import Topology
from sparse_tube_vit.tpu.cost import Estimate, Network, estimate
from sparse_tube_vit.tpu.feeding import Feeding
from sparse_tube_vit.training.program import Program
from sparse_tube_vit.training.utilization import in_gib, timed_keys


class UnknownClasses(TubeViTError, ValueError):
    """The number of a head's classes is unknown without its data set."""


class DoesNotFit(TubeViTError, MemoryError):
    """The step needs more memory than a chip has.

    Attributes:
        mesh: Sizes of the mesh's axes by name.
    """

    def __init__(self, message, mesh):
        super().__init__(message)
        self.mesh = mesh


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on every chip.

    Attributes:
        parameters: The model's parameters.
        optimizer: The rest of the train state: moments, averages, counters.
        batches: Batches of this step, and of the next, transferred meanwhile.
        temporaries: Activations and all else that the step computes.
        program: Compiled code.
        available: To a program.
    """

    parameters: int
    optimizer: int
    batches: int
    temporaries: int
    program: int
    available: float

    @property
    def peak(self) -> int:
        """Bytes in use at most."""
        return sum(dataclasses.astuple(self)[:-1])


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Predicted cost of a config's train step on a topology.

    Attributes:
        topology: Chips that it was compiled for.
        mesh: Sizes of the mesh's axes by name.
        batch_shares: Number of equal shares of a batch that hosts load.
        compile_seconds: Seconds that compiling took here.
        memory: Bytes on every chip.
        estimate: Predicted time.
        model_flops: FLOPs of the model's products, forward and backward, on all chips.
        batch: Examples per step by stream.
        steps: The number of steps of the config.
        config: The config's values that change the time of a step, by key.
        feeding: Cores that a host needs to feed the step; None where not computed.
    """

    topology: Topology
    mesh: Mapping[str, int]
    batch_shares: int
    compile_seconds: float
    memory: Memory
    estimate: Estimate
    model_flops: int
    batch: Mapping[str, int]
    steps: int
    config: Mapping[str, object]
    feeding: Feeding | None = None

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: model FLOPs as a fraction of the chips' peak."""
        peak = self.topology.chips * self.topology.chip.peak_flops
        return self.model_flops / (self.estimate.seconds * peak)

    @property
    def chip_hours(self) -> float:
        """Chip-hours of all steps, without evaluations and checkpoints."""
        return self.estimate.seconds * self.steps * self.topology.chips / 3600


def measure(
    config: ConfigDict, topology: Topology, classes: Mapping[str, int]
) -> Preflight:
    """Compiles a config's train step for a topology and reads its cost.

    Args:
        config: The config of the run.
        topology: With as many slices as `config.mesh.slices`.
        classes: Number of outputs by head.

    Raises:
        DoesNotFit: A chip has too little memory.
        NoTpuCompiler, UnknownTopology: As `Topology.devices`.
        MeshDoesNotFit, IndivisibleBatch, ...: As training with this config.
    """
    validate(config)
    mesh = sharding.make_mesh(config, topology.devices())
    program = Program(config, classes, mesh)
    started = time.perf_counter()
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "Ran out of memory" not in str(error):
            raise
        needed = needed_bytes(str(error))
        raise _does_not_fit(topology, mesh, needed) from error
    compiling = time.perf_counter() - started
    memory = _memory(program, compiled.memory_analysis(), topology.chip.memory)
    if memory.peak > memory.available:
        raise _does_not_fit(topology, mesh, memory.peak)
    return Preflight(
        topology=topology,
        mesh=dict(mesh.shape),
        batch_shares=sharding.batch_share(
            mesh, mesh.devices.flat[0].process_index
        ).count,
        compile_seconds=compiling,
        memory=memory,
        estimate=estimate(hlo.parse(compiled.as_text()), _network(mesh, topology)),
        model_flops=step_flops(config, program.model),
        batch={name: stream.batch_size for name, stream in config.streams.items()},
        steps=config.total_steps,
        config=timed_keys(config),
    )


def needed_bytes(message: str) -> float | None:
    """Returns the bytes that the compiler's error asks for, None if it states none."""
    found = re.search(r"(?:Used |\()([\d.]+)([KMG])", message)
    return found and float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]]


def _does_not_fit(topology, mesh, needed):
    needs = f"needs {in_gib(needed)}" if needed else "does not fit"
    has = f"a chip of {topology.name} has {in_gib(topology.chip.memory)}"
    return DoesNotFit(f"A step {needs}, {has}.", dict(mesh.shape))


def _memory(program, analysis, available):
    def per_chip(tree):
        return sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    state = program.state
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(
        parameters=per_chip(state.params),
        optimizer=per_chip(state) - per_chip(state.params),
        batches=2 * per_chip(program.batches),
        temporaries=analysis.temp_size_in_bytes + results,
        program=analysis.generated_code_size_in_bytes,
        available=available,
    )


def _network(mesh, topology):
    """Returns the network of one slice; all slices compute the same."""
    axes = dict(mesh.shape)
    axes["data"] //= topology.slices
    devices = mesh.devices.flat[: math.prod(axes.values())]
    places = [tuple(device.coords) for device in devices]
    return Network(topology.chip, topology.grid, axes, places, topology.slices)


def preflight(
    config: ConfigDict, topology: Topology, classes: Mapping[str, int]
) -> Preflight:
    """Measures a config's train step, and what would make it fit if it does not.

    Args:
        config, topology, classes: As for `measure`.

    Raises:
        DoesNotFit: A chip has too little memory; the message names the first change to
            the config with which the step fits. And as `measure`.
    """
    log.info("Compiling for %s", topology)
    try:
        return measure(config, topology, classes)
    except DoesNotFit as error:
        message, mesh = str(error), error.mesh
    for change in changes(config, mesh):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(change)
        options = " ".join(f"--config.{key}={value}" for key, value in change.items())
        log.info("Trying %s", options)
        try:
            result = measure(changed, topology, classes)
        except DoesNotFit as error:
            log.info("%s", error)
            continue
        advice = (
            f"It fits with {options}: {in_gib(result.memory.peak)}, "
            f"{1e3 * result.estimate.seconds:.0f} ms a step."
        )
        break
    else:
        advice = "Nor does it with rematerialization, accumulation and smaller batches."
    raise DoesNotFit(f"{message} {advice}", mesh)


def changes(config: ConfigDict, mesh: Mapping[str, int]) -> Iterator[dict]:
    """Yields changes with which a step takes less memory, small ones first.

    Each alone at first, then more and more of them together.

    Args:
        config: Whose step does not fit.
        mesh: Sizes of its mesh's axes by name.

    Yields:
        Values by the config's keys.
    """
    ways = mesh["data"] * mesh["fsdp"]
    slices = config.mesh.slices
    parts = config.optimizer.accumulate_steps
    batches = {name: s.batch_size for name, s in config.streams.items()}
    most = min(batches.values()) // ways  # then a part has one example a chip

    def smaller(factor):
        unit = ways * parts
        return {
            f"streams.{name}.batch_size": size // factor // unit * unit
            for name, size in batches.items()
        }

    milder = []
    if config.model.remat != "full":
        milder.append({"model.remat": "full"})
    if not config.model.scan:
        milder.append({"model.scan": True})
    if 2 * parts <= most:
        milder.append({"optimizer.accumulate_steps": 2 * parts})
    fsdp = math.gcd(config.model.width, ways // slices)  # it splits every width
    if mesh["fsdp"] < fsdp:
        milder.append({"mesh.data": ways // fsdp, "mesh.fsdp": fsdp})
    yield from milder
    if most >= 2 * parts:
        yield smaller(2)
    together = {}
    for change in milder:
        together |= change
        if together != milder[0]:
            yield dict(together)
    while together.get("optimizer.accumulate_steps", most) * 2 <= most:
        together["optimizer.accumulate_steps"] *= 2
        yield dict(together)
    together.pop("optimizer.accumulate_steps", None)
    for factor in (2**i for i in range(1, (most // parts).bit_length())):
        yield together | smaller(factor)


def head_classes(config: ConfigDict, given: Mapping[str, int]) -> dict[str, int]:
    """Returns the number of classes of every head.

    Args:
        config: The config of the run.
        given: Number of classes by head, in place of the data set's. Data sets of
            official classes need not be prepared.

    Raises:
        UnknownClasses: A number is neither given nor known.
    """
    prepared = classes_of(config)
    classes = {}
    for name, stream in config.streams.items():
        dataset = stream.dataset
        of_any_kind = OFFICIAL_CLASSES.get(dataset.partition("/")[0])
        official = OFFICIAL_CLASSES.get(dataset, of_any_kind)
        classes[stream.head] = (
            given.get(stream.head) or prepared[stream.head] or official
        )
        if not classes[stream.head]:
            raise UnknownClasses(
                f"The number of classes of {stream.dataset}, on which streams.{name} "
                f"trains head {stream.head!r}, is unknown, as it is not prepared. Give "
                f"it with --classes {stream.head}=N."
            )
    if unknown := set(given) - set(classes):
        raise UnknownClasses(
            f"--classes names {', '.join(sorted(unknown))}, but the streams train "
            f"{', '.join(classes)}."
        )
    return classes
