"""Peaks by kind; the line of devices in the log; the warning of an unused GPU."""

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
    assert level == "WARNING" and "GPU, but jax uses the CPU" in warning
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


@pytest.mark.parametrize(
    "kind, teraflops",
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
    ],
)
def test_peaks_by_the_names_that_jax_has(kind, teraflops):
    assert devices.peak_flops(kind) == teraflops * 1e12


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "TPU v3",
        "TPU v4 lite",
        "TPU7x",
        "NVIDIA L40S",
        "NVIDIA H20",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA T400",
    ],
)
def test_other_kinds_have_no_peak(kind):
    assert devices.accelerator(kind) is devices.peak_flops(kind) is None
