"""Reads optimised HLO, the text of a program as XLA compiled it for one device.

jax gives it as `compiled.as_text()`. A computation's instructions run in the order
written; fusions, loops and branches name the computations that they run.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

from sparse_tube_vit.errors import TubeViTError


class UnreadableHlo(TubeViTError, ValueError):
    """Text that is not HLO as this module knows it."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: its own in the whole program.
      opcode: "fusion", "all-gather", ...
      shape: of the result, as "bf16[8,128]{1,0:T(8,128)}"; a tuple's in parentheses.
      arguments: what stands in parentheses after the opcode, as text.
      attributes: what follows, as text.
      root: whether its result is that of the computation.
    """

    name: str
    opcode: str
    shape: str
    arguments: str
    attributes: str
    root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions whose results it reads."""
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
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """The operation in the source that it stems from, "" if there is none."""
        found = re.search(r'\bop_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def bytes(self) -> int:
        """Bytes of the result, without the padding of its layout."""
        return math.ceil(
            sum(size * math.prod(dims) for size, dims in arrays(self.shape))
        )

    def attribute(self, key: str) -> str:
        """The word after key=, without its percent sign; "" if there is none."""
        found = re.search(rf"\b{key}=%?([^\s,]+)", self.attributes)
        return found[1] if found else ""


Computation = tuple[Instruction, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the one that runs first.
    """

    computations: Mapping[str, Computation]
    entry: str

    @functools.cached_property
    def instructions(self) -> dict[str, Instruction]:
        """All instructions by name."""
        return {i.name: i for c in self.computations.values() for i in c}

    @functools.cached_property
    def loops(self) -> dict[str, Instruction]:
        """The loop by the name of its body's and of its condition's parameter."""
        return {
            next(
                i.name for i in self.computations[name] if i.opcode == "parameter"
            ): loop
            for loop in self.instructions.values()
            if loop.opcode == "while"
            for name in (loop.attribute("body"), loop.attribute("condition"))
        }

    def called(self, instruction: Instruction) -> list[Instruction]:
        """The instructions of the computations that one runs, in their order."""
        return [i for name in instruction.calls for i in self.computations[name]]

    def root(self, computation: str) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(i for i in self.computations[computation] if i.root)


def parse(text: str) -> Program:
    """Reads a program.

    Raises:
      UnreadableHlo: there is no entry computation, or an instruction is not
        `%name = shape opcode(arguments), attributes`.
    """
    computations, entry, current = {}, "", None
    # An instruction takes more than one line where its attributes do.
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
    return Program({name: tuple(c) for name, c in computations.items()}, entry)


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
    """The parentheses that a text begins with, and what follows them."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return text[: found.end()], text[found.end() :]
    raise ValueError("parentheses that do not close")


def arrays(shape: str) -> list[tuple[float, tuple[int, ...]]]:
    """(bytes of a number, dimensions) of every array in a shape."""
    found = []
    for dtype, dims in re.findall(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        found.append((bits / 8, tuple(int(d) for d in dims.split(",") if d)))
    return found


def trip_count(program: Program, loop: Instruction) -> int | None:
    """How often a loop's body runs, None if that is not a number in the program.

    As jax writes scans: a counter from a constant, by a constant, below a constant.
    """
    test = program.root(loop.attribute("condition"))
    if test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    counter, limit = (program.instructions[name] for name in test.operands)
    if counter.opcode != "get-tuple-element":
        return None
    index = int(counter.attribute("index"))
    result = _element(program, program.root(loop.attribute("body")), index)
    if result is None or result.opcode != "add":
        return None
    before, step = (program.instructions[name] for name in result.operands)
    if _carried(program, before) != index:
        before, step = step, before
    start = _element(program, program.instructions[loop.operands[0]], index)
    numbers = [start and _number(program, x) for x in (start, limit, step)]
    if _carried(program, before) != index or None in numbers or numbers[2] < 1:
        return None
    start, limit, step = numbers
    return max(0, math.ceil((limit - start) / step))


def _element(program, value, index):
    """The instruction that made an element of a tuple, None if that is hidden."""
    return (
        program.instructions[value.operands[index]] if value.opcode == "tuple" else None
    )


def _behind_copies(program, value):
    while value.opcode in ("copy", "bitcast"):
        value = program.instructions[value.operands[0]]
    return value


def _carried(program, value):
    """Which element of what a loop carries a value in its body is."""
    value = _behind_copies(program, value)
    if value.opcode != "get-tuple-element":
        return None
    tuple_ = program.instructions[value.operands[0]]
    return int(value.attribute("index")) if tuple_.opcode == "parameter" else None


def _number(program, value):
    """The number that a value always is: a constant, or one that loops hand through."""
    value = _behind_copies(program, value)
    if value.opcode == "constant":
        return int(value.arguments)
    index = _carried(program, value)
    loop = index is not None and program.loops.get(value.operands[0])
    if not loop:
        return None
    result = _element(program, program.root(loop.attribute("body")), index)
    start = _element(program, program.instructions[loop.operands[0]], index)
    if result is None or start is None or _carried(program, result) != index:
        return None
    return _number(program, start)
