"""A release gives its checkpoint back, and is written whole or not at all."""

import dataclasses
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors

from sparse_tube_vit import release as command
from sparse_tube_vit.checkpoints import pretrained, release, stored
from sparse_tube_vit.checkpoints.step import (
    DamagedCheckpoint,
)
from sparse_tube_vit.errors import UnwritableOutput
from sparse_tube_vit.inference import loaded
from sparse_tube_vit.storage import remove_leftovers
from tests.checkpoints.written import CLASSES, MODEL, assert_equal
from tests.tiny import tiny_config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_release_gives_the_checkpoint_back(run, tmp_path, dtype):
    workdir, params = run
    release.release(workdir, tmp_path / "out", ema=False, dtype=dtype)
    found = stored.read(tmp_path / "out")
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
    assert_equal(found.params, rounded)
    # And so it is to a run that starts from it.
    config = tiny_config("nowhere")
    config.init.weights = str(tmp_path / "out")
    given, report = pretrained.initial_params(config, MODEL, params, CLASSES)
    assert_equal(given, rounded)
    assert not report.new and report.source == f"release {tmp_path / 'out'}"
    assert found.description == stored.read(workdir).description
    assert (found.step, found.averaged) == (5, False)
    # Any reader of safetensors finds the arrays by their paths.
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        x = file.get_tensor("encoder/block_0/attention/query/kernel")
    kernel = params["encoder"]["block_0"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(x, kernel.astype(dtype))


def test_a_release_keeps_scalars(run, tmp_path):
    """Gates and the gain of the positions have no axes."""
    found = stored.read(run[0])
    params = found.params | {"gain": np.float32(0.5)}
    release.write_folder(
        tmp_path / "out", dataclasses.replace(found, params=params), "card"
    )
    assert stored.read(tmp_path / "out").params["gain"].shape == ()


def test_the_command_writes_a_release(run, tmp_path, capsys):
    options = [f"--workdir={run[0]}", f"--out={tmp_path / 'out'}", "--step=3"]
    command.main([*options, "--license=cc-by-4.0"])
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()
    assert loaded.load(tmp_path / "out").step == 3
    with pytest.raises(SystemExit):
        command.main(options)
    assert "ReleaseExists: " in capsys.readouterr().err


def test_a_run_does_not_put_its_release_over_something_else(copy):
    workdir, _ = copy
    (workdir / "release").mkdir()
    (workdir / "release" / "notes.txt").touch()
    with pytest.raises(release.ReleaseExists, match="Move it, and give the same"):
        release.release_last(workdir)
    shutil.rmtree(workdir / "release")
    for _ in range(2):  # over its own, as after training on
        release.release_last(workdir)
    assert stored.read(workdir / "release").step == 5


def test_a_release_with_a_damaged_file_is_damaged(released, tmp_path):
    for name in ("config.json", "model.safetensors"):
        for how in ("lost", "cut", "changed"):
            broken = shutil.copytree(released, tmp_path / f"{name}.{how}")
            data = bytearray((broken / name).read_bytes())
            data[len(data) // 2] ^= 255
            if how == "lost":
                (broken / name).unlink()
            else:
                cut = data[: len(data) // 2] if how == "cut" else data
                (broken / name).write_bytes(cut)
            with pytest.raises(DamagedCheckpoint):
                stored.read(broken)


def test_a_release_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    found, out = stored.read(run[0]), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(release.Path, "rename", no_space)
        with pytest.raises(UnwritableOutput, match="no space left"):
            release.write_folder(out, found, "card")
    assert not any(tmp_path.iterdir())
    release.write_folder(out, found, "card")
    with pytest.raises(release.ReleaseExists, match="--overwrite"):
        release.write_folder(out, found, "new")
    with monkeypatch.context() as patch:
        patch.setattr(release.Path, "write_text", no_space)
        with pytest.raises(UnwritableOutput):
            release.write_folder(out, found, "new", overwrite=True)
    assert (out / "README.md").read_text() == "card"
    rename = stored.Path.rename

    def fail_last(path, target):
        """The release that was there is away when the new one cannot take its place."""
        if path.name.endswith(".old") or target != out:
            return rename(path, target)
        assert not out.exists()
        no_space()

    with monkeypatch.context() as patch:
        patch.setattr(release.Path, "rename", fail_last)
        with pytest.raises(UnwritableOutput):
            release.write_folder(out, found, "new", overwrite=True)
    assert (out / "README.md").read_text() == "card"
    release.write_folder(out, found, "new", overwrite=True)
    assert (out / "README.md").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(release.ReleaseExists, match="no release. Choose another"):
        release.write_folder(tmp_path / "mine", found, "card", overwrite=True)


# Killed when the release that was there is away, and the new one not in its place.
KILLED = """
import os, pathlib, sys
from sparse_tube_vit.checkpoints import release
workdir, out = sys.argv[1:]
rename = pathlib.Path.rename
def rename_or_die(path, target):
    if os.fspath(target) == out:
        os._exit(9)
    rename(path, target)
pathlib.Path.rename = rename_or_die
release.release(workdir, out, overwrite=True)
"""


def test_a_release_is_put_back_after_a_kill(run, released, tmp_path):
    out = shutil.copytree(released, tmp_path / "out")
    killed = [sys.executable, "-c", KILLED, str(run[0]), str(out)]
    assert subprocess.run(killed).returncode == 9
    remove_leftovers(tmp_path)
    (moved,) = tmp_path.iterdir()  # where nobody overlooks it
    assert re.fullmatch(r"out\..*\.old", moved.name)
    out.mkdir()  # it is no release, so that the one that was moved stays
    with pytest.raises(release.ReleaseExists, match="no release"):
        release.release(run[0], out, overwrite=True)
    assert moved.exists()
    out.rmdir()
    with pytest.raises(release.ReleaseExists, match="--overwrite"):
        release.release(run[0], out)
    for file in released.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    # Killed a moment later, it has left the one that it replaced.
    shutil.copytree(out, moved)
    release.release(run[0], out, overwrite=True)
    assert [*tmp_path.iterdir()] == [out]


def no_space(*_):
    raise OSError("no space left")
