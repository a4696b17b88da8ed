"""The line of devices in the log, and the warning of a GPU that is not used."""

import jax
import pytest

from sparse_tube_vit.distributed import devices

VERSION = """NVRM version: NVIDIA UNIX{open} x86_64{module}  {driver}.65.06  Release
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""
MODULES = (
    {"open": " Open Kernel Module for", "module": ""},
    {
        "open": "",
        "module": " Kernel Module",
    },
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Files of a driver in a directory of the test; none are there yet."""
    monkeypatch.setattr(devices, "_GPU", tmp_path / "nvidiactl")
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(devices, "_platforms", lambda: "")
    return tmp_path


def logged(caplog):
    caplog.clear()
    with caplog.at_level("INFO", "sparse_tube_vit"):
        devices.log_devices()
    return [(record.levelname, record.message) for record in caplog.records]


def test_platform_kind_and_number_are_logged(machine, caplog):
    line = ("INFO", f"Devices: {jax.device_count()} x cpu (platform cpu)")
    assert logged(caplog) == [line]


@pytest.mark.parametrize("words", MODULES, ids=["open", "closed"])
@pytest.mark.parametrize(
    "driver, advice",
    [
        (595, 'Its driver is 595: pip install ".[cuda13]"'),
        (580, 'Its driver is 580: pip install ".[cuda13]"'),
        (579, 'Its driver is 579: pip install ".[cuda12]"'),
        (525, 'Its driver is 525: pip install ".[cuda12]"'),
        (470, "Its driver is 470, jax needs 525 or newer"),
    ],
)
def test_a_gpu_that_is_not_used_is_warned_of(machine, caplog, driver, advice, words):
    (machine / "nvidiactl").touch()
    (machine / "version").write_text(VERSION.format(driver=driver, **words))
    _, (level, warning) = logged(caplog)
    assert level == "WARNING" and "GPU is here, but jax runs on the CPU" in warning
    assert advice in warning and "docs/gpu.md" in warning


def test_a_gpu_whose_driver_is_unknown(machine, caplog):
    """As on Windows' Linux, where only the command is there."""
    (machine / "nvidia-smi").touch(0o755)
    _, (_, warning) = logged(caplog)
    assert '".[cuda13]" (580 on) or ".[cuda12]" (525 on)' in warning


def test_a_platform_that_is_asked_for_is_named(machine, caplog, monkeypatch):
    (machine / "nvidiactl").touch()
    monkeypatch.setattr(devices, "_platforms", lambda: "cpu")
    _, (_, warning) = logged(caplog)
    assert "JAX_PLATFORMS=cpu asks for that" in warning
