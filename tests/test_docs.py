"""docs/*.md: the Python that they show runs as it is written, or nearly so.

For docs/export.md see inference/test_export.py.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from sparse_tube_vit.config import default_config
from sparse_tube_vit.datasets.builders import moving_shapes
from sparse_tube_vit.models.variants import make_tubes

ROOT = Path(__file__).parents[1]


def python_of(name):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    return "".join(re.findall(r"(?ms)^```python\n(.*?)^```", text))


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=str)
def test_what_documents_import_is_there(path):
    for line in re.findall(r"(?m)^from sparse_tube_vit.*$", path.read_text()):
        exec(line, {})


def test_tubes_by_size():
    config = default_config()
    exec(python_of("configuration").partition("import jax")[0], {"config": config})
    assert [tube.kernel[0] for tube in make_tubes(config.model.tubes)] == [8, 1]


@pytest.mark.slow
def test_a_model_of_ones_own():
    names = {}
    exec("import jax" + python_of("configuration").partition("import jax")[2], names)
    assert names["logits"].shape == (2, 400)
    assert names["features"]["pooled"].shape == (2, 768)


def test_features_of_image_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, frames = moving_shapes.render("images", "test", 0)
    Path("photo.jpg").write_bytes(moving_shapes.encode_jpeg(frames))
    weights = ROOT / "tests/golden/image_vits/hugging_face_dinov2"
    code = python_of("weights").replace("hf://facebook/dinov2-small", str(weights))
    names = {"pixels": np.zeros((24, 24, 3), np.uint8)}
    exec(f"import sparse_tube_vit as stv\n{code}", names)
    assert names["tubevit"].features("photo.jpg").pooled.shape == (16,)


@pytest.mark.slow
def test_clips_and_windows(capsys):
    exec(python_of("inference"), {})
    lines = capsys.readouterr().out.splitlines()
    spans = [[float(x) for x in line.split()[:2]] for line in lines]
    assert len(spans) > 1 and all(0 < end - begin <= 2.01 for begin, end in spans)
    assert "left" in lines[0] or "right" in lines[0]


@pytest.mark.slow
def test_memory_of_a_step(capsys):
    exec(python_of("gpu"), {})
    gigabytes, unit = capsys.readouterr().out.split()
    assert 1 < float(gigabytes) < 100 and unit == "GiB"
