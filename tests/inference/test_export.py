"""Exported programs, run without this package, give what the loaded model gives."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import export

import sparse_tube_vit as stv
from sparse_tube_vit import release
from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.config import default_config, evaluation, stream
from sparse_tube_vit.inference.export import _describe, export_scores
from sparse_tube_vit.inference.loaded import TrainedTubeViT
from sparse_tube_vit.models.tubes import NoImageTube
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.models.variants import VARIANTS

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)

# Nothing but jax, which itself needs ml_dtypes and scipy, and numpy.
ALONE = """if True:
    import importlib.abc, sys
    class Blocked(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            absent = ("sparse_tube_vit", "flax", "orbax", "optax", "safetensors", "av",
                      "etils", "absl", "ml_collections", "tensorflow")
            if name.partition(".")[0] in absent:
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Blocked())
"""


def run_alone(code, folder, blocked=True):
    """Runs the documentation's code in a process of its own, on clips.npy."""
    code = code.replace('"runs/release"', repr(str(folder)))
    code = re.sub("(?m)^clips = .*$", 'clips = np.load(f"{DIR}/clips.npy")', code)
    ended = subprocess.run(
        [sys.executable, "-c", (ALONE if blocked else "") + "\n" + code],
        env={"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


SAVE = """
np.savez(f"{DIR}/scores.npz", **scores(parameters, clips))
"""


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def released(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "release"
    options = ["--export=stablehlo", f"--dtype={request.param}"]
    release.main(["--model=demo", f"--out={folder}", *options])
    return folder


def clips_of(tubevit):
    return np.stack([stv.read_clip(x, tubevit.config) for x in stv.example_clips()])


def test_the_documented_lines_give_the_scores_without_this_package(released):
    tubevit = stv.load(released)
    clips = clips_of(tubevit)
    np.save(released / "clips.npy", clips)
    printed = run_alone(BLOCKS[0] + SAVE, released)
    assert printed == "motions ['ring left', 'star right']\n"
    found = np.load(released / "scores.npz")
    assert found.files == ["motions"] and found["motions"].dtype == np.float32
    expected = tubevit.scores(clips[:, None], "motions")
    np.testing.assert_allclose(found["motions"], expected, atol=1e-6)


def output(classes, probabilities, views):
    """The description of a head's probabilities."""
    return {
        "dtype": "float32",
        "shape": ["b", len(classes)],
        "probabilities": probabilities,
        "combine_views": views,
        "classes": [*classes],
    }


def test_the_release_is_one_as_before_and_says_what_was_added(released):
    described = json.loads((released / "export.json").read_text())
    assert described["platforms"] == ["cpu", "cuda", "tpu"]
    assert described["jax"] == jax.__version__
    video, image = (described["programs"][kind] for kind in ("video", "image"))
    names = stv.load(released).class_names
    assert image == {
        "file": "image.stablehlo",
        "input": {"dtype": "uint8", "shape": ["b", 64, 64, 3]},
        "outputs": {"shapes": output(names["shapes"], "softmax", "mean")},
    }
    clips = {"dtype": "uint8", "shape": ["b", 16, 64, 64, 3], "fps": 8.0}
    assert video["input"] == clips
    assert video["outputs"] == {"motions": output(names["motions"], "softmax", "mean")}
    card = (released / stored.CARD).read_text()
    assert "`video.stablehlo`: uint8 (b, 16, 64, 64, 3) to probabilities of m" in card
    names = {path.name for path in released.iterdir()} - {"clips.npy", "scores.npz"}
    programs = {"export.json", "video.stablehlo", "image.stablehlo"}
    assert names == programs | {stored.CARD, stored.CONFIG, stored.WEIGHTS}


@pytest.mark.parametrize("batch", [None, 3])
def test_an_image_program_takes_any_batch_or_the_fixed_one(batch):
    tubevit = stv.load("demo")
    written = export_scores(tubevit, "image", batch).serialize()
    program = export.deserialize(written)
    images = clips_of(tubevit)[:, :3].reshape(6, 64, 64, 3)
    parameters = flatten_dict(tubevit.params, sep="/")
    for n in (3,) if batch else (1, 6):
        found = program.call(parameters, images[:n])["shapes"]
        expected = tubevit.scores(images[:n, None, None], "shapes")
        np.testing.assert_allclose(found, expected, atol=1e-6)
    if batch:
        with pytest.raises(ValueError, match="Shape mismatch"):
            program.call(parameters, images[:2])


OPTIONS = [
    {"pooling": "class_token", "kernels": "interpolated", "scan": True},
    {"pooling": "mean", "positions": "learned", "dtype": "bfloat16"},
]


def untrained(losses, params=init_params, **options):
    """A model for videos alone, of random parameters or of the shapes of such.

    Heads of a sigmoid take the maximum of their views.
    """
    config = default_config()
    config.clip.update(frames=8, size=32)
    config.model.update(depth=2, width=24, mlp_dim=32, heads=2)
    config.model.tubes = (
        {"kernel": (4, 4, 4), "stride": (4, 8, 8)},
        {"kernel": (8, 8, 8), "stride": (8, 16, 16)},
    )
    config.model.update(**options)
    if config.model.tubes == "main":
        config.clip.update(frames=32, size=224)
    for head, loss in losses.items():
        source = {"kind": "video", "dataset": "x", "batch_size": 1}
        config.streams[head] = stream(**source, head=head, loss=loss)
        views = "max" if loss == "sigmoid" else "mean"
        config.evaluations[head] = evaluation(**source, head=head, combine_views=views)
    names = {head: ("x", "y", "z") for head in losses}
    model = make_model(config, {head: 3 for head in losses})
    params = params(model, jax.random.key(1), model.clip)
    return TrainedTubeViT("x", 0, config, names, model, params, False)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_kind_of_model_is_exported(options):
    tubevit = untrained({"a": "softmax", "b": "sigmoid"}, **options)
    exported = export_scores(tubevit, "video")
    described = json.loads(json.dumps(_describe(tubevit, "video", exported)))
    assert described["outputs"] == {
        "a": output("xyz", "softmax", "mean"),
        "b": output("xyz", "sigmoid", "max"),
    }
    program = export.deserialize(exported.serialize())
    clips = np.random.default_rng(0).integers(0, 256, (3, 8, 32, 32, 3), np.uint8)
    # Heads begin with zeros.
    draw = np.random.default_rng(1).standard_normal
    params = jax.tree.map(lambda x: x + draw(x.shape, np.float32) / 5, tubevit.params)
    tubevit = dataclasses.replace(tubevit, params=params)
    found = program.call(flatten_dict(params, sep="/"), clips)
    assert [*found] == ["a", "b"]
    for head in found:
        expected = tubevit.scores(clips[:, None], head)
        assert expected.std() > 0.05
        np.testing.assert_allclose(found[head], expected, atol=1e-5)
    with pytest.raises(NoImageTube):
        export_scores(tubevit, "image")


def test_a_program_is_the_same_on_any_machine(monkeypatch):
    """Where other devices are there, models would choose kernels for these."""
    tubevit, programs = stv.load("demo"), []
    for platform in ("cpu", "tpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda: platform)  # noqa: B023
        # In one line, which is in the program too.
        programs.append(export_scores(tubevit, "video").mlir_module_serialized)
    assert programs[0] == programs[1] == programs[2]


def test_the_largest_variant_is_exported_without_its_parameters():
    def shapes(model, *options):
        return jax.eval_shape(lambda: init_params(model, *options))

    sizes = VARIANTS["H"] | {"tubes": "main"}
    tubevit = untrained({"a": "softmax"}, shapes, **sizes)
    assert sum(x.size for x in jax.tree.leaves(tubevit.params)) > 600e6
    written = export_scores(tubevit, "video", dtype="bfloat16").serialize()
    assert len(written) < 8e6
    parameter, *_ = export.deserialize(written).in_avals
    assert parameter.dtype == "bfloat16"


def test_options_of_the_export_go_with_it(tmp_path, capsys):
    with pytest.raises(SystemExit):
        release.main(["--model=demo", f"--out={tmp_path / 'x'}", "--export_batch=2"])
    assert "go with --export" in capsys.readouterr().err
    options = ["--export=stablehlo", "--export-kind=image", "--export-batch=2"]
    release.main(["--model=demo", f"--out={tmp_path / 'y'}", *options])
    described = json.loads((tmp_path / "y" / "export.json").read_text())
    assert described["programs"]["image"]["input"]["shape"] == [2, 64, 64, 3]
    assert [*described["programs"]] == ["image"]


@pytest.mark.slow
def test_the_documented_lines_for_tensorflow_give_the_scores(released):
    pytest.importorskip("tensorflow")
    tubevit = stv.load(released)
    clips = clips_of(tubevit)
    np.save(released / "clips.npy", clips)
    run_alone(BLOCKS[0] + BLOCKS[1], released, blocked=False)
    code = """if True:
        import sys
        sys.modules["jax"] = None
        import numpy as np, tensorflow as tf
        serve = tf.saved_model.load("saved_model/1").signatures["serving_default"]
        np.savez("served.npz", **serve(clips=tf.constant(np.load("clips.npy"))))
    """
    run_alone(code, released, blocked=False)
    (served,) = np.load(released / "served.npz").values()
    expected = tubevit.scores(clips[:, None], "motions")
    np.testing.assert_allclose(served, expected, atol=1e-5)
