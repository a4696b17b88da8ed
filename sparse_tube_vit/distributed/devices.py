"""The devices that a run uses, their peaks, and NVIDIA GPUs that it does not use."""

import dataclasses
import re
import shutil
from pathlib import Path

import jax

from sparse_tube_vit.log import log


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Devices of one speed.

    Attributes:
        peak_flops: FLOPs a second of one device in bfloat16, a multiply-add as two,
            without sparsity.
        kinds: Regular expression of their `device_kind` in jax.
    """

    peak_flops: float
    kinds: str


# Kinds of TPUs are those of jax/_src/pallas/mosaic/tpu_info.py; a device is a chip, all
# of its cores. Kinds of GPUs are CUDA's names, which tell apart cards of other clocks.
# A part of a GPU ("... MIG 3g.40gb") is none of these.
#
# Peaks of TPUs are those of Google Cloud's pages, cloud.google.com/tpu/docs/v4, v5e,
# v5p and v6e; of GPUs those of NVIDIA's data sheets of each card, which state H100,
# H200 and L4 with sparsity, as twice as much. A T4 has no units for bfloat16: its peak
# is that of float16.
ACCELERATORS = {
    "v4": Accelerator(275e12, "TPU v4"),
    "v5e": Accelerator(197e12, "TPU v5 lite|TPU v5e"),
    "v5p": Accelerator(459e12, "TPU v5|TPU v5p"),
    "v6e": Accelerator(918e12, "TPU v6 lite|TPU v6e"),
    "H200": Accelerator(989e12, "NVIDIA H200"),
    "H200 NVL": Accelerator(835e12, "NVIDIA H200 NVL"),
    "H100": Accelerator(989e12, "NVIDIA H100 80GB HBM3"),
    "H100 NVL": Accelerator(835e12, "NVIDIA H100 NVL"),
    "H100 PCIe": Accelerator(756e12, "NVIDIA H100 PCIe"),
    "A100": Accelerator(
        312e12, r"(NVIDIA )?A100(-(SXM4?|PCIE)-\d+GB| \d+GB PCIe|-PG509-\d+)"
    ),
    "L4": Accelerator(121e12, "NVIDIA L4"),
    "T4": Accelerator(65e12, "(NVIDIA )?(Tesla )?T4"),
}


def accelerator(device_kind: str) -> str | None:
    """Returns the key of a kind of devices in `ACCELERATORS`, None if it has none."""
    for name, devices in ACCELERATORS.items():
        if re.fullmatch(devices.kinds, device_kind):
            return name
    return None


def peak_flops(device_kind: str) -> float | None:
    """Returns the FLOPs a second of one device at its peak, None if unknown."""
    name = accelerator(device_kind)
    return None if name is None else ACCELERATORS[name].peak_flops


# Oldest major versions of NVIDIA's driver for setup.py's extras, the newest first:
# docs.jax.dev/en/latest/installation.html
_OLDEST_DRIVERS = {"cuda13": 580, "cuda12": 525}

# Made by the driver, which writes its version into the second.
_GPU, _DRIVER = Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version")


def log_devices() -> None:
    """Logs platform, kind and number of the devices, with a warning of unused GPUs."""
    devices = jax.devices()
    platform, kind = devices[0].platform, devices[0].device_kind
    log.info("Devices: %d x %s (platform %s)", len(devices), kind, platform)
    if platform == "cpu" and has_gpu():
        log.warning(
            "This machine has an NVIDIA GPU, but jax uses the CPU. %s", remedy()
        )


def has_gpu() -> bool:
    """Returns whether this machine has an NVIDIA GPU with a driver."""
    return _GPU.exists() or shutil.which("nvidia-smi") is not None


def remedy() -> str:
    """Returns what makes jax use the NVIDIA GPU of this machine."""
    asked = _platforms()
    if asked and not {"cuda", "gpu"} & {*asked.split(",")}:
        return f"JAX_PLATFORMS={asked} asks for that; JAX_PLATFORMS=cuda for the GPU."
    found = _DRIVER.exists() and re.search(r"\s(\d+)\.\d+", _DRIVER.read_text())
    if not found:
        *others, last = (f'".[{x}]" ({v} on)' for x, v in _OLDEST_DRIVERS.items())
        return (
            f"Install for its driver: {', '.join(others)} or {last}; see docs/gpu.md."
        )
    for extra, oldest in _OLDEST_DRIVERS.items():
        if int(found[1]) >= oldest:
            return (
                f'Its driver is {found[1]}: pip install ".[{extra}]"; see docs/gpu.md.'
            )
    return f"Its driver is {found[1]}, jax needs {oldest} or newer: see docs/gpu.md."


def _platforms():
    return jax.config.jax_platforms or ""
