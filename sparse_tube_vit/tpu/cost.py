"""Time of a compiled program, estimated by the compiler's cost model.

The optimised HLO holds the compiler's estimate of the cycles of most operations. Their
sum, with loops as often as they run, is the time of a step, with three exceptions:

* Custom kernels (Pallas) have no estimate. Their time is that of the roofline: the
  greater of FLOPs at the rate that matrix units reach for the width of a head, and
  bytes at the memory's bandwidth. It is a lower bound.
* Collectives have no estimate. Their time is that of their bytes at the bandwidth of
  the links between the group's chips. Operations between the start and the end of one
  hide it; only the rest counts.
* Copies between HBM and the core's memory beside other operations count nothing.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sparse_tube_vit.tpu.chips import Chip
from sparse_tube_vit.tpu.hlo import Module, arrays, matrix_flops, trip_count

#: Number of matrix products, queries x keys x head width, by attention kernel.
ATTENTION_KERNELS = {
    "splash_mha_fwd": 2,  # scores; their product with the values
    # Scores again; the gradients of values, weights, keys and queries: a fused kernel.
    "splash_mha_dkv": 5,
}

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of one chip.

    Attributes:
        name: The instruction's name.
        source: Name of the operation in the source.
        seconds: Time of one run.
        times: Number of runs per step.
        flops: FLOPs of the matrix products of one run, a multiply-add as two.
        roofline: Whether the seconds are a custom kernel's roofline.
    """

    name: str
    source: str
    seconds: float
    times: int
    flops: int
    roofline: bool


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of several chips.

    Attributes:
        kind: One of `COLLECTIVES`.
        axes: Axes of the mesh that it spans; ("slices",) between slices.
        bytes: Gathered or reduced on one chip in one run.
        times: Number of runs per step.
        seconds: Time of one run, by bandwidth.
        exposed: The part of these seconds in which nothing is computed.
        source: Name of the operation in the source.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    times: int
    seconds: float
    exposed: float
    source: str


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated time of a program on one chip.

    Attributes:
        operations: The operations of all computations that run.
        collectives: The collectives of all computations that run.
        unknown_loops: Loops whose trip count depends on data; counted once.
        unknown_kernels: Custom kernels of unknown FLOPs; counted by their bytes.
    """

    operations: tuple[Operation, ...] = ()
    collectives: tuple[Collective, ...] = ()
    unknown_loops: tuple[str, ...] = ()
    unknown_kernels: tuple[str, ...] = ()

    @property
    def computing(self) -> float:
        """Seconds of the operations that the compiler estimates."""
        return sum(o.seconds * o.times for o in self.operations if not o.roofline)

    @property
    def kernels(self) -> float:
        """Seconds of custom kernels by their roofline."""
        return sum(o.seconds * o.times for o in self.operations if o.roofline)

    @property
    def exposed(self) -> float:
        """Seconds of waiting for collectives."""
        return sum(c.exposed * c.times for c in self.collectives)

    @property
    def seconds(self) -> float:
        """Seconds of all, waiting included."""
        return self.computing + self.kernels + self.exposed

    @property
    def flops(self) -> int:
        """FLOPs of all matrix products that run, repeated ones included."""
        return sum(o.flops * o.times for o in self.operations)

    def repeated(self, times: int) -> "Estimate":
        """Returns the estimate of so many runs."""

        def repeat(items):
            return tuple(dataclasses.replace(x, times=x.times * times) for x in items)

        return dataclasses.replace(
            self,
            operations=repeat(self.operations),
            collectives=repeat(self.collectives),
        )

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            *(
                getattr(self, field.name) + getattr(other, field.name)
                for field in dataclasses.fields(self)
            )
        )


@dataclasses.dataclass(frozen=True)
class Network:
    """The chips of one slice, and their places in the mesh and in the torus.

    Attributes:
        chip: Kind of all chips.
        grid: Chips along each axis of the torus.
        axes: Sizes of the mesh's axes within a slice by name, the last varying fastest.
        places: Coordinates in the grid of every device, in the mesh's order.
        slices: Number of slices, which exchange gradients.
    """

    chip: Chip
    grid: tuple[int, ...]
    axes: Mapping[str, int]
    places: Sequence[Sequence[int]]
    slices: int = 1

    def axes_of(self, group: Iterable[int]) -> tuple[str, ...]:
        """Returns the axes of the mesh that a group of devices spans."""
        varying, stride = [], 1
        for axis, size in reversed(self.axes.items()):
            if len({device // stride % size for device in group}) > 1:
                varying.append(axis)
            stride *= size
        return tuple(reversed(varying))

    def seconds(self, kind: str, size: int, group: Sequence[int]) -> float:
        """Returns the time of a collective.

        All links along the axes of the torus that the group spans are used, in both
        directions where the axis closes to a ring.

        Args:
            kind: One of `COLLECTIVES`.
            size: Bytes on every chip before it.
            group: Devices, in the mesh's order.
        """
        n = len(group)
        lines = zip(*(self.places[device] for device in group), strict=True)
        links = sum(
            2 if chips % self.chip.wraps == 0 else 1
            for chips, line in zip(self.grid, lines, strict=False)
            if len(set(line)) > 1
        )
        if not links:
            return 0.0
        if kind == "collective-permute":
            return size / self.chip.link_bandwidth
        sent = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n}.get(
            kind, (n - 1) / n
        )
        return size * sent / (links * self.chip.link_bandwidth)


def estimate(module: Module, network: Network) -> Estimate:
    """Estimates the time of a module on each chip of a network."""
    return _Estimator(module, network).computation(module.entry)


class _Estimator:
    """Estimates the computations of a module, each once."""

    def __init__(self, module, network):
        self.module, self.network = module, network
        self.computation = functools.cache(self._computation)

    def _computation(self, name) -> Estimate:
        """Estimates one run of a computation."""
        parts, links = [], _Links()
        for instruction in self.module.computations[name]:
            begins, ends = self._transfers(instruction)
            part = self._instruction(instruction)
            links.work_beside(part.seconds)
            if begins:
                links.begin(*begins)
            if ends:
                part += Estimate(collectives=links.end(ends))
            parts.append(part)
        return sum(parts, Estimate())

    def _instruction(self, instruction) -> Estimate:
        """Estimates one run of an instruction."""
        if instruction.opcode == "while":
            trips = trip_count(self.module, instruction)
            once = sum(map(self.computation, instruction.calls), Estimate())
            once += self.computation(instruction.attribute("condition"))
            if trips is None:
                return once + Estimate(unknown_loops=(instruction.name,))
            return once.repeated(trips)
        if instruction.opcode == "conditional":
            branches = map(self.computation, instruction.calls)
            return max(branches, key=lambda branch: branch.seconds)
        if instruction.opcode == "call":
            return sum(map(self.computation, instruction.calls), Estimate())
        if instruction.attribute("custom_call_target") == '"tpu_custom_call"':
            return self._kernel(instruction)
        flops = matrix_flops(self.module, instruction)
        if instruction.cycles is None and not flops:
            return Estimate()
        seconds = (instruction.cycles or 0) / self.network.chip.clock
        return _one(instruction, seconds, flops)

    def _kernel(self, instruction) -> Estimate:
        """Estimates a custom kernel by its roofline."""
        chip = self.network.chip
        operands = [self.module.instructions[name] for name in instruction.operands]
        moved = instruction.bytes + sum(operand.bytes for operand in operands)
        seconds = moved / chip.memory_bandwidth
        for name, matrix_products in ATTENTION_KERNELS.items():
            if name in instruction.op_name:
                heads, queries, keys, width = _attention(operands)
                flops = 2 * matrix_products * heads * queries * keys * width
                rate = chip.peak_flops * min(1, width / chip.matrix_unit)
                return _one(instruction, max(seconds, flops / rate), flops, True)
        unknown = Estimate(unknown_kernels=(instruction.name,))
        return unknown + _one(instruction, seconds, 0, True)

    def _transfers(self, instruction):
        """Returns ((key, collective) that begins, key of the one that ends), or Nones.

        An asynchronous collective has two instructions, a start and a done, joined by
        its key; or two fusions, which hold the operations that hide it.
        """
        opcode, name = instruction.opcode, instruction.name
        if opcode in COLLECTIVES:
            return (name, self._collective(instruction, opcode)), name
        if opcode.removesuffix("-start") in COLLECTIVES:
            kind = opcode.removesuffix("-start")
            return (name, self._collective(instruction, kind)), None
        if opcode == "recv" and "megascale" in instruction.attributes:
            return (name, self._between_slices(instruction)), None
        if opcode.endswith("-done"):
            return None, instruction.operands[0]
        if opcode not in ("fusion", "async-start"):
            return None, None
        inside = self.module.called(instruction)
        for inner in (i for i in inside if i.opcode in COLLECTIVES):
            kind = inner.opcode
            if "reduce-scatter" in instruction.calls[0]:
                kind = "reduce-scatter"
            targets = {i.attribute("custom_call_target").strip('"') for i in inside}
            begins = (name, self._collective(inner, kind))
            if opcode == "async-start":
                return begins, None
            key = f"channel {inner.attribute('channel_id')}"
            if "AsyncCollectiveStart" in targets:
                return (key, begins[1]), None
            if "AsyncCollectiveDone" in targets:
                return None, key
            if "async_collective_fusion_config" not in inner.attributes:
                return begins, name
        return None, None

    def _collective(self, instruction, kind):
        group = device_group(instruction.attributes, len(self.network.places))
        operands = [self.module.instructions[name] for name in instruction.operands]
        size = sum(operand.bytes for operand in operands)
        return Collective(
            kind=kind,
            axes=self.network.axes_of(group),
            bytes=size * len(group) if kind == "all-gather" else size,
            times=1,
            seconds=self.network.seconds(kind, size, group),
            exposed=0.0,
            source=instruction.op_name,
        )

    def _between_slices(self, instruction):
        """Returns the collective between slices, over the data center's network."""
        size = arrays(instruction.shape)[0]
        size, slices = int(size[0] * math.prod(size[1])), self.network.slices
        sent = 2 * (slices - 1) / slices * size  # scattered in parts, then gathered
        return Collective(
            kind="all-reduce",
            axes=("slices",),
            bytes=size,
            times=1,
            seconds=sent / self.network.chip.slice_bandwidth,
            exposed=0.0,
            source=instruction.op_name,
        )


class _Links:
    """Collectives under way. The links carry one after the other."""

    def __init__(self):
        self.under_way = {}  # key -> collective
        self.left = {}  # key -> seconds left

    def begin(self, key, collective):
        self.under_way[key], self.left[key] = collective, collective.seconds

    def work_beside(self, seconds):
        """Lets the collectives proceed while operations run."""
        for key, left in self.left.items():
            self.left[key] = max(0.0, left - seconds)
            seconds = max(0.0, seconds - left)

    def end(self, key) -> tuple[Collective, ...]:
        """Ends a collective; returns it with its exposed time, () if there is none."""
        if key not in self.under_way:
            return ()
        exposed = self.left.pop(key)
        return (dataclasses.replace(self.under_way.pop(key), exposed=exposed),)


def device_group(attributes: str, devices: int) -> list[int]:
    """Returns the first group of devices in a collective's attributes.

    XLA writes groups as lists, {{0,1},{2,3}}; as a numbering, [2,2]<=[2,2]T(1,0); or by
    axes of a mesh of its own, mesh['a'=2,'b'=2] {'a'}.
    """
    pairs = re.search(r"source_target_pairs=\{\{([\d,]+)\}", attributes)
    listed = pairs or re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return [int(device) for device in listed[1].split(",")]
    numbered = re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    )
    if numbered:
        groups, shape, axes = map(_numbers, numbered.groups())
        return _numbering(shape, axes).ravel()[: groups[-1]].tolist()
    ids = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    meshed = re.search(rf"replica_groups=mesh\[(.*?)\]{ids} \{{(.*?)\}}", attributes)
    if not meshed:
        return list(range(devices))
    sizes = {axis: int(size) for axis, size in re.findall(r"'(.*?)'=(\d+)", meshed[1])}
    shape = _numbers(meshed[2]) or [*sizes.values()]
    mesh = _numbering(shape, _numbers(meshed[3])).reshape([*sizes.values()])
    spanned = re.findall(r"'(.*?)'", meshed[4])
    return mesh[*(slice(None) if a in spanned else 0 for a in sizes)].ravel().tolist()


def _numbers(text):
    return [int(x) for x in text.split(",")] if text else []


def _numbering(shape, axes):
    """Returns the devices 0, 1, ... in an array of a shape, transposed."""
    return (
        np.arange(math.prod(shape)).reshape(shape).transpose(axes or range(len(shape)))
    )


def _one(instruction, seconds, flops, roofline=False):
    operation = Operation(
        instruction.name, instruction.op_name, seconds, 1, flops, roofline
    )
    return Estimate(operations=(operation,))


def _attention(operands):
    """Returns (heads of all examples, queries, keys, head width) of a kernel.

    The first two floating-point operands are queries and keys, with dimensions (heads,
    tokens, width) or (heads, width, tokens). There are more tokens than channels.
    """
    floats = [o for o in operands if re.match(r"bf16|f32", o.shape)]
    (*heads, a, b), (*_, c, d) = (arrays(o.shape)[0][1] for o in floats[:2])
    return math.prod(heads), max(a, b), max(c, d), min(a, b)
