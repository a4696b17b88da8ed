"""Damage to a checkpoint or a release, and to its description, is found and named."""

import json
import resource
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_tube_vit.checkpoints import step as one_step
from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.step import (
    DamagedCheckpoint,
)
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.inference import loaded
from tests.checkpoints.written import assert_equal, describe, rewrite


@pytest.mark.parametrize("lost", ["run", "params", "ema", "params/manifest.ocdbt"])
def test_a_checkpoint_that_lost_a_part_is_damaged(copy, lost):
    workdir, step = copy
    part = step / lost
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(DamagedCheckpoint, match="is damaged"):
        stored.read(workdir)


def test_a_checkpoint_with_a_file_cut_short_is_damaged(copy):
    """Whatever file it is: what is read is right, or an error."""
    workdir, step = copy
    whole, damaged = stored.read(workdir), []
    files = (f for item in ("run", "ema") for f in (step / item).rglob("*"))
    for file in filter(Path.is_file, files):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        try:
            assert_equal(stored.read(workdir).params, whole.params)
        except DamagedCheckpoint:
            damaged.append(str(file.relative_to(step)))
        file.write_bytes(data)
    (step / "ema" / "_METADATA").unlink()
    with pytest.raises(DamagedCheckpoint, match="ema is damaged: its _METADATA is gon"):
        stored.read(workdir)
    assert {"run/metadata", "ema/manifest.ocdbt", "ema/_METADATA"} <= {*damaged}
    assert any("/d/" in name for name in damaged)


def test_a_checkpoint_with_a_changed_byte_is_damaged_or_gives_the_same(copy):
    workdir, step = copy
    whole, noticed = stored.read(workdir), []
    for file in sorted(step.glob("ema/**/d/*")):
        bytes_ = file.read_bytes()
        middle = len(bytes_) // 2
        file.write_bytes(
            bytes_[:middle] + bytes([bytes_[middle] ^ 1]) + bytes_[middle + 1 :]
        )
        try:
            read = stored.read(workdir)
        except DamagedCheckpoint:
            noticed.append(file)
        else:
            jax.tree.map(np.testing.assert_array_equal, read.params, whole.params)
        file.write_bytes(bytes_)
    assert noticed


def change_class(described):
    described["class_names"]["shapes"][0] = "king"


def change_config(described):
    described["config"]["streams"]["video"]["dataset"] = "moving_shapes/video"


@pytest.mark.parametrize("change", [change_class, change_config])
def test_one_changed_letter_of_a_description_is_seen(copy, released, tmp_path, change):
    shutil.copytree(released, tmp_path / "release")
    files = (copy[1] / "run" / "metadata", tmp_path / "release" / "config.json")
    for path, file in zip((copy[0], tmp_path / "release"), files, strict=True):
        described = json.loads(file.read_text())
        change(described)
        file.write_text(json.dumps(described))
        for read in (describe, stored.read, loaded.load):
            with pytest.raises(DamagedCheckpoint, match="class names are not what was"):
                read(path)
        del described["checksum"]  # as of before there was one
        file.write_text(json.dumps(described))
        assert loaded.load(path).step == 5


def put(*keys):
    """Returns a change of a description: a value set, or removed for `...`."""
    *sections, key, value = keys

    def change(described):
        for section in sections:
            described = described[section]
        if value is ...:
            del described[key]
        else:
            described[key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("format", "one"),
        put("format", 1.0),
        put("config", ...),
        put("config", []),
        put("config", "streams", ...),
        put("config", "model", "heads", 0),
        put("config", "model", "heads", -1),
        put("config", "model", "heads", 5),
        put("config", "model", "dtype", "float8"),
        put("config", "model", "depth", 10**6),
        put("config", "model", "depth", 1000),
        put("config", "model", "width", 10**8),
        put("config", "model", "width", 2**16),
        put("config", "model", "tubes", [{"kernel": [1, 1, 1], "stride": [0, 1, 1]}]),
        put("config", "model", "tubes", [{"kernel": [1, 1, 1], "stride": [1e999] * 3}]),
        put("config", "model", "tubes", 7),
        put("config", "model", "tubes", [{"kernel": [1, 1, 1], "stride": [1e300] * 3}]),
        put("config", "model", "depth", None),
        put("config", "model", "width", None),
        put("config", "clip", "size", 10**5),
        put("config", "evaluations", "../../up", {}),
        put("config", "init", "keep_heads", ["gone"]),
        put("config", "init", "keep_heads", [[]]),
        put("config", "init", "keep_heads", None),
        put("config", "evaluations", "image", "head", None),
        put("config", "evaluations", "video", "temporal_views", ""),
        put("class_names", 3),
        put("class_names", {}),
        put("class_names", "shapes", ...),
        put("class_names", "shapes", 3),
        put("class_names", "shapes", {}),
        put("class_names", "shapes", []),
        put("class_names", "shapes", ["ring", 2]),
        put("class_names", "shapes", ["ring", "\ud800"]),
        put("class_names", "a/b", ["ring"]),
        put("class_names", "more", ["ring"]),
        put("versions", None),
        put("release", 3),
        put("release", {}),
        put("release", "step", "5"),
        put("release", "step", ...),
        put("release", "averaged", None),
        put("release", "sha256", 7),
    ],
)
def test_a_mangled_release_is_refused_by_name(released, tmp_path, change):
    """In little time and memory, and not in a trace."""
    shutil.copytree(released, tmp_path / "release")
    file = tmp_path / "release" / "config.json"
    described = json.loads(file.read_text())
    del described["checksum"]
    change(described)
    file.write_text(json.dumps(described))
    begin, (_, limit) = time.monotonic(), resource.getrlimit(resource.RLIMIT_DATA)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**32, limit))
    try:
        with pytest.raises(TubeViTError) as error:
            loaded.load(tmp_path / "release")
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    assert time.monotonic() - begin < 60, error
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "3", "null", "{}", "[" * 100_000])
def test_a_release_without_a_description_is_refused_by_name(released, tmp_path, text):
    shutil.copytree(released, tmp_path / "release")
    (tmp_path / "release" / "config.json").write_text(text)
    with pytest.raises(TubeViTError, match="release"):
        loaded.load(tmp_path / "release")


def test_checksums_are_compiled_for_the_first_checkpoint_alone(monkeypatch):
    traced, checksum = [], one_step._checksum
    monkeypatch.setattr(
        one_step,
        "_checksum",
        lambda x, xp: traced.append(x.shape) or checksum(x, xp),
    )
    for value in (1, 2):
        found = one_step.checksums_of_items(
            {"params": {"x": jnp.full((3, 5, 7), value)}}
        )
        assert found == {"params/x": 105 * value}
    assert traced == [(3, 5, 7)]


def test_parameters_of_another_model_are_damage(copy):
    workdir, step = copy
    rewrite(step, lambda described: described["config"]["model"].update(width=48))
    with pytest.raises(DamagedCheckpoint, match=r"block_0/.* has shape \(.*24.*48"):
        loaded.load(workdir)
