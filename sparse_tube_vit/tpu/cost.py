"""How long a compiled program takes, by the compiler's own cost model.

The compiler puts its estimate of the cycles at most operations of the optimised HLO.
Added up, loops as often as they run, they are the time of a step but for three things:

* Custom kernels (Pallas) have none: they are counted by their roofline, the greater of
  their FLOPs at the rate that the matrix units reach for the width of a head, and their
  bytes at the bandwidth of the memory. They take at least that long.
* Collectives have none: they are counted by their bytes at the bandwidth of the links
  that the group of chips has. What runs between the start and the end of one hides it;
  what it takes longer counts.
* Copies between HBM and the core's memory that run beside other work count nothing.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from sparse_tube_vit.tpu.chips import Chip
from sparse_tube_vit.tpu.hlo import Module, arrays, matrix_flops, trip_count

#: Matrix products of queries x keys x head width in attention kernels, by their name.
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
    """Something that a chip computes.

    Attributes:
      name, source: of the instruction, and the operation in the source it stems from.
      seconds: once.
      times: that it runs in a step.
      flops: of its matrix products, once, a multiply-add as two.
      roofline: whether the seconds are those of a custom kernel's roofline.
    """

    name: str
    source: str
    seconds: float
    times: int
    flops: int
    roofline: bool


@dataclasses.dataclass(frozen=True)
class Collective:
    """Something that chips tell each other.

    Attributes:
      kind: one of `COLLECTIVES`.
      axes: of the mesh, over which it goes.
      bytes: gathered or to be reduced on one chip, once.
      times: that it runs in a step.
      seconds: once, by bandwidth.
      exposed: seconds of these in which nothing is computed.
      source: as of an operation.
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
    """What a program takes on one chip.

    Attributes:
      operations, collectives: of all computations that run.
      unknown_loops: of which only the data tells how often they run; counted once.
      unknown_kernels: custom kernels whose FLOPs are unknown; counted by their bytes.
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
        return self.computing + self.kernels + self.exposed

    @property
    def flops(self) -> int:
        """FLOPs of all matrix products that run, repeated ones included."""
        return sum(o.flops * o.times for o in self.operations)

    def repeated(self, times: int) -> "Estimate":
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
    """The chips of one slice, their places in the mesh and in the machine.

    Attributes:
      chip: all are of this kind.
      grid: chips along each axis of the torus.
      axes: sizes of the mesh's axes within a slice by name, the last varying fastest.
      places: of every device in the mesh's order, where it is in the grid.
      slice_axis: the axis of the mesh that several slices lie along.
    """

    chip: Chip
    grid: tuple[int, ...]
    axes: Mapping[str, int]
    places: Sequence[Sequence[int]]
    slice_axis: str = "data"

    def axes_of(self, group: Iterable[int]) -> tuple[str, ...]:
        """The axes of the mesh along which a group of devices lies."""
        varying, stride = [], 1
        for axis, size in reversed(self.axes.items()):
            if len({device // stride % size for device in group}) > 1:
                varying.append(axis)
            stride *= size
        return tuple(reversed(varying))

    def seconds(self, kind: str, size: int, group: Sequence[int]) -> float:
        """Time of a collective of a group, with so many bytes on every chip before it.

        All links along the axes of the torus on which the group lies are used, both
        ways where these close to rings.
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
    """What a program takes on each chip of a network."""
    return _Estimator(module, network).computation(module.entry)


class _Estimator:
    """Follows the computations of a program in the order in which they run."""

    def __init__(self, module, network):
        self.module, self.network = module, network
        self.computation = functools.cache(self._computation)

    def _computation(self, name) -> Estimate:
        """One run of a computation."""
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
        """What an instruction computes."""
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
        """A custom kernel, by its roofline."""
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
        """((key, collective) that begins with an instruction, key of what ends there).

        One that hides behind other work has two instructions, a start and a done, which
        its key joins; or two fusions, among which the work that hides it is.
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
        """What hosts exchange for the chips, through the data center's network."""
        size = arrays(instruction.shape)[0]
        size = int(size[0] * math.prod(size[1]))
        return Collective(
            kind="all-reduce",
            axes=("slices",),
            bytes=size,
            times=1,
            seconds=size / self.network.chip.slice_bandwidth,
            exposed=0.0,
            source=instruction.op_name,
        )


class _Links:
    """The collectives under way. The links carry one after the other."""

    def __init__(self):
        self.under_way = {}  # key -> collective
        self.left = {}  # key -> seconds that it still takes

    def begin(self, key, collective):
        self.under_way[key], self.left[key] = collective, collective.seconds

    def work_beside(self, seconds):
        """So long something is computed meanwhile."""
        for key, left in self.left.items():
            self.left[key] = max(0.0, left - seconds)
            seconds = max(0.0, seconds - left)

    def end(self, key) -> tuple[Collective, ...]:
        """What ends here, with what is waited for it; () if it is no collective."""
        if key not in self.under_way:
            return ()
        exposed = self.left.pop(key)
        return (dataclasses.replace(self.under_way.pop(key), exposed=exposed),)


def device_group(attributes: str, devices: int) -> list[int]:
    """The first group of devices that a collective's attributes name.

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
        shape, *order = map(_numbers, numbered.groups())
        return _numbering(*order)[: shape[-1]]
    ids = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    meshed = re.search(rf"replica_groups=mesh\[(.*?)\]{ids} \{{(.*?)\}}", attributes)
    if not meshed:
        return list(range(devices))
    axes = {axis: int(size) for axis, size in re.findall(r"'(.*?)'=(\d+)", meshed[1])}
    order = _numbers(meshed[2]) or list(axes.values())
    numbers = _numbering(order, _numbers(meshed[3]))
    chosen = set(re.findall(r"'(.*?)'", meshed[4]))
    ranges = [range(size if axis in chosen else 1) for axis, size in axes.items()]
    strides = [math.prod(list(axes.values())[i + 1 :]) for i in range(len(axes))]
    return [
        numbers[sum(i * stride for i, stride in zip(place, strides, strict=True))]
        for place in itertools.product(*ranges)
    ]


def _numbers(text):
    return [int(x) for x in text.split(",")] if text else []


def _numbering(shape, order):
    """0, 1, ... in an array of a shape, its axes put in an order, made flat."""
    order = order or range(len(shape))
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    places = itertools.product(*(range(shape[i]) for i in order))
    return [
        sum(p * strides[i] for p, i in zip(place, order, strict=True))
        for place in places
    ]


def _one(instruction, seconds, flops, roofline=False):
    operation = Operation(
        instruction.name, instruction.op_name, seconds, 1, flops, roofline
    )
    return Estimate(operations=(operation,))


def _attention(operands):
    """Heads of all examples, queries, keys and head width, of an attention kernel.

    Its first two operands of numbers are queries and keys, with heads and then either
    tokens or the head's width in front. There are more tokens than channels in a head.
    """
    floats = [o for o in operands if re.match(r"bf16|f32", o.shape)]
    (*heads, a, b), (*_, c, d) = (arrays(o.shape)[0][1] for o in floats[:2])
    return math.prod(heads), max(a, b), max(c, d), min(a, b)
