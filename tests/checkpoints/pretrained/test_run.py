"""What a model takes of another run's parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_tube_vit.checkpoints import pretrained, resizing, stored
from sparse_tube_vit.checkpoints.pretrained import WeightsDoNotMatch
from sparse_tube_vit.checkpoints.run import Checkpoints, describe_run, save_params
from sparse_tube_vit.config import from_json
from sparse_tube_vit.models.tubevit import make_model, param_shapes
from sparse_tube_vit.training.state import TrainState
from tests.checkpoints.pretrained.models import image_tube, video_config
from tests.saved import random_like


def save_run(config, classes, workdir):
    """A checkpoint of step 3 with random parameters, which are returned."""
    model = make_model(config, {head: len(names) for head, names in classes.items()})
    shapes = param_shapes(model)
    params = jax.device_put(random_like(shapes))
    run = describe_run(config, classes)
    writer = Checkpoints(workdir, 1, run)
    writer.save(TrainState(jnp.int32(3), params, {"count": jnp.int32(3)}, None))
    writer.close()
    return params


def test_another_run_gives_all_but_heads_of_other_classes(tmp_path):
    config = video_config()
    config.model.positions = "learned"
    classes = {"a": ("x", "y"), "b": ("x", "y"), "c": ("x", "y")}
    theirs = jax.device_get(save_run(config, classes, tmp_path))

    config.clip.frames = 24
    config.init.update({"weights": str(tmp_path), "positions": "keep"})
    classes = {"a": ("x", "y"), "b": ("y", "x"), "d": ("x", "y")}
    model = make_model(config, {head: 2 for head in classes})
    shapes = param_shapes(model)
    ours, report = pretrained.initial_params(config, model, shapes, classes)
    for part in ("encoder", "stem", "pooling", "head_a"):
        jax.tree.map(np.testing.assert_array_equal, ours[part], theirs[part])
    assert report.source == f"step 3 of {tmp_path}"
    assert {*report.new} == {f"head_{h}/{x}" for h in "bd" for x in ("kernel", "bias")}
    assert report.dropped["head_b/bias"] == ((2,), "the classes differ")
    assert report.dropped["head_c/bias"] == ((2,), "there is no such head here")
    # Three times the frames: the middle token of three has the place of the old one.
    old, new = (p["positions"]["tube_0"] for p in (theirs, ours))
    assert old.shape == (2, 3, 3, 24) and new.shape == (6, 3, 3, 24)
    np.testing.assert_allclose(new[1], old[0], atol=1e-6)
    np.testing.assert_allclose(new[4], old[1], atol=1e-6)

    config.init.weights = str(tmp_path / "checkpoints" / "3")
    config.init.positions = "drop"
    ours, report = pretrained.initial_params(config, model, shapes, classes)
    assert "positions" not in ours and "positions/tube_0" in report.dropped
    same = jax.tree.map(lambda x: x, shapes) | {"positions": theirs["positions"]}
    ours, _ = pretrained.initial_params(config, model, same, classes)
    jax.tree.map(np.testing.assert_array_equal, ours["positions"], theirs["positions"])
    config.model.pooling = "mean"
    model = make_model(config, {head: 2 for head in classes})
    del shapes["pooling"]
    with pytest.raises(WeightsDoNotMatch, match="pooling/probe .*: a parameter"):
        pretrained.initial_params(config, model, shapes, classes)


def test_keys_that_an_older_run_lacks_are_no_differences():
    run = stored.read("demo").description
    assert "gated_mlp" not in run["config"]["model"]
    config, classes = from_json(run["config"]), run["class_names"]
    config.init.weights = "demo"
    model = make_model(config, {head: len(names) for head, names in classes.items()})
    shapes = param_shapes(model)
    _, report = pretrained.initial_params(config, model, shapes, classes)
    assert report.notes == [] and not report.new
    config.model.norm_epsilon = 1e-5
    _, report = pretrained.initial_params(config, model, shapes, classes)
    assert report.notes == ["model.norm_epsilon was 1e-06 there, 1e-05 here"]
    config.optimizer.trained_layers = 1
    with pytest.raises(
        WeightsDoNotMatch, match="norm_epsilon *1e-06 there: what is fro"
    ):
        pretrained.initial_params(config, model, shapes, classes)


def from_run(config, workdir, **init):
    """What a model takes of the run in `workdir`, and the report."""
    config.init.update({"weights": str(workdir), **init})
    model = make_model(config, {"a": 2})
    shapes = param_shapes(model)
    return pretrained.initial_params(config, model, shapes, {"a": ("x", "y")})


@pytest.fixture(scope="module")
def run_of_three_tubes(tmp_path_factory):
    """(workdir, parameters) of a run whose last tube reads images."""
    workdir = tmp_path_factory.mktemp("run")
    params = save_run(video_config(), {"a": ("x", "y")}, workdir)
    return workdir, jax.device_get(params)


def test_the_image_tube_of_a_run_is_taken_wherever_it_stands(run_of_three_tubes):
    workdir, theirs = run_of_three_tubes
    config = video_config()
    config.model.tubes = (
        image_tube(16),
        {"kernel": (8, 4, 4), "stride": (8, 16, 16)},
        image_tube(8),
    )
    several = ("stem/tube_0", "stem/tube_1")
    ours, report = from_run(config, workdir, fresh=several[1:])
    image = theirs["stem"]["tube_2"]
    np.testing.assert_array_equal(ours["stem"]["tube_0"]["kernel"], image["kernel"])
    np.testing.assert_array_equal(ours["stem"]["tube_0"]["bias"], image["bias"])
    small = resizing.resize_patches(image["kernel"][0], (8, 8))
    np.testing.assert_allclose(ours["stem"]["tube_2"]["kernel"][0], small, atol=1e-6)
    assert sorted(ours["stem"]) == ["tube_0", "tube_2"]
    assert "stem/tube_1/kernel" in report.new
    dropped = {name: why for name, (_, why) in report.dropped.items()}
    assert dropped["stem/tube_0/kernel"] == "this tube takes the patches of another"
    assert dropped["stem/tube_1/kernel"] == "in init.fresh"
    assert report.resized["stem/tube_0/kernel"][1] == "of stem/tube_2"


def test_two_image_tubes_change_places(tmp_path):
    config = video_config()
    config.model.tubes = (image_tube(16), image_tube(8))
    config.model.positions = "learned"
    model = make_model(config, {"a": 2})
    shapes = param_shapes(model)
    params = random_like(shapes)
    theirs = params["stem"]
    save_params(tmp_path, params, describe_run(config, {"a": ("x", "y")}))
    config = video_config()
    config.model.tubes = (image_tube(8), image_tube(16))
    config.model.positions = "learned"
    ours, report = from_run(config, tmp_path, positions="keep")
    for i, j in ((0, 1), (1, 0)):
        jax.tree.map(
            np.testing.assert_array_equal,
            ours["stem"][f"tube_{i}"],
            theirs[f"tube_{j}"],
        )
        np.testing.assert_array_equal(
            ours["positions"][f"tube_{i}"], params["positions"][f"tube_{j}"]
        )
    assert not any(name.startswith(("stem/", "positions/")) for name in report.dropped)


def test_learned_positions_of_a_tube_that_is_added_are_new(tmp_path):
    config = video_config()
    tubes = config.model.tubes
    config.model.tubes, config.model.positions = tubes[:2], "learned"
    theirs = jax.device_get(save_run(config, {"a": ("x", "y")}, tmp_path))
    config.model.tubes = tubes
    ours, report = from_run(config, tmp_path, positions="keep", fresh=("stem/tube_2",))
    for i in (0, 1):
        np.testing.assert_array_equal(
            ours["positions"][f"tube_{i}"], theirs["positions"][f"tube_{i}"]
        )
    assert {"stem/tube_2/kernel", "positions/tube_2"} <= report.new.keys()
    # In front of the others.
    config.model.tubes = (tubes[2], *tubes[:2])
    fresh = ("stem/tube_0", "stem/tube_1", "stem/tube_2")
    _, report = from_run(config, tmp_path, positions="keep", fresh=fresh)
    assert {f"positions/tube_{i}" for i in range(3)} <= report.new.keys()
    config.model.positions = "fixed"
    with pytest.raises(WeightsDoNotMatch, match="set init.positions='drop'"):
        from_run(config, tmp_path, positions="keep", fresh=fresh)


@pytest.mark.parametrize("how", ["keep", "drop"])
def test_a_gain_that_is_not_here_is_dropped(tmp_path, how):
    config = video_config()
    config.model.update(positions="learned", position_gain=0.0)
    save_run(config, {"a": ("x", "y")}, tmp_path)
    config.model.position_gain = None
    config.model.positions = "learned" if how == "keep" else "fixed"
    _, report = from_run(config, tmp_path, positions=how)
    assert report.dropped["positions/gain"] == ((), "model.position_gain is None")


def test_a_shape_of_charades_keeps_the_image_tube_in_its_place(run_of_three_tubes):
    workdir, theirs = run_of_three_tubes
    config = video_config()
    config.model.tubes = (
        {"kernel": (8, 4, 4), "stride": (8, 16, 16)},
        {"kernel": (4, 4, 4), "stride": (4, 16, 16)},
        image_tube(16),
    )
    with pytest.raises(WeightsDoNotMatch, match="tube_0  kernel .4, 8, 8.* is .8, 4"):
        from_run(config, workdir)
    ours, report = from_run(config, workdir, fresh=("stem/tube_0", "stem/tube_1"))
    assert [*ours["stem"]] == ["tube_2"]
    jax.tree.map(
        np.testing.assert_array_equal, ours["stem"]["tube_2"], theirs["stem"]["tube_2"]
    )
    assert "stem/tube_2/kernel" in report.loaded


@pytest.mark.parametrize("how", ["repeat", "central_frame"])
def test_tubes_of_several_frames_are_inflated_from_a_run(run_of_three_tubes, how):
    workdir, theirs = run_of_three_tubes
    ours, report = from_run(video_config(), workdir, inflate=how)
    image = theirs["stem"]["tube_2"]
    for i, (frames, size) in enumerate(((4, 8), (3, 16))):
        tube = ours["stem"][f"tube_{i}"]
        patch = resizing.resize_patches(image["kernel"][0], (size, size))
        weights = {
            "repeat": np.full(frames, 1 / frames),
            "central_frame": np.eye(frames)[frames // 2],
        }[how]
        expected = weights[:, None, None, None, None] * patch
        np.testing.assert_allclose(tube["kernel"], expected, atol=1e-6)
        np.testing.assert_array_equal(tube["bias"], image["bias"])
        remark = report.resized[f"stem/tube_{i}/kernel"][1]
        assert remark == f"of stem/tube_2, {how}"
    jax.tree.map(np.testing.assert_array_equal, ours["stem"]["tube_2"], image)
    config = video_config()
    config.model.tubes[0]["space_to_depth"] = (2, 1, 1)
    with pytest.raises(WeightsDoNotMatch, match="a ViT's kernel makes whole tokens"):
        from_run(config, workdir, inflate=how)


def test_an_image_run_of_one_tube_is_inflated(tmp_path):
    config = video_config()
    config.clip.frames = 1
    config.model.tubes = (image_tube(16),)
    theirs = jax.device_get(save_run(config, {"a": ("x", "y")}, tmp_path))
    ours, report = from_run(video_config(), tmp_path, inflate="repeat")
    assert sorted(ours["stem"]) == ["tube_0", "tube_1", "tube_2"]
    for x in (
        ours["stem"]["tube_2"]["kernel"][0],
        ours["stem"]["tube_1"]["kernel"].sum(0),
    ):
        np.testing.assert_allclose(x, theirs["stem"]["tube_0"]["kernel"][0], atol=1e-6)
    assert not any(name.startswith("stem") for name in report.dropped)
