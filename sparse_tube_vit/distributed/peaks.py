"""Peak speeds of GPUs by their names."""

#: FLOPs a second in bfloat16 with float32 sums, dense, a multiply-add as two, by what a
#: name contains; the first that fits counts. From NVIDIA's data sheets, which state the
#: double, with sparsity. The T4 has no bfloat16: its figure is float16's.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "T4": 65e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the FLOPs a second of a device in bfloat16, or None if not known.

    Args:
        device_kind: Name of the device, such as "NVIDIA H100 80GB HBM3".
    """
    words = f"{device_kind} ".replace("-", " ")
    return next((peak for name, peak in PEAKS.items() if f"{name} " in words), None)
