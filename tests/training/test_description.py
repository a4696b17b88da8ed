import jax
import pytest

from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.models.variants import VARIANTS
from sparse_tube_vit.training.description import describe


def cells(report):
    return [line.split() for line in report.splitlines()]


def test_the_report(tmp_path):
    config = default_config()
    config.total_steps, config.data_dir = 20_000, str(tmp_path)
    config.model.update(**VARIANTS["B"])
    config.streams.v = stream(
        kind="video", dataset="video_folder/none", head="dances", batch_size=1
    )
    report = describe(config)
    # The stem reads 7 x 7 x 4 windows of tube 0, twice 8 frames each.
    assert "8x8x8 every 16x32x32 from 0x0x0, 2x1x1 windows a token" in report
    share = (4 * 7 * 7) * 8**3 / (32 * 224 * 224)
    line = next(row for row in report.splitlines() if row.startswith("8x8x8"))
    assert line.split()[-3:] == ["98", "2x7x7", f"{share:.2%}"]
    assert "a clip of 32x224x224" in report and " 539 " in report
    assert "559 in the paper" in report and "72 GFLOP" in report
    # What is not known yet is said so, and the rest is told all the same.
    assert "Without head_dances, whose data sets are not prepared" in report
    d = 768
    pooling = f"{4 * (d * d + d) + d:,}"
    assert ["pooling", pooling, "0", pooling] in cells(report)
    encoder = f"{12 * (12 * d * d + 13 * d) + 2 * d:,}"
    assert ["encoder", encoder, "0", encoder] in cells(report)
    formula, counted = (
        float(row[-1]) for row in cells(report) if row[:1] in (["by"], ["as"])
    )
    assert counted == pytest.approx(formula, rel=0.03)
    config.optimizer.trained_layers = 0
    assert ["pooling", pooling, "0", pooling] in cells(describe(config))
    assert ["encoder", "0", encoder, encoder] in cells(describe(config))
    config.model.tubes = "2"
    assert "Beside the paper" not in describe(config)


def test_the_report_where_jax_has_no_cpu(tmp_path, monkeypatch):
    """As by JAX_PLATFORMS=cuda: XLA counts for CPUs alone."""

    def devices(backend=None):
        raise RuntimeError(f"Unknown backend {backend}")

    config = default_config()
    config.data_dir = str(tmp_path)
    config.streams.v = stream(
        kind="video", dataset="video_folder/none", head="dances", batch_size=1
    )
    monkeypatch.setattr(jax, "devices", devices)
    report = describe(config)
    assert "by formula" in report and "as XLA counts" not in report
    assert "for want of a CPU backend: JAX_PLATFORMS=cpu,cpu has one." in report
