"""FLOPs of the matrix products of a compiled program, a multiply-add as two."""

import functools
import math
import re

from sparse_tube_vit.tpu.hlo import Instruction, Program, arrays


def matrix_flops(program: Program, instruction: Instruction) -> int:
    """FLOPs of one run of an instruction, with those of the computations it calls."""
    if instruction.opcode == "convolution":
        return _convolution(program, instruction)
    if instruction.opcode == "dot":
        return _dot(program, instruction)
    return sum(matrix_flops(program, inner) for inner in program.called(instruction))


def _shapes(program, instruction):
    """Dimensions of the operands and of the result."""
    values = [*map(program.instructions.get, instruction.operands), instruction]
    return [arrays(value.shape)[0][1] for value in values]


def _dot(program, instruction):
    left, _, result = _shapes(program, instruction)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", instruction.attributes)
    return (
        2
        * math.prod(result)
        * math.prod(left[int(i)] for i in contracted[1].split(","))
    )


def _convolution(program, instruction):
    """TPUs' batched products are convolutions too, the batch being a window's axis."""
    base, kernel, result = _shapes(program, instruction)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    base, kernel, result = (
        dict(zip(names, dims, strict=True))
        for names, dims in zip(labels.groups(), (base, kernel, result), strict=True)
    )
    found = re.search(r"\bwindow=\{(.*?)\}", instruction.attributes)
    window = dict(re.findall(r"(\w+)=(\S+)", found[1] if found else ""))

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
    """How many products of a window's element with one of the base there are."""
    places = (
        o * stride + k * kernel_dilation - pad
        for o in range(result)
        for k in range(kernel)
    )
    last = (base - 1) * base_dilation
    return sum(0 <= p <= last and p % base_dilation == 0 for p in places)
