"""Programs compiled for TPUs (programs/make.py), read from their text."""

import itertools
import json
import re

import numpy as np
import pytest

from sparse_tube_vit.tpu import hlo
from tests.tpu.written import PROGRAMS, read

HAND_WRITTEN = """HloModule handwritten, is_scheduled=true

%double (x: f32[4]) -> f32[4] {
  %x = f32[4]{0:T(128)} parameter(0)
  ROOT %sum = f32[4]{0:T(128)} add(%x, %x)
}

ENTRY %main (a: f32[4], b: (bf16[2,3], pred[5])) -> f32[4] {
  %a = f32[4]{0:T(128)} parameter(0)
  %b = (bf16[2,3]{1,0:T(8,128)(2,1)}, pred[5]{0:T(512)}) parameter(1)
  %kernel.1 = f32[4]{0:T(128)} custom-call(%a), custom_call_target="x", metadata={{
"lines": 2
}}, metadata={op_name="jit(f)/kernel"}
  ROOT %fusion = f32[4]{0:T(128)} fusion(%kernel.1, /*index=1*/%a), kind=kLoop, \
calls=%double, backend_config={"window_config":{"estimated_cycles":"12"}}
}
"""


def test_instructions_have_their_parts():
    program = hlo.parse(HAND_WRITTEN)
    assert program.entry == "main"
    assert set(program.computations) == {"double", "main"}
    a, b, kernel, fusion = program.computations["main"]
    assert (a.opcode, a.operands, a.bytes) == ("parameter", (), 16)
    assert (b.opcode, b.bytes) == ("parameter", 2 * 3 * 2 + 5)
    assert kernel.attribute("custom_call_target") == '"x"'
    assert kernel.op_name == "jit(f)/kernel"  # after attributes of several lines
    assert fusion.operands == ("kernel.1", "a")
    assert fusion.calls == ("double",) and fusion.cycles == 12 and fusion.root
    assert kernel.cycles is None and kernel.calls == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "HloModule nothing",
        HAND_WRITTEN.replace("add(%x, %x)", "add"),
        HAND_WRITTEN.replace("parameter(0)", "parameter(0"),
    ],
)
def test_other_texts_are_named_errors(text):
    with pytest.raises(hlo.UnreadableHlo):
        hlo.parse(text)


@pytest.mark.parametrize("path", sorted(PROGRAMS.glob("*.hlo")), ids=lambda p: p.stem)
def test_every_name_in_a_program_is_found(path):
    text = path.read_text()
    program = hlo.parse(text)
    for instruction in program.instructions.values():
        assert set(instruction.operands) <= set(program.instructions), instruction
        assert set(instruction.calls) <= set(program.computations), instruction
    lines = re.findall(r"^ +(?:ROOT )?%\S+ = ", text, re.MULTILINE)
    assert len(program.instructions) == len(lines)


@pytest.mark.parametrize(
    "name, trips",
    [
        ("loop", [24]),
        ("nested_loops", [6, 24]),  # from 2 to 8, and a scan of 24
        ("sharded", [24, 24]),  # forward and backward
        ("unknown_loop", [None]),
        ("branches", []),
    ],
)
def test_trip_counts(name, trips):
    program = read(name)
    loops = [i for i in program.instructions.values() if i.opcode == "while"]
    assert sorted(map(str, trips)) == sorted(
        str(hlo.trip_count(program, loop)) for loop in loops
    )


def matrix_flops(program, computation):
    return sum(hlo.matrix_flops(program, i) for i in program.computations[computation])


@pytest.mark.parametrize(
    "name", ["product_v4", "product_v6e", "batched_product", "convolution"]
)
def test_flops_are_those_that_xla_counts(name):
    """Of programs that are nothing but products and have no loop."""
    counted = json.loads((PROGRAMS / "flops.json").read_text())[name]
    program = read(name)
    assert matrix_flops(program, program.entry) == counted


def test_flops_of_a_product_as_cpus_write_it():
    text = """ENTRY %main (a: f32[2,3,5], b: f32[5,3,7]) -> f32[2,7] {
  %a = f32[2,3,5]{2,1,0} parameter(0)
  %b = f32[5,3,7]{2,1,0} parameter(1)
  ROOT %dot = f32[2,7]{1,0} dot(%a, %b), lhs_contracting_dims={1,2}, \
rhs_contracting_dims={1,0}
}
"""
    assert matrix_flops(hlo.parse(text), "main") == 2 * 2 * 7 * 15


@pytest.mark.parametrize("seed", range(8))
def test_taps_of_a_window_are_those_of_a_loop(seed):
    """Against multiplying ones, dilated and padded as the convolution says."""
    rng = np.random.default_rng(seed)
    base, kernel, stride, dilation, spread = rng.integers(1, 5, 5)
    before, after = rng.integers(0, 4, 2)
    dilated = np.zeros((base - 1) * dilation + 1)
    dilated[::dilation] = 1
    padded = np.pad(dilated, (before, after + kernel * spread))
    places = range(0, len(padded) - (kernel - 1) * spread, stride)
    products = sum(
        padded[place + tap * spread]
        for place, tap in itertools.product(places, range(kernel))
    )
    counted = hlo._taps(base, kernel, len(places), stride, before, dilation, spread)
    assert counted == products
