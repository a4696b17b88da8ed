"""Topologies by name, with and without the TPU compiler."""

import importlib.util

import pytest

from sparse_tube_vit.distributed.devices import accelerator
from sparse_tube_vit.tpu import chips
from sparse_tube_vit.tpu.chips import CHIPS, NoTpuCompiler, Topology, UnknownTopology

libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='no TPU compiler: pip install "jax[tpu]"',
)


def test_a_topology_by_name():
    pod = Topology.parse("v5e:16x16")
    assert (pod.chips, pod.chip) == (256, CHIPS["v5e"])
    assert str(pod) == "v5e:16x16"
    slices = Topology.parse("v5p:4x4x8", slices=3)
    assert slices.chips == 384
    assert str(slices) == "3 slices of v5p:4x4x8"


@pytest.mark.parametrize(
    "name, slices, hosts, machine, vcpus",
    [
        ("v5e:1x1", 1, 1, "ct5lp-hightpu-1t", 24),
        ("v5e:2x2", 2, 2, "ct5lp-hightpu-4t", 112),
        ("v5e:2x4", 1, 1, "ct5lp-hightpu-8t", 224),
        ("v5e:16x16", 1, 64, "ct5lp-hightpu-4t", 112),
        ("v6e:16x16", 2, 128, "ct6e-standard-4t", 180),
        ("v4:2x2x1", 1, 1, "ct4p-hightpu-4t", 240),
        ("v5p:4x4x8", 1, 32, "ct5p-hightpu-4t", 208),
        ("v5p:1x1x1", 1, 1, "ct5p-hightpu-4t", 208),
    ],
)
def test_hosts_of_a_topology(name, slices, hosts, machine, vcpus):
    pod = Topology.parse(name, slices)
    found = (pod.hosts, pod.machine.name, pod.machine.vcpus)
    assert found == (hosts, machine, vcpus)


@pytest.mark.parametrize(
    "text", ["v5e", "v3:4x4", "v5e:4x4x4", "v5p:4x4", "v5e:32x16", "v5e:0x4", "v5e:4x"]
)
def test_unknown_topologies_are_named(text):
    with pytest.raises(UnknownTopology, match=text):
        Topology.parse(text)


@pytest.mark.parametrize("name", CHIPS)
def test_clocks_are_those_of_silicon(name):
    """Peak over FLOPs a cycle: a wrong number of matrix units shows here."""
    assert 0.9e9 < CHIPS[name].clock < 2e9


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoTpuCompiler, match="pip install"):
        Topology.parse("v5e:4x4").devices()


@libtpu
@pytest.mark.parametrize("name", ["v5e:1x1", "v4:2x2x1", "v5p:2x2x2", "v6e:4x4"])
def test_one_device_a_chip_whose_kind_is_known(name):
    topology = Topology.parse(name)
    devices = topology.devices()
    assert len(devices) == topology.chips
    assert accelerator(devices[0].device_kind) == topology.name


@libtpu
def test_devices_of_several_slices():
    devices = Topology.parse("v5e:4x4", slices=2).devices()
    assert [device.slice_index for device in devices] == [0] * 16 + [1] * 16


@libtpu
def test_a_grid_that_is_not_made_is_named():
    with pytest.raises(UnknownTopology, match="v5e:3x3"):
        Topology.parse("v5e:3x3").devices()
