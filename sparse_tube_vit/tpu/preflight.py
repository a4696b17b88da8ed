"""Memory, time and collectives of a train step on a TPU pod, predicted."""

import collections
import dataclasses
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Mapping

import jax

from sparse_tube_vit.config import ConfigDict, validate
from sparse_tube_vit.datasets.classes import OFFICIAL_CLASSES, classes_of
from sparse_tube_vit.distributed import sharding
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log, table
from sparse_tube_vit.models.flops import training_flops
from sparse_tube_vit.tpu import hlo
from sparse_tube_vit.tpu.chips import GIB, Topology
from sparse_tube_vit.tpu.cost import Estimate, Network, estimate
from sparse_tube_vit.training.program import Program


class UnknownClasses(TubeViTError, ValueError):
    """How many outputs a head has is not known without its data set."""


class DoesNotFit(TubeViTError, MemoryError):
    """The step needs more memory than a chip has.

    Attributes:
      needed: bytes, None if the compiler did not say.
    """

    def __init__(self, message, needed=None):
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on every chip.

    Attributes:
      parameters, optimizer: what a step takes, with its averages and counters.
      batches: of the step, and of the next, which comes to the chip meanwhile.
      temporaries: activations and all else that the step makes.
      program: the compiled code.
      available: to a program.
    """

    parameters: int
    optimizer: int
    batches: int
    temporaries: int
    program: int
    available: float

    @property
    def peak(self) -> int:
        parts = dataclasses.astuple(self)[:-1]
        return sum(parts)


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What a step of a config takes on a topology.

    Attributes:
      mesh: sizes of its axes by name.
      compiling: seconds that it took here.
      memory: bytes on every chip.
      estimate: of the time.
      model_flops: of all chips: the model's matrix products forward and backward.
      batch: examples a step by stream.
      steps: of the config.
    """

    topology: Topology
    mesh: Mapping[str, int]
    compiling: float
    memory: Memory
    estimate: Estimate
    model_flops: int
    batch: Mapping[str, int]
    steps: int

    @property
    def mfu(self) -> float:
        """Share of the matrix units' peak that the model's FLOPs take."""
        peak = self.topology.chips * self.topology.chip.peak_flops
        return self.model_flops / (self.estimate.seconds * peak)

    @property
    def chip_hours(self) -> float:
        """Of all the config's steps, without evaluations and checkpoints."""
        return self.estimate.seconds * self.steps * self.topology.chips / 3600

    def summary(self) -> dict:
        """All figures, as JSON takes them: bytes, FLOPs and seconds."""
        e, chip = self.estimate, self.topology.chip
        return {
            "topology": str(self.topology),
            "chips": self.topology.chips,
            "mesh": dict(self.mesh),
            "batch": dict(self.batch),
            "compile_seconds": self.compiling,
            "chip_bytes": {
                **dataclasses.asdict(self.memory),
                "peak": self.memory.peak,
            },
            "flops": {
                "model": self.model_flops,
                "chip_executes": e.flops,
                "chip_peak_per_second": chip.peak_flops,
            },
            "step_seconds": {
                "all": e.seconds,
                "compiler_estimate": e.computing,
                "kernels_by_roofline": e.kernels,
                "waiting_for_collectives": e.exposed,
            },
            "mfu": self.mfu,
            "examples_per_second": {
                name: batch / e.seconds for name, batch in self.batch.items()
            },
            "chip_hours": self.chip_hours,
            "steps": self.steps,
            "collectives": collectives(e),
            "operations": operations(e),
            "unknown_loops": e.unknown_loops,
            "unknown_kernels": e.unknown_kernels,
        }


def preflight(
    config: ConfigDict, topology: Topology, classes: Mapping[str, int]
) -> Preflight:
    """Compiles a config's train step for a topology and reads what it takes.

    Args:
      config: of the run.
      topology: with as many slices as `config.mesh.slices`.
      classes: number of outputs by head.

    Raises:
      DoesNotFit: a chip has too little memory.
      NoTpuCompiler, UnknownTopology: as `Topology.devices`.
      MeshDoesNotFit, IndivisibleBatch, ...: as training with this config would.
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
        raise DoesNotFit(*out_of_memory(str(error), topology)) from error
    compiling = time.perf_counter() - started
    memory = _memory(program, compiled.memory_analysis(), topology.chip.memory)
    if memory.peak > memory.available:
        raise DoesNotFit(_needs(memory.peak, topology), memory.peak)
    return Preflight(
        topology=topology,
        mesh=dict(mesh.shape),
        compiling=compiling,
        memory=memory,
        estimate=estimate(hlo.parse(compiled.as_text()), _network(mesh, topology)),
        model_flops=sum(
            stream.batch_size * training_flops(config, program.model, stream)
            for stream in config.streams.values()
        ),
        batch={name: stream.batch_size for name, stream in config.streams.items()},
        steps=config.total_steps,
    )


def out_of_memory(message, topology):
    found = re.search(r"(?:Used |\()([\d.]+)([KMG])", message)
    needed = found and float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]]
    return _needs(needed, topology), needed


def _needs(needed, topology):
    has = f"a chip of {topology.name} has {topology.chip.memory / GIB:.2f}"
    needs = f"needs {needed / GIB:.2f} GiB" if needed else "does not fit"
    return f"A step {needs}, {has} GiB."


def _memory(program, analysis, available):
    def on_a_chip(tree):
        return sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    state = program.state
    made = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(
        parameters=on_a_chip(state.params),
        optimizer=on_a_chip(state) - on_a_chip(state.params),
        batches=2 * on_a_chip(program.batches),
        temporaries=analysis.temp_size_in_bytes + made,
        program=analysis.generated_code_size_in_bytes,
        available=available,
    )


def _network(mesh, topology):
    """One slice of the mesh; the others do the same."""
    axes = dict(mesh.shape)
    axes["data"] //= topology.slices
    devices = mesh.devices.flat[: math.prod(axes.values())]
    places = [tuple(device.coords) for device in devices]
    return Network(topology.chip, topology.grid, axes, places)


def collectives(e: Estimate) -> list[dict]:
    """The collectives of a step, those alike together, the longest first."""
    groups = collections.defaultdict(list)
    for c in e.collectives:
        groups[c.kind, c.axes, c.bytes].append(c)
    rows = [
        {
            "kind": kind,
            "axes": axes,
            "bytes": size,
            "times": sum(c.times for c in group),
            "seconds": sum(c.seconds * c.times for c in group),
            "waiting_seconds": sum(c.exposed * c.times for c in group),
            "source": group[0].source,
        }
        for (kind, axes, size), group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def operations(e: Estimate) -> list[dict]:
    """The operations of a step, those of one place in the model together.

    What the compiler added goes by its own name. All blocks are one place.
    """
    groups = collections.defaultdict(list)
    for o in e.operations:
        name = place(o.source) or re.sub(r"[.\d]+$", "", o.name)
        groups[name, o.roofline].append(o)
    rows = [
        {
            "name": name,
            "times": sum(o.times for o in group),
            "seconds": sum(o.seconds * o.times for o in group),
            "flops": sum(o.flops * o.times for o in group),
            "by_roofline": roofline,
            "source": group[0].source,
        }
        for (name, roofline), group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


#: Steps of jax's paths that say how, not where, something is computed.
_WRAPPERS = re.compile(
    r"(jit|jvp|vmap|transpose)\(.*|while|body|closed_call|checkpoint|cond|shard_map|"
    r"rematted_computation|pallas_call|Tube[vV]i[tT]\.features|TubeViT"
)


def place(source: str) -> str:
    """Where in the model, and in which pass, jax's path of an operation is."""
    steps = [s for s in source.split("/") if not _WRAPPERS.fullmatch(s)]
    steps = [re.sub(r"^(new_)?block_\d+$", "block", s).lower() for s in steps]
    if not steps:
        return ""
    backward = "transpose(" in source
    again = "rematted_computation" in source
    phase = "recomputed" if again else "backward" if backward else "forward"
    where = "/".join(step for step, _ in itertools.groupby(steps))
    return f"{phase} {where}" if "TubeViT" in source else where


def report(found: Preflight) -> str:
    """The figures as text."""
    e, topology = found.estimate, found.topology
    axes = " x ".join(f"{axis} {size}" for axis, size in found.mesh.items())
    batch = ", ".join(f"{n} {name}" for name, n in found.batch.items())
    speeds = ", ".join(f"{n / e.seconds:,.0f} {s}/s" for s, n in found.batch.items())
    lines = [
        f"{topology}: {topology.chips} chips, mesh {axes}; {batch} a step; compiled in "
        f"{found.compiling:.0f} s",
        "Times are predictions of the TPU compiler, not measurements.",
        "",
        *_memory_table(found.memory),
        "",
        *_time_table(e),
        "",
        f"MFU {found.mfu:.1%}: {found.model_flops / topology.chips / 1e12:.2f} TFLOP a "
        f"chip for the model, {e.flops / 1e12:.2f} computed",
        f"{speeds}; {found.steps:,} steps: {found.chip_hours:,.0f} chip-hours, "
        f"{found.chip_hours / topology.chips:,.1f} hours",
        "",
        *_collective_table(e),
        "",
        *_operation_table(e, topology.chip.peak_flops),
    ]
    if e.unknown_loops:
        lines.append(
            "Counted once, as only the data tells how often they run: "
            f"{', '.join(e.unknown_loops)}."
        )
    if e.unknown_kernels:
        lines.append(
            "Counted by their bytes alone, as their FLOPs are unknown: "
            f"{', '.join(e.unknown_kernels)}."
        )
    return "\n".join(lines)


def _memory_table(memory):
    sizes = dataclasses.asdict(memory) | {"peak": memory.peak}
    sizes["available"] = sizes.pop("available")  # to the end
    rows = [("memory of a chip", "GiB", "share")]
    for name, size in sizes.items():
        rows.append((name, f"{size / GIB:.2f}", f"{size / memory.available:.0%}"))
    return table(rows)


def _time_table(e):
    products = [o for o in e.operations if o.flops and not o.roofline]
    multiplying = sum(o.seconds * o.times for o in products)
    parts = {
        "matrix products, with what is fused": multiplying,
        "other operations": e.computing - multiplying,
        "custom kernels, by roofline": e.kernels,
        "waiting for collectives": e.exposed,
        "all": e.seconds,
    }
    rows = [("a step", "ms", "share")]
    rows += [(name, *_ms(part, e.seconds)) for name, part in parts.items()]
    return table(rows)


def _collective_table(e):
    rows = [("collectives", "mesh axes", "MB", "times", "ms", "hidden")]
    for c in collectives(e):
        hidden = 1 - c["waiting_seconds"] / c["seconds"] if c["seconds"] else 1
        size, took = f"{c['bytes'] / 1e6:.2f}", f"{c['seconds'] * 1e3:.2f}"
        axes = ",".join(c["axes"])
        rows.append((c["kind"], axes, size, c["times"], took, f"{hidden:.0%}"))
    return table(rows)


def _operation_table(e, peak):
    rows = [("largest operations", "times", "ms", "share", "of peak")]
    for o in operations(e)[:10]:
        name = o["name"] + (" (roofline)" if o["by_roofline"] else "")
        rate = f"{o['flops'] / o['seconds'] / peak:.0%}" if o["flops"] else ""
        rows.append((name, o["times"], *_ms(o["seconds"], e.seconds), rate))
    return table(rows)


def _ms(seconds, whole):
    return f"{1e3 * seconds:.2f}", f"{seconds / whole:.1%}"


def changes(config: ConfigDict, mesh: Mapping[str, int]) -> Iterator[dict]:
    """Changes with which a step takes less memory, the small ones first.

    First each alone, then more and more of them together.

    Args:
      config: that does not fit.
      mesh: sizes of the axes that its mesh has.

    Yields:
      Values by the config's keys.
    """
    ways = mesh["data"] * mesh["fsdp"]
    slices = config.mesh.slices
    parts = config.optimizer.accumulate_steps
    batches = {name: s.batch_size for name, s in config.streams.items()}
    most = min(batches.values()) // ways  # parts of one example a chip

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
    """Number of outputs of every head.

    As given; or as its data set has them, which need not be prepared if its classes are
    official.

    Raises:
      UnknownClasses: neither is known.
    """
    prepared = classes_of(config)
    classes = {}
    for name, stream in config.streams.items():
        official = OFFICIAL_CLASSES.get(stream.dataset.split("/")[0])
        official = official or OFFICIAL_CLASSES.get(stream.dataset)
        classes[stream.head] = (
            given.get(stream.head) or prepared[stream.head] or official
        )
        if not classes[stream.head]:
            raise UnknownClasses(
                f"How many classes {stream.dataset} has, which streams.{name} trains "
                f"head {stream.head!r} on, is not known before it is prepared. Say it "
                f"with --classes {stream.head}=N."
            )
    if unknown := set(given) - set(classes):
        raise UnknownClasses(
            f"--classes names {', '.join(sorted(unknown))}, but the streams train "
            f"{', '.join(classes)}."
        )
    return classes


def run(config: ConfigDict, topology: str, given: Mapping[str, int], as_json: bool):
    """Prints what a config takes. Raises what `preflight` does.

    Where it does not fit, the changes that might mend it are tried first.
    """
    topology = Topology.parse(topology, config.mesh.slices)
    classes = head_classes(config, given)
    log.info("Compiling for %s", topology)
    try:
        found = preflight(config, topology, classes)
    except DoesNotFit as error:
        raise DoesNotFit(f"{error} {_advice(config, topology, classes)}") from None
    print(json.dumps(found.summary(), indent=1) if as_json else report(found))


def _advice(config, topology, classes):
    """The first change with which the step fits."""
    mesh = sharding.make_mesh(config, topology.devices()).shape
    for change in changes(config, mesh):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(change)
        options = " ".join(f"--config.{key}={value}" for key, value in change.items())
        log.info("Trying %s", options)
        try:
            found = preflight(changed, topology, classes)
        except DoesNotFit as error:
            log.info("%s", error)
            continue
        return (
            f"It fits with {options}: {found.memory.peak / GIB:.2f} GiB, "
            f"{1e3 * found.estimate.seconds:.0f} ms a step."
        )
    return "Nor does it with rematerialization, accumulation and smaller batches."
