"""The files in configs/: what they say, and that each of them runs."""

import importlib.util
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from sparse_tube_vit.checkpoints.step import NoCheckpoint
from sparse_tube_vit.config import InvalidConfig, arguments, validate
from sparse_tube_vit.datasets.catalog import BUILDERS
from sparse_tube_vit.models.tubes import count_tokens
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.train import train
from tests.tiny import shrink_moving_shapes

#: All experiments but finetune.py, which a model completes: test_finetuning.py.
FILES = sorted(
    file
    for file in (Path(__file__).parents[1] / "configs").glob("*.py")
    if file.stem not in ("__init__", "finetune")
)


def get_config(name, argument=""):
    path = next(file for file in FILES if file.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        shrink_moving_shapes(patch)
        yield tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_every_config_is_valid_and_fits_its_model(name):
    config = get_config(name)
    validate(config)
    model = make_model(config, {"head": 10})
    jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, "head"),
        np.zeros((1, *model.clip, 3), np.uint8),
    )
    if {s.kind for s in config.streams.values()} == {"image", "video"}:
        assert count_tokens(model.tubes, (1, *model.clip[1:]))


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_every_data_set_is_one_that_prepare_knows(name):
    classes = ("classes=400", "classes=600", "classes=700")
    for argument in classes if name == "kinetics" else ("",):
        config = get_config(name, argument)
        for source in (*config.streams.values(), *config.evaluations.values()):
            assert source.dataset.partition("/")[0] in BUILDERS


@pytest.mark.parametrize(
    "name", ["charades", "imagenet", "kinetics", "scale_up", "something_something_v2"]
)
def test_a_pod_that_splits_the_training_batches_splits_those_of_evaluation(name):
    config = get_config(name)
    chips = math.gcd(*(stream.batch_size for stream in config.streams.values()))
    for source in config.evaluations.values():
        assert source.batch_size % chips == 0


SMOKED = [
    "kinetics:smoke",
    "imagenet:smoke",
    "something_something_v2:smoke",
    "charades:smoke",
    "scale_up:smoke",
    "moving_shapes",
    "ucf101",
    "reproduction:table=7e,row=interpolated,task=moving_shapes",
]
VARIED = [
    "kinetics:smoke,streams=images_first,classes=700,variant=L",
    "charades:smoke,kernels=separate",
    "scale_up:smoke,trained=head",
]


def test_every_config_is_smoked():
    assert {name.partition(":")[0] for name in SMOKED} == {f.stem for f in FILES}


@pytest.mark.parametrize(
    "name", [*SMOKED, *(pytest.param(name, marks=pytest.mark.slow) for name in VARIED)]
)
def test_every_config_trains_for_two_steps(name, data_dir, tmp_path):
    name, _, argument = name.partition(":")
    config = get_config(name, argument)
    sources = (*config.streams.values(), *config.evaluations.values())
    for source in sources:
        source.batch_size = jax.device_count()
    if "smoke" not in argument:  # made for a CPU: smaller alone, on the embedded data
        config.model.update(depth=1, width=24, mlp_dim=32, heads=2)
        for source in sources:
            source.dataset = f"moving_shapes/{source.kind}s"
        for source in config.evaluations.values():
            source.split = "test"
    config.update(total_steps=2, data_dir=str(data_dir))
    config.optimizer.warmup_steps = 1
    state = train(config, tmp_path)
    assert int(state.step) == 2
    assert len(list((tmp_path / "evaluations").glob("*.json"))) == len(
        config.evaluations
    )


@pytest.mark.parametrize(
    "argument, message",
    [
        ("table=14,task=moving_shapes", "not run on moving_shapes, but on ucf101"),
        ("table=8,task=ucf101", "not run on ucf101, but on ucf101_image_vit"),
        ("seed=x", "seed=x is no number"),
    ],
)
def test_what_reproduction_does_not_have_is_named(argument, message):
    with pytest.raises(InvalidConfig, match=message):
        get_config("reproduction", argument)


def test_a_row_after_another_does_not_train_without_its_model(data_dir, tmp_path):
    config = get_config("reproduction", "table=5,row=images_first,task=moving_shapes")
    config.data_dir = str(data_dir)
    with pytest.raises(NoCheckpoint, match="MODEL_OF_ROW_images"):
        train(config, tmp_path)


# Table 10 of the paper, and table 12's tubes.
@pytest.mark.parametrize(
    "name, expected",
    [
        ("kinetics", {"lr": 5e-5, "wd": 1e-3, "batch": 256, "clip": (64, 15.0)}),
        (
            "kinetics:variant=L,classes=600",
            {"lr": 1e-5, "wd": 1e-5, "batch": 256, "clip": (64, 15.0)},
        ),
        (
            "something_something_v2",
            {"lr": 2e-5, "wd": 1e-5, "batch": 256, "clip": (32, 24.0)},
        ),
        (
            "kinetics:variant=H",
            {"lr": 1e-5, "wd": 1e-5, "batch": 256, "clip": (64, 15.0)},
        ),
        (
            "something_something_v2:variant=B",
            {"lr": 2e-5, "wd": 1e-3, "batch": 256, "clip": (32, 24.0)},
        ),
        ("charades", {"lr": 1e-3, "wd": 1e-5, "batch": 64, "clip": (128, 6.0)}),
    ],
)
def test_settings_of_the_paper(name, expected):
    config = get_config(*name.split(":"))
    video = config.streams.video
    assert expected == {
        "lr": config.optimizer.learning_rate,
        "wd": config.optimizer.weight_decay,
        "batch": video.batch_size,
        "clip": (config.clip.frames, config.clip.fps),
    }
    assert config.optimizer.warmup_steps == 10_000
    assert (video.randaugment_layers, video.randaugment_magnitude) == (2, 10)
    assert config.model.tubes == ("charades" if name == "charades" else "main")
    regularization = {
        "kinetics": (0, 0, 0),
        "something_something_v2": (0.3, 0.3, 0.3),
        "charades": (0, 0.2, 0.1),
    }[name.partition(":")[0]]
    mixup, dropout, smoothing = regularization
    assert (video.mixup, config.model.dropout) == (mixup, dropout)
    assert video.label_smoothing == smoothing
    views = config.evaluations.video
    assert (views.temporal_views, views.spatial_views) == (4, 3)
    if name == "kinetics":
        assert config.total_steps == 300_000
        assert config.streams.image.batch_size == 256
        tubes = make_tubes(config.model.tubes)
        assert count_tokens(tubes, (64, 224, 224)) == 1176


@pytest.mark.parametrize("name", ["kinetics", "something_something_v2", "charades"])
def test_images_are_trained_jointly_by_the_settings_of_videos(name):
    streams = get_config(name).streams
    assert {*streams} == {"video", "image"}
    assert streams.image.dataset == "imagenet2012"
    differing = {
        key for key in streams.video if streams.video[key] != streams.image[key]
    }
    assert differing - {"loss"} == {"kind", "dataset", "head"}
    assert ("loss" in differing) == (name == "charades")
    alone = get_config(name, "streams=video")
    validate(alone)
    assert [*alone.streams] == [*alone.evaluations] == ["video"]


@pytest.mark.parametrize(
    "trained, gate, layers",
    [("gate", 26, 6), ("last", None, 6), ("head", None, 0), ("all", 26, None)],
)
def test_what_scaling_up_trains(trained, gate, layers):
    config = get_config("scale_up", f"trained={trained},weights=timm")
    validate(config)
    assert config.model.gate_after == gate
    assert config.optimizer.trained_layers == layers
    assert config.model.gelu == "erf"


@pytest.mark.parametrize(
    "kernels, fresh",
    [
        ("interpolated", ("stem",)),
        ("separate", ("stem/tube_0", "stem/tube_1", "stem/tube_2")),
    ],
)
def test_charades_keeps_the_image_tube_that_has_a_kernel_of_its_own(kernels, fresh):
    config = get_config("charades", f"kernels={kernels}")
    validate(config)
    assert config.init.fresh == fresh
    assert make_tubes(config.model.tubes)[3] == make_tubes("main")[3]


@pytest.mark.parametrize("argument", ["", "variant=B", "smoke"])
def test_something_something_is_never_flipped(argument):
    for stream in get_config("something_something_v2", argument).streams.values():
        assert stream.flip is False


def test_an_unknown_argument_is_named():
    with pytest.raises(InvalidConfig, match="'clases=400'.*classes=400, classes=600"):
        get_config("kinetics", "clases=400")


def test_arguments_of_config_files():
    allowed = {"a": ("1", "2"), "b": ("1", "2")}
    assert arguments("b=2", **allowed).to_dict() == {"a": "1", "b": "2"}
    for wrong in ("c=2", "a=3", "a"):
        with pytest.raises(InvalidConfig, match=f"no argument '{wrong}'.*a=1, a=2"):
            arguments(wrong, **allowed)
    more = allowed | {"from_": "", "smoke": False}
    assert arguments("smoke,from_=runs/x", **more).to_dict() == {
        "a": "1",
        "b": "1",
        "from_": "runs/x",
        "smoke": True,
    }
    assert arguments("", **more).smoke is False
    for wrong in ("smoke=yes", "from_", "from_="):
        with pytest.raises(InvalidConfig, match=f"'{wrong}'.*from_=..., smoke"):
            arguments(wrong, **more)
