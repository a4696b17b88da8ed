"""Times of programs of known cost, and what collectives wait for."""

import itertools
import re

import numpy as np
import pytest

from sparse_tube_vit.tpu import hlo
from sparse_tube_vit.tpu.chips import CHIPS
from sparse_tube_vit.tpu.cost import Network, device_group, estimate
from tests.tpu.written import PROGRAMS, read


def network(chip="v5e", grid=(1, 1), axes=None, slices=1):
    places = list(itertools.product(*map(range, grid)))
    return Network(CHIPS[chip], grid, axes or {"data": len(places)}, places, slices)


SHARDED = network(grid=(2, 4), axes={"data": 2, "fsdp": 4, "tensor": 1})


@pytest.mark.parametrize("chip", CHIPS)
def test_a_large_product_runs_near_the_peak(chip):
    found = estimate(read(f"product_{chip}"), network(chip))
    assert found.flops == 2 * 4096**3
    assert 0.85 < found.flops / found.seconds / CHIPS[chip].peak_flops < 1


def test_a_loop_takes_as_often_as_it_runs_what_its_body_takes():
    text = (PROGRAMS / "loop.hlo").read_text()
    body = re.search(r"body=%(\S+?),", text)[1]
    body = text[text.index(f"%{body} (") : text.index("ENTRY")]
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', body)))
    found = estimate(read("loop"), network())
    assert found.seconds == pytest.approx(24 * cycles / CHIPS["v5e"].clock)
    assert found.flops == 24 * 2 * 2048**3


def test_loops_in_loops_multiply():
    once, nested = (estimate(read(n), network()) for n in ("loop", "nested_loops"))
    assert nested.flops == 6 * once.flops
    assert nested.seconds == pytest.approx(6 * once.seconds, rel=0.01)


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    found = estimate(read("unknown_loop"), network())
    assert found.flops == 2 * 2048**3
    (name,) = found.unknown_loops
    assert name.startswith("while")


def test_of_branches_the_longest_counts():
    assert estimate(read("branches"), network()).flops == 2 * 2 * 2048**3


def test_collectives_of_a_sharded_layer():
    """Kernels (2048, 2048) bf16 split 4 ways: gathered forward and backward, their
    gradients scattered over fsdp and summed over data, each of 24 times."""
    found = estimate(read("sharded"), SHARDED)
    whole = 2048 * 2048 * 2
    alike = {}
    for c in found.collectives:
        alike[c.kind, c.axes] = alike.get((c.kind, c.axes), 0) + c.times
    assert alike["all-gather", ("fsdp",)] == 48
    assert alike["reduce-scatter", ("fsdp",)] == 24
    assert alike["all-reduce", ("data",)] == 24
    gathers = [c for c in found.collectives if c.kind == "all-gather"]
    # A row of four does not close to a ring: one link, which three quarters pass.
    seconds = 0.75 * whole / CHIPS["v5e"].link_bandwidth
    assert {c.bytes for c in gathers} == {whole}
    assert [c.seconds for c in gathers] == pytest.approx([seconds] * 2)
    # The forward pass waits for each, the backward pass starts them early.
    assert sorted(c.exposed for c in gathers) == pytest.approx([0, seconds])
    (summed,) = (c for c in found.collectives if c.axes == ("data",))
    assert summed.bytes == whole / 4
    assert found.flops == 3 * 24 * 2 * 2048**3


@pytest.mark.parametrize("slices, times", [(2, 1), (4, 1.5), (8, 1.75)])
def test_several_slices_exchange_gradients(slices, times):
    """In a ring each sends all but its own part twice."""
    axes = {"data": 1, "fsdp": 4, "tensor": 1}
    found = estimate(read("slices"), network(grid=(2, 2), axes=axes, slices=slices))
    between = [c for c in found.collectives if c.axes == ("slices",)]
    assert sum(c.times for c in between) == 24
    assert {c.bytes for c in between} == {2048 * 2048 * 2 / 4}
    seconds = times * between[0].bytes / CHIPS["v5e"].slice_bandwidth
    assert between[0].seconds == pytest.approx(seconds)


def test_an_attention_kernel_counts_by_its_roofline():
    found = estimate(read("attention_kernel"), network())
    kernels = [o for o in found.operations if o.roofline]
    # 2 products forward, 5 backward. Heads of 64 use half of a matrix unit of 128.
    product = 2 * 4 * 2 * 256 * 256 * 64
    assert sorted(o.flops for o in kernels) == [2 * product, 5 * product]
    at_peak = 5 * product / (CHIPS["v5e"].peak_flops / 2)
    assert max(o.seconds for o in kernels) >= at_peak
    assert found.kernels == pytest.approx(sum(o.seconds for o in kernels))
    assert found.seconds == pytest.approx(found.computing + found.kernels)
    assert not found.unknown_kernels


def test_an_unknown_kernel_counts_by_its_bytes_and_is_named():
    text = (PROGRAMS / "attention_kernel.hlo").read_text()
    found = estimate(hlo.parse(text.replace("splash_mha", "mystery")), network())
    assert len(found.unknown_kernels) == 2
    assert 0 < found.kernels < estimate(read("attention_kernel"), network()).kernels


def schedule(*lines):
    """A program of one computation on 4 chips: lines are instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return hlo.parse(
        f"ENTRY %main (x: f32[1000,1000]) -> f32[1000,1000] {{\n{body}\n}}\n"
    )


X = "%x = f32[1000,1000]{1,0} parameter(0)"
GROUP = "channel_id=1, replica_groups={{0,1,2,3}}"
START = f"%ag = (f32[1000,1000], f32[4000,1000]) all-gather-start(%x), {GROUP}"
DONE = "%y = f32[4000,1000]{1,0} all-gather-done(%ag)"
WORK = '%w = f32[1000,1000]{1,0} add(%x, %x), config={"estimated_cycles":"1500000"}'
REDUCE = f"%r = f32[1000,1000]{{1,0}} all-reduce(%x), {GROUP}"


def test_what_runs_meanwhile_hides_a_collective():
    ring = network("v5p", (4, 1, 1), {"data": 4})
    chip = CHIPS["v5p"]
    # A ring of four: both links of the axis carry three parts of 4 MB.
    takes = 3 * 4e6 / (2 * chip.link_bandwidth)
    work = 1.5e6 / chip.clock
    assert work > takes
    (hidden,) = estimate(schedule(X, START, WORK, DONE), ring).collectives
    assert hidden.seconds == pytest.approx(takes) and hidden.exposed == 0
    assert hidden.bytes == 16e6
    idle = estimate(schedule(X, START, DONE, WORK), ring)
    assert idle.exposed == pytest.approx(takes)
    assert idle.seconds == pytest.approx(takes + work)
    short = WORK.replace("1500000", "1500")
    (partly,) = estimate(schedule(X, START, short, DONE), ring).collectives
    assert partly.exposed == pytest.approx(takes - 1500 / chip.clock)


@pytest.mark.parametrize(
    "name, tokens, width, flops_a_second",
    [
        ("splash_mha_fwd", 1024, 64, 197e12 / 2),  # half of a matrix unit of 128
        ("splash_mha_fwd", 1024, 256, 197e12),
        ("splash_mha_fwd", 128, 64, None),  # moving four arrays takes longer
        ("mystery", 1024, 64, None),
    ],
)
def test_seconds_of_kernels_by_hand(name, tokens, width, flops_a_second):
    shape = f"bf16[8,{tokens},{width}]"
    program = schedule(
        *(f"%{x} = {shape} parameter({i})" for i, x in enumerate("qkv")),
        f"%y = {shape} custom-call(%q, %k, %v), "
        f'custom_call_target="tpu_custom_call", metadata={{op_name="a/{name}/b"}}',
    )
    found = estimate(program, network())
    flops = 2 * 2 * 8 * tokens**2 * width if name != "mystery" else 0
    moving = 4 * 2 * 8 * tokens * width / 819e9
    expected = flops / flops_a_second if flops_a_second else moving
    assert expected >= moving and found.flops == flops
    assert found.seconds == pytest.approx(expected)


def test_the_same_work_hides_one_collective_alone():
    """Links carry one after the other: the second begins as the first ends."""
    ring = network("v5p", (4, 1, 1), {"data": 4})
    chip = CHIPS["v5p"]
    takes = 3 * 4e6 / (2 * chip.link_bandwidth)
    cycles = int(1.5 * takes * chip.clock)
    second = [x.replace("%ag", "%ah").replace("%y", "%z") for x in (START, DONE)]
    work = WORK.replace("1500000", str(cycles))
    program = schedule(X, START, second[0], work, DONE, second[1])
    first, other = estimate(program, ring).collectives
    assert first.exposed == pytest.approx(0, abs=1e-12)
    assert other.exposed == pytest.approx(2 * takes - cycles / chip.clock)


def test_a_collective_of_one_instruction_is_waited_for():
    ring = network("v5p", (4, 1, 1), {"data": 4})
    found = estimate(schedule(X, WORK, REDUCE), ring)
    assert found.exposed == pytest.approx(2 * 0.75 * 4e6 / 200e9)


def test_axes_of_the_mesh_and_of_the_torus():
    pod = network("v5e", (16, 16), {"data": 4, "fsdp": 32, "tensor": 2})
    assert pod.axes_of([0, 1]) == ("tensor",)
    assert pod.axes_of(range(0, 64, 2)) == ("fsdp",)
    assert pod.axes_of([0, 64, 128, 192]) == ("data",)
    assert pod.axes_of(range(256)) == ("data", "fsdp", "tensor")
    # The whole torus: two rings, four links. A row: one. Part of a row is no ring, but
    # its links are those of the row.
    everyone = pod.seconds("reduce-scatter", 10**6, range(256))
    assert everyone == pytest.approx(1e6 * 255 / 256 / (4 * 50e9))
    row = pod.seconds("reduce-scatter", 10**6, range(16))
    assert row == pytest.approx(1e6 * 15 / 16 / (2 * 50e9))
    assert pod.seconds("collective-permute", 10**6, [0, 1]) == 1e6 / 50e9
    assert pod.seconds("all-reduce", 10**6, [3]) == 0


@pytest.mark.parametrize(
    "written, numbering, groups",
    [
        ("{{0,1,2,3},{4,5,6,7}}", np.arange(8), (2, 4)),
        ("[2,4]<=[8]", np.arange(8), (2, 4)),
        ("[4,2]<=[2,4]T(1,0)", np.arange(8).reshape(2, 4).T, (4, 2)),
        (
            "[4,2]<=[2,2,2]T(2,0,1)",
            np.arange(8).reshape(2, 2, 2).transpose(2, 0, 1),
            (4, 2),
        ),
        ("mesh['a'=8,'b'=1] {'a','b'}", np.arange(8), (1, 8)),
        ("mesh['a'=2,'b'=4] {'b'}", np.arange(8), (2, 4)),
        (
            "mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}",
            # axes a, b, c of 0 .. 7 in that order; a group runs along a
            np.arange(8).reshape(2, 4).T.reshape(4, 1, 2).transpose(1, 2, 0),
            (2, 4),
        ),
        ("{}", np.arange(8), (1, 8)),
    ],
)
def test_groups_of_devices(written, numbering, groups):
    first = numbering.reshape(groups)[0].tolist()
    assert device_group(f"channel_id=3, replica_groups={written}, more", 8) == first
