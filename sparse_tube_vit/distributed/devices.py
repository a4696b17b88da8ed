"""The devices that a run uses, and NVIDIA GPUs that it does not."""

import re
import shutil
from pathlib import Path

import jax

from sparse_tube_vit.log import log

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
        log.warning("An NVIDIA GPU is here, but jax runs on the CPU. %s", remedy())


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
