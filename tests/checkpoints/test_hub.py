"""Models on the Hugging Face Hub, of which a local server stands in."""

import io
import sys

import jax
import numpy as np
import pytest

from sparse_tube_vit import release as command
from sparse_tube_vit.checkpoints import hub, image_vits, stored
from sparse_tube_vit.checkpoints.step import ForeignCheckpoint, NoCheckpoint
from sparse_tube_vit.inference import loaded
from sparse_tube_vit.storage import UnreachableStorage
from tests import hub as stand_in
from tests.saved import save_model
from tests.tiny import tiny_config

CLASSES = {"motions": ("left", "right", "up"), "shapes": ("ring", "star")}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with stand_in.running(monkeypatch, tmp_path / "cache") as running:
        yield running


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work directory of a model with random parameters."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    return save_model(workdir, tiny_config("nowhere"), CLASSES)


def push(workdir, out, *options):
    given = [f"--workdir={workdir}", f"--out={out}", "--push=hf://me/dances", *options]
    command.main(given)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_uploaded_is_loaded_bit_for_bit(server, workdir, tmp_path):
    out, params = tmp_path / "out", stored.read(workdir).params
    push(workdir, out, "--private")
    assert server.commits == [("me/dances", f"Upload step 0 of {workdir}")]
    assert server.private == {"me/dances"}
    files = server.repositories["me/dances"]
    assert files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert b'stv.load("hf://me/dances")' in files["README.md"]
    source = stored.read("hf://me/dances")
    assert_equal(source.params, params)
    assert source.name == "release hf://me/dances" and source.workdir is None
    trained = loaded.load("hf://me/dances@main/")
    assert_equal(trained.params, params)
    assert trained.predict(np.zeros((16, 16, 3), np.uint8), top=1)
    # Once more, as another commit, without the programs of the release before.
    files |= {"export.json": b"{}", "video.stablehlo": b"", "notes.md": b"mine"}
    push(workdir, out, "--overwrite", "--dtype=bfloat16")
    assert len(server.commits) == 2
    names = {path.name for path in out.iterdir()} | {"notes.md"}
    assert server.repositories["me/dances"].keys() == names
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype(np.float32), params)
    assert_equal(stored.read("hf://me/dances").params, rounded)


def test_folders_of_a_repository_are_models_too(server, workdir):
    server.repositories["me/runs"] = {
        f"k400/{path.relative_to(workdir)}": path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file()
    }
    params = stored.read(workdir).params
    for path in ("k400", "k400/checkpoints", "k400/checkpoints/0"):
        assert_equal(stored.read(f"hf://me/runs/{path}").params, params)
    source = stored.locate("hf://me/runs/k400")
    assert source.name == "step 0 of hf://me/runs/k400"
    assert source.read_description() == stored.locate(workdir).read_description()
    with pytest.raises(NoCheckpoint, match="no checkpoint of step 5; it has 0"):
        stored.read("hf://me/runs/k400", step=5)
    with pytest.raises(NoCheckpoint, match="hf://me/runs/ssv2 is no directory"):
        stored.read("hf://me/runs/ssv2")


def test_only_what_is_needed_is_downloaded(server, tmp_path):
    server.repositories["me/vit"] = {
        "config.json": b'{"model_type": "vit"}',
        "model.safetensors": bytes(1000),
        "pytorch_model.bin": bytes(1000),
    }
    with pytest.raises(ForeignCheckpoint, match="hf://me/vit is not of sparse_tube_vi"):
        stored.read("hf://me/vit")
    cached = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert "config.json" in cached and "model.safetensors" not in cached


def test_weights_are_files_of_a_repository(server):
    arrays = {"cls": np.ones((1, 1, 2), np.float32)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    server.repositories["me/vit"] = {"big/vit.npz": file.getvalue()}
    assert_equal(image_vits.read_arrays("hf://me/vit/big/vit.npz"), arrays)
    with pytest.raises(UnreachableStorage, match="small.npz: .* has big/vit.npz"):
        image_vits.read_arrays("hf://me/vit/small.npz")


def test_files_are_those_of_the_revision(server):
    server.repositories["me/vit"] = {"vit.npz": b"new"}
    server.revisions["me/vit", "v1"] = {"vit.npz": b"old", "more.npz": b""}
    server.revisions["me/vit", "refs/pr/1"] = {"vit.npz": b"proposed"}
    contents = {"v1": b"old", "main": b"new", "refs/pr/1": b"proposed"}
    for revision, data in contents.items():
        file = hub.HubPath.of(f"hf://me/vit@{revision}/vit.npz")
        assert file.read_bytes() == data
    names = [path.name for path in hub.HubPath.of("hf://me/vit@v1").iterdir()]
    assert names == ["more.npz", "vit.npz"]
    with pytest.raises(UnreachableStorage, match="vit@v2: there is no such revision"):
        hub.HubPath.of("hf://me/vit@v2")


def test_files_are_those_of_the_commit_that_was_listed(server):
    """Although the branch goes on meanwhile."""
    server.repositories["me/vit"] = {"vit.npz": b"first", "config.json": b"{}"}
    listed = hub.HubPath.of("hf://me/vit")
    server.repositories["me/vit"] = {"vit.npz": b"second", "config.json": b"[]"}
    assert (listed / "vit.npz").read_bytes() == b"first"
    assert (listed.download(["vit.npz"]) / "vit.npz").read_bytes() == b"first"
    assert (hub.HubPath.of("hf://me/vit") / "vit.npz").read_bytes() == b"second"


def test_what_was_downloaded_is_there_offline(server, monkeypatch):
    files = {"big/vit.npz": io.BytesIO(), "other.npz": io.BytesIO()}
    arrays = {"cls": np.ones((1, 1, 2), np.float32)}
    for file in files.values():
        np.savez(file, **arrays)
    server.repositories["me/vit"] = {k: x.getvalue() for k, x in files.items()}
    server.revisions["me/vit", "refs/pr/1"] = server.repositories["me/vit"]
    for url in ("hf://me/vit/big/vit.npz", "hf://me/vit@refs/pr/1/big/vit.npz"):
        assert_equal(image_vits.read_arrays(url), arrays)
    commit = hub.HubPath.of("hf://me/vit").commit
    server.repositories.clear()  # the Hub is not asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for revision in ("", "@main", "@refs/pr/1", f"@{commit}"):
        url = f"hf://me/vit{revision}/big/vit.npz"
        assert_equal(image_vits.read_arrays(url), arrays)
    with pytest.raises(UnreachableStorage, match="other.npz: .* has big/vit.npz"):
        image_vits.read_arrays("hf://me/vit/other.npz")
    with pytest.raises(UnreachableStorage, match="hf://me/none cannot be reached"):
        stored.read("hf://me/none")


def test_what_cannot_be_reached_is_named(
    server, workdir, monkeypatch, capsys, tmp_path
):
    with pytest.raises(UnreachableStorage, match="me/none: there is no such model"):
        stored.read("hf://me/none")
    server.repositories["me/secret"] = {"config.json": b"{}"}
    server.private.add("me/secret")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no"))
    with pytest.raises(UnreachableStorage, match="private.* set HF_TOKEN"):
        loaded.load("hf://me/secret")
    for url in ("hf://me", "hf://", "hf:///me/dances"):
        with pytest.raises(UnreachableStorage, match="hf://USER/NAME"):
            stored.read(url)
    with pytest.raises(UnreachableStorage, match="is uploaded to hf://USER/NAME"):
        hub.push(workdir, "hf://me/dances/folder")
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(UnreachableStorage, match="hf://me/dances cannot be reached"):
        stored.read("hf://me/dances")
    with pytest.raises(SystemExit):
        push(workdir, tmp_path / "out")
    error = capsys.readouterr().err
    assert "UnreachableStorage: hf://me/dances" in error
    assert f"The release itself is in {tmp_path / 'out'}" in error
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnreachableStorage, match="pip install huggingface_hub"):
        stored.read("hf://me/dances")
