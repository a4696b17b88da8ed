"""Optimised HLO: the text of a program as XLA compiled it for one device.

jax returns it from `compiled.as_text()`. A computation's instructions run in the order
written; fusions, loops and branches name the computations that they run.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

from sparse_tube_vit.errors import TubeViTError


class UnreadableHlo(TubeViTError, ValueError):
    """Text is not HLO, or of an unknown form."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
        name: Unique in the module.
        opcode: "fusion", "all-gather", ...
        shape: The result's, as "bf16[8,128]{1,0:T(8,128)}"; a tuple's in parentheses.
        arguments: Text in parentheses after the opcode.
        attributes: Text after the arguments.
        root: Whether its result is that of its computation.
    """

    name: str
    opcode: str
    shape: str
    arguments: str
    attributes: str
    root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions whose results it takes."""
        return tuple(re.findall(r"%([^\s,()]+)", self.arguments))

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations that it runs; of a loop, the body's."""
        named = re.findall(r"\b(?:calls|to_apply|body)=%([^\s,]+)", self.attributes)
        lists = re.findall(r"\b\w+_computations=\{(.*?)\}", self.attributes)
        return (*named, *(n for text in lists for n in re.findall(r"%([^\s,]+)", text)))

    @functools.cached_property
    def cycles(self) -> int | None:
        """Clock cycles by the compiler's cost model, None where it gives none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match else None

    @property
    def op_name(self) -> str:
        """Name of the operation in the source; "" if there is none."""
        match = re.search(r'\bop_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def bytes(self) -> int:
        """Bytes of the result, without the padding of its layout."""
        return math.ceil(
            sum(size * math.prod(dims) for size, dims in arrays(self.shape))
        )

    def attribute(self, key: str) -> str:
        """Returns the word after key=, without percent sign; "" if there is none."""
        match = re.search(rf"\b{key}=%?([^\s,]+)", self.attributes)
        return match[1] if match else ""


Computation = tuple[Instruction, ...]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program, in XLA's terms a module.

    Attributes:
        computations: By name.
        entry: Name of the computation that runs first.
    """

    computations: Mapping[str, Computation]
    entry: str

    @functools.cached_property
    def instructions(self) -> dict[str, Instruction]:
        """All instructions by name."""
        return {i.name: i for c in self.computations.values() for i in c}

    @functools.cached_property
    def loops(self) -> dict[str, Instruction]:
        """Loops by the names of the parameters of their bodies and conditions."""
        return {
            next(
                i.name for i in self.computations[name] if i.opcode == "parameter"
            ): loop
            for loop in self.instructions.values()
            if loop.opcode == "while"
            for name in (loop.attribute("body"), loop.attribute("condition"))
        }

    def called(self, instruction: Instruction) -> list[Instruction]:
        """Returns the instructions of the computations that one runs, in order."""
        return [i for name in instruction.calls for i in self.computations[name]]

    def root(self, computation: str) -> Instruction:
        """Returns the instruction whose result is the computation's."""
        return next(i for i in self.computations[computation] if i.root)


def parse(text: str) -> Module:
    """Parses a module.

    Raises:
        UnreadableHlo: There is no entry computation, or an instruction is not
            `%name = shape opcode(arguments), attributes`.
    """
    computations, entry, current = {}, "", None
    # An instruction spans several lines if its attributes do.
    for line in re.split(r"\n(?=\}\n|ENTRY |%|\s+(?:ROOT )?%\S+ = )", text):
        if head := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            current = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(_instruction(line))
    if not entry:
        raise UnreadableHlo("The text has no ENTRY computation: it is not HLO.")
    return Module({name: tuple(c) for name, c in computations.items()}, entry)


def _instruction(line):
    try:
        head, rest = line.split(" = ", 1)
        shape, rest = _take(rest) if rest.startswith("(") else rest.split(" ", 1)
        opcode, rest = rest.strip().split("(", 1)
        arguments, attributes = _take(f"({rest}")
    except ValueError as error:
        raise UnreadableHlo(
            f"Not an instruction of HLO: {line.strip()[:200]}"
        ) from error
    *root, name = head.split()
    return Instruction(
        name.lstrip("%"), opcode, shape, arguments[1:-1], attributes, bool(root)
    )


def _take(text):
    """Splits a text into the parentheses that it begins with, and the rest."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return text[: match.end()], text[match.end() :]
    raise ValueError("parentheses that do not close")


def arrays(shape: str) -> list[tuple[float, tuple[int, ...]]]:
    """Returns (bytes of an element, dimensions) of every array in a shape."""
    parsed = []
    for dtype, dims in re.findall(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        parsed.append((bits / 8, tuple(int(d) for d in dims.split(",") if d)))
    return parsed


def trip_count(module: Module, loop: Instruction) -> int | None:
    """Returns how often a loop's body runs; None if that depends on data.

    Known are the loops of jax's scans: a counter that starts at a constant grows by a
    constant while it is below a constant.
    """
    test = module.root(loop.attribute("condition"))
    if test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    counter, limit = (module.instructions[name] for name in test.operands)
    if counter.opcode != "get-tuple-element":
        return None
    index = int(counter.attribute("index"))
    result = _element(module, module.root(loop.attribute("body")), index)
    if result is None or result.opcode != "add":
        return None
    before, step = (module.instructions[name] for name in result.operands)
    if _carried(module, before) != index:
        before, step = step, before
    start = _element(module, module.instructions[loop.operands[0]], index)
    numbers = [start and _number(module, x) for x in (start, limit, step)]
    if _carried(module, before) != index or None in numbers or numbers[2] < 1:
        return None
    start, limit, step = numbers
    return max(0, math.ceil((limit - start) / step))


def _element(module, value, index):
    """Returns the instruction that made an element of a tuple; None if unknown."""
    return (
        module.instructions[value.operands[index]] if value.opcode == "tuple" else None
    )


def _behind_copies(module, value):
    while value.opcode in ("copy", "bitcast"):
        value = module.instructions[value.operands[0]]
    return value


def _carried(module, value):
    """Returns the index of a value among those that a loop carries, or None."""
    value = _behind_copies(module, value)
    if value.opcode != "get-tuple-element":
        return None
    tuple_ = module.instructions[value.operands[0]]
    return int(value.attribute("index")) if tuple_.opcode == "parameter" else None


def _number(module, value):
    """Returns the number of a constant, perhaps carried through loops; else None."""
    value = _behind_copies(module, value)
    if value.opcode == "constant":
        return int(value.arguments)
    index = _carried(module, value)
    loop = index is not None and module.loops.get(value.operands[0])
    if not loop:
        return None
    result = _element(module, module.root(loop.attribute("body")), index)
    start = _element(module, module.instructions[loop.operands[0]], index)
    if result is None or start is None or _carried(module, result) != index:
        return None
    return _number(module, start)


def matrix_flops(module: Module, instruction: Instruction) -> int:
    """Returns FLOPs of the matrix products of an instruction run once.

    A multiply-add counts as two. Those of the computations that it calls are included.
    """
    if instruction.opcode == "convolution":
        return _convolution(module, instruction)
    if instruction.opcode == "dot":
        return _dot(module, instruction)
    return sum(matrix_flops(module, inner) for inner in module.called(instruction))


def _shapes(module, instruction):
    """Returns the dimensions of the operands and of the result."""
    values = [*map(module.instructions.get, instruction.operands), instruction]
    return [arrays(value.shape)[0][1] for value in values]


def _dot(module, instruction):
    left, _, result = _shapes(module, instruction)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", instruction.attributes)
    return (
        2
        * math.prod(result)
        * math.prod(left[int(i)] for i in contracted[1].split(","))
    )


def _convolution(module, instruction):
    # TPUs' batched products are convolutions too: the batch is an axis of the window.
    base, kernel, result = _shapes(module, instruction)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    base, kernel, result = (
        dict(zip(names, dims, strict=True))
        for names, dims in zip(labels.groups(), (base, kernel, result), strict=True)
    )
    match = re.search(r"\bwindow=\{(.*?)\}", instruction.attributes)
    window = dict(re.findall(r"(\w+)=(\S+)", match[1] if match else ""))

    def along(key, axis, default):
        return window[key].split("x")[axis] if key in window else default

    flops = 2 * result["b"] * result["f"] * kernel["i"]
    for axis in (int(name) for name in base if name.isdigit()):
        flops *= _taps(
            base[str(axis)],
            kernel[str(axis)],
            result[str(axis)],
            int(along("stride", axis, 1)),
            int(along("pad", axis, "0_0").split("_")[0]),
            int(along("lhs_dilate", axis, 1)),
            int(along("rhs_dilate", axis, 1)),
        )
    return flops


@functools.cache
def _taps(base, kernel, result, stride, pad, base_dilation, kernel_dilation):
    """Counts the products of window and base elements along an axis."""
    places = (
        o * stride + k * kernel_dilation - pad
        for o in range(result)
        for k in range(kernel)
    )
    last = (base - 1) * base_dilation
    return sum(0 <= p <= last and p % base_dilation == 0 for p in places)
