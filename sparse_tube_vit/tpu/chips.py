"""TPU chips, and topologies to compile for on a machine without a TPU."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import topologies

from sparse_tube_vit.distributed.devices import ACCELERATORS
from sparse_tube_vit.errors import TubeViTError

GIB = 2**30


class UnknownTopology(TubeViTError, ValueError):
    """There is no such chip, or no such grid of it."""


class NoTpuCompiler(TubeViTError, ImportError):
    """The TPU compiler is not installed."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A host of chips, a TPU VM.

    Attributes:
        name: Its type, as Google Cloud names it.
        vcpus: Number of vCPUs.
    """

    name: str
    vcpus: int


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip, all its cores together.

    Attributes:
        memory: Bytes available to a program, as the compiler states them for one that
            does not fit: 0.25 to 1.25 GiB below the data sheets.
        peak_flops: In bfloat16, FLOPs a second, a multiply-add as two.
        memory_bandwidth: Bytes a second.
        link_bandwidth: Bytes a second of one link to a neighbour, each way.
        slice_bandwidth: Bytes a second to other slices, over the data center's network.
        matrix_unit: Rows and columns of one matrix unit.
        flops_per_cycle: FLOPs of all matrix units per cycle.
        dimensions: The number of dimensions of the torus.
        wraps: Rows of this many chips, and of multiples, close to rings.
        most_chips: Largest slice.
        machines: Machine types by their number of chips. Slices of several hosts have
            4 chips on each.
    """

    memory: float
    peak_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    slice_bandwidth: float
    matrix_unit: int
    flops_per_cycle: int
    dimensions: int
    wraps: int
    most_chips: int
    machines: Mapping[int, Machine]

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.peak_flops / self.flops_per_cycle


# Speeds are those of Google Cloud's pages on the architecture of each chip
# (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e), as are the peaks, which a run's MFU has
# too. They give links as all of a chip's together, both ways; v4's are from Jouppi et
# al., "TPU v4" (2023), and no page gives v4's share of the data center's network: we
# take v5p's. Machine types and their vCPUs are from the same pages, and from Google
# Kubernetes Engine's on planning TPUs (kubernetes-engine/docs/concepts/plan-tpus).
# No page that we read confirms those of v4.
#
# FLOPs a cycle are cores x units a core x unit^2 x 2, which makes clocks of 1.05, 1.50
# and 1.75 GHz. The two units of v6e's page would make 3.5 GHz, and the compiler counts
# more FLOPs a cycle than they have: we take four, which makes 1.75 GHz.
CHIPS = {
    "v4": Chip(
        memory=30.75 * GIB,
        peak_flops=ACCELERATORS["v4"].peak_flops,
        memory_bandwidth=1228e9,
        link_bandwidth=50e9,
        slice_bandwidth=6.25e9,
        matrix_unit=128,
        flops_per_cycle=2 * 4 * 128**2 * 2,
        dimensions=3,
        wraps=4,
        most_chips=4096,
        machines={4: Machine("ct4p-hightpu-4t", 240)},
    ),
    "v5e": Chip(
        memory=15.75 * GIB,
        peak_flops=ACCELERATORS["v5e"].peak_flops,
        memory_bandwidth=819e9,
        link_bandwidth=50e9,
        slice_bandwidth=3.125e9,
        matrix_unit=128,
        flops_per_cycle=4 * 128**2 * 2,
        dimensions=2,
        wraps=16,
        most_chips=256,
        machines={
            1: Machine("ct5lp-hightpu-1t", 24),
            4: Machine("ct5lp-hightpu-4t", 112),
            8: Machine("ct5lp-hightpu-8t", 224),
        },
    ),
    "v5p": Chip(
        memory=95.74 * GIB,
        peak_flops=ACCELERATORS["v5p"].peak_flops,
        memory_bandwidth=2765e9,
        link_bandwidth=100e9,
        slice_bandwidth=6.25e9,
        matrix_unit=128,
        flops_per_cycle=2 * 4 * 128**2 * 2,
        dimensions=3,
        wraps=4,
        most_chips=6144,
        machines={4: Machine("ct5p-hightpu-4t", 208)},
    ),
    "v6e": Chip(
        memory=31.25 * GIB,
        peak_flops=ACCELERATORS["v6e"].peak_flops,
        memory_bandwidth=1638e9,
        link_bandwidth=100e9,
        slice_bandwidth=12.5e9,
        matrix_unit=256,
        flops_per_cycle=4 * 256**2 * 2,
        dimensions=2,
        wraps=16,
        most_chips=256,
        machines={
            1: Machine("ct6e-standard-1t", 44),
            4: Machine("ct6e-standard-4t", 180),
            8: Machine("ct6e-standard-8t", 180),
        },
    ),
}


#: Keeps the compiler from looking for a TPU, from warning that there is none, and from
#: locking it, so that several processes may compile at once.
_NO_TPU_HERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of chips in a grid, or several.

    Attributes:
        name: Key of the chip in `CHIPS`.
        grid: Chips along each axis of a slice.
        slices: Number of slices, joined by the data center's network.
    """

    name: str
    grid: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> "Topology":
        """Parses a chip and the grid of a slice, as "v5e:16x16".

        Raises:
            UnknownTopology: There is no such chip or grid.
        """
        found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
        if not found or found[1] not in CHIPS:
            raise UnknownTopology(
                f"There is no topology {text!r}; give a chip and the grid of a slice, "
                f"as v5e:16x16 or v5p:4x4x8. Chips: {', '.join(CHIPS)}."
            )
        topology = cls(found[1], tuple(map(int, found[2].split("x"))), slices)
        chip = topology.chip
        chips = math.prod(topology.grid)
        if len(topology.grid) != chip.dimensions or not 0 < chips <= chip.most_chips:
            raise UnknownTopology(
                f"{text} is no slice of {topology.name}: it has {chip.dimensions} axes "
                f"and up to {chip.most_chips} chips."
            )
        return topology

    def __str__(self):
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        return f"{slices}{self.name}:{'x'.join(map(str, self.grid))}"

    @property
    def chip(self) -> Chip:
        """What is known of its chips."""
        return CHIPS[self.name]

    @property
    def chips(self) -> int:
        """Number of chips of all slices."""
        return self.slices * math.prod(self.grid)

    @property
    def machine(self) -> Machine:
        """Machine type of every host."""
        return self.chip.machines[self._chips_per_host]

    @property
    def hosts(self) -> int:
        """Number of hosts of all slices."""
        return self.slices * -(-math.prod(self.grid) // self._chips_per_host)

    @property
    def _chips_per_host(self):
        chips = math.prod(self.grid)
        return chips if chips in self.chip.machines else 4

    def devices(self) -> Sequence[jax.Device]:
        """Returns devices to compile for, one per chip; nothing can run on them.

        Raises:
            NoTpuCompiler: The package libtpu is not installed.
            UnknownTopology: The compiler knows no such grid.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise NoTpuCompiler(
                "The TPU compiler is not installed; it needs no TPU. Install it with "
                'pip install ".[train,tpu]" in the repository.'
            )
        for name, value in _NO_TPU_HERE.items():
            os.environ.setdefault(name, value)
        single = math.prod(self.grid) == 1
        options = {"chips_per_host_bounds": (1, 1, 1)} if single else {}
        if self.name == "v4":
            options["chip_config_name"] = "megacore"  # both cores as one device
        if self.slices > 1:
            options["num_slices"] = self.slices
        try:
            grid = "x".join(map(str, self.grid))
            return topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.name}:{grid}", **options
            ).devices
        except jax.errors.JaxRuntimeError as error:
            raise UnknownTopology(
                f"The compiler knows no topology {self}: {str(error).splitlines()[0]}"
            ) from error
