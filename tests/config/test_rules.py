import functools
import math

import pytest

from sparse_tube_vit.config import (
    InvalidConfig,
    default_config,
    evaluation,
    from_json,
    stream,
    validate,
)
from sparse_tube_vit.config.schema import SCHEMA, SOURCES, leaves

VIDEO = {"kind": "video", "dataset": "d", "head": "h", "batch_size": 4}


@pytest.fixture
def config():
    config = default_config()
    config.total_steps = 20_000
    config.streams.video = stream(**VIDEO)
    config.evaluations.video = evaluation(**VIDEO)
    return config


def test_a_config_that_makes_sense(config):
    validate(config)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(total_steps=None), "total_steps is None"),
        (lambda c: c.streams.__delattr__("video"), "streams is empty"),
        (lambda c: c.streams.video.update(kind="clip"), "streams.video.kind is 'clip'"),
        (lambda c: c.evaluations.video.update(head="x"), "head is 'x', but .* train h"),
        (lambda c: c.model.update(heads=7), "768 is not a multiple of model.heads 7"),
        (lambda c: c.update(total_steps=10), "warmup_steps 10000 is not below"),
        (
            lambda c: c.update(total_steps=20_000, optimizer={"head_steps": 10_000}),
            "head_steps 10000 and warmup_steps 10000 are not below total_steps 20000",
        ),
        (lambda c: c.streams.update(v={**VIDEO, "fps": 3}), "unknown keys: fps"),
        (lambda c: c.streams.update(v=VIDEO), "streams.v lacks: color_jitter, crop"),
        (lambda c: c.checkpoint.update(every_steps=0), "checkpoint.every_steps is 0"),
        (lambda c: c.checkpoint.update(keep=0), "checkpoint.keep is 0"),
        (lambda c: c.model.update(heads=0), "model.heads is 0"),
        (lambda c: c.model.update(dtype="flaot32"), "one of float32, bfloat16"),
        (lambda c: c.model.update(pooling="max"), "attention, mean, class_token"),
        (lambda c: c.model.update(gate_after=12), "gate_after is 12.*1 to 11 of 12"),
        (lambda c: c.optimizer.update(trained_layers=13), "the model has 12 layers"),
        (
            lambda c: c.update(
                model={"gate_after": 6}, optimizer={"trained_layers": 4}
            ),
            "gate_after is 6, but .*layers 4 of 12 .* is empty: .* Set it to 8 or",
        ),
        (lambda c: c.init.update(fresh=("stem",)), "'' is not a run whose parameters"),
        (lambda c: c.evaluations.video.update(stride_scale=0.0), "stride_scale is 0.0"),
        (
            lambda c: c.update(
                model={"positions": "learned"},
                evaluations={"video": {"stride_scale": 0.5}},
            ),
            "learned positions fit the tokens of training alone",
        ),
        (
            lambda c: c.update(
                model={"positions": "fixed_no_stride"},
                evaluations={"video": {"stride_scale": 2.0}},
            ),
            "fixed_no_stride positions fit the tokens of training alone",
        ),
        (
            lambda c: c.evaluations.video.update(kind="image", spatial_views=3),
            "of images, of which there is one view, but has .*'spatial_views': 3",
        ),
        (
            lambda c: c.update(
                model={"kernels": "interpolated"}, init={"weights": "a.npz"}
            ),
            "whose patches no tube can take",
        ),
        (
            lambda c: c.evaluations.video.update(kind="image", combine_views="max"),
            "of which there is one view, but has .*'combine_views': 'max'",
        ),
        (lambda c: c.update(seed=2**32), "seed is 4294967296: .* from 0 to 4294967295"),
        (lambda c: c.streams.video.update(mixup=math.inf), "mixup is inf: .* finite"),
        (lambda c: c.streams.video.update(loss_weight=0.0), "nothing would train"),
        (
            lambda c: (
                c.model.update(positions="learned"),
                c.init.update(positions="keep"),
            ),
            "no init.weights to keep them of",
        ),
        (lambda c: c.optimizer.update(beta2=1.0), "beta2 is 1.0"),
        (lambda c: c.optimizer.update(accumulate_steps=0), "accumulate_steps is 0"),
        (
            lambda c: c.optimizer.update(first_moment_dtype="float16"),
            "first_moment_dtype is 'float16': it must be one of float32, bfloat16",
        ),
        (lambda c: c.model.update(remat="some"), "one of none, full, dots"),
        (
            lambda c: c.model.update(attention="flash"),
            "auto, heads_first, head_by_head, xla, cudnn",
        ),
        (lambda c: c.mesh.update(fsdp=0), "mesh.fsdp is 0: .*at least 1, or -1"),
        (lambda c: c.mesh.update(slices=0), "mesh.slices is 0"),
        (lambda c: c.loader.update(threads=0), "loader.threads is 0"),
        (lambda c: c.loader.update(workers=-1), "-1: it must be None, or a whole numb"),
        (
            lambda c: c.loader.update(shares="video=1", workers=2),
            "shares is 'video=1', but loader.workers 2, for each stream alike",
        ),
        *(
            (lambda c, text=text: c.loader.update(shares=text), "as in video=1")
            for text in ("video", "v=1", "video=0", "video=1,x=2", "video=1,video=2")
        ),
        (lambda c: c.model.update(stochastic_depth=1.0), "stochastic_depth is 1.0"),
        (lambda c: c.init.update(inflate="tile"), "one of none, repeat, central_frame"),
        (lambda c: c.init.update(inflate="repeat"), "there are no init.weights"),
        (
            lambda c: (
                c.init.update(inflate="repeat", weights="runs/x"),
                c.model.update(kernels="interpolated"),
            ),
            "inflate is 'repeat', but model.kernels is 'interpolated'",
        ),
        (lambda c: c.init.update(positions="keep"), "'fixed' are not learned"),
        (
            lambda c: c.model.update(positions="none", position_gain=0.1),
            "position_gain is 0.1, but model.positions 'none'",
        ),
        (
            lambda c: c.model.update(position_gain=float("nan")),
            "position_gain is nan: it must be None, or a finite number",
        ),
        (lambda c: c.init.update(normalization="clip"), "'' is not of an image ViT"),
        (
            lambda c: c.init.update({"weights": "a.npz", "head": "x"}),
            "head is 'x', but",
        ),
        (lambda c: c.clip.update(fps=0.0), "clip.fps is 0.0: it must be above 0"),
        (lambda c: c.streams.video.update(crop_area=(0.5, 2.0)), "two shares"),
        (lambda c: c.evaluations.video.update(temporal_views=0), "temporal_views is 0"),
        (lambda c: c.streams.video.update(randaugment_layers=-1), "layers is -1"),
        (
            lambda c: c.streams.video.update(randaugment_magnitude=11.0),
            "magnitude is 11.0: it must be between 0 and 10",
        ),
        (lambda c: c.streams.video.update(loss="hinge"), "one of softmax, sigmoid"),
        (
            lambda c: c.streams.update(v={**stream(**VIDEO), "mixup": "none"}),
            "streams.v.mixup is 'none': it must be at least 0",
        ),
        (
            lambda c: c.streams.update(v={**VIDEO, "color_jiter": 3}),
            r"color_jiter \(did you mean color_jitter\?\)",
        ),
        (
            lambda c: c.streams.update(v=stream(**VIDEO, loss="sigmoid")),
            "head 'h' has the losses 'sigmoid' in v, 'softmax' in video",
        ),
    ],
)
def test_what_cannot_work_is_named(config, change, message):
    with config.unlocked():
        change(config)
    with pytest.raises(InvalidConfig, match=message):
        validate(config)


@pytest.mark.parametrize(
    "name", ["ucf101/split1", "../up", "/tmp/x", "a b", ".hidden", "..", "a" * 101]
)
def test_names_are_parts_of_file_names_and_parameters(config, name):
    config.streams.video.head = config.evaluations.video.head = name
    with pytest.raises(InvalidConfig, match="streams.video.head is .*ucf101_split1"):
        validate(config)
    config.streams.video.head = config.evaluations.video.head = "h"
    if "." not in name:  # ml_collections refuses dots itself
        for section, make in (("streams", stream), ("evaluations", evaluation)):
            with config.unlocked():
                config[section][name] = make(**VIDEO)
            with pytest.raises(InvalidConfig, match=f"name of {section}.{name} is"):
                validate(config)
            with config.unlocked():
                del config[section][name]
    for section in ("streams", "evaluations"):
        saved = config.to_dict()
        saved[section][name] = saved[section].pop("video")
        with pytest.raises(InvalidConfig, match="cannot read the saved config"):
            from_json(saved)


@pytest.mark.parametrize("name", ["ucf101.split1", "Größe_2-x", "0"])
def test_other_names_are_allowed(config, name):
    config.streams.video.head = config.evaluations.video.head = name
    validate(config)
    assert from_json(config.to_dict()) == config


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("model", "heads", 0),
        ("model", "heads", -1),
        ("model", "dtype", "float8"),
        ("model", "depth", 10**6),
        ("model", "width", 10**8),
        ("model", "width", True),
        ("model", "mlp_dim", "3072"),
        ("clip", "size", 10**6),
        ("clip", "fps", float("inf")),
        ("loader", "threads", 10**6),
        ("streams", "video", {**VIDEO, "head": ["h"]}),
        ("streams", "video", {**VIDEO, "flip": "no"}),
        ("streams", "video", {**VIDEO, "split": 3}),
        ("streams", "video", [1]),
        ("evaluations", "video", {**VIDEO, "temporal_views": 10**9}),
        ("evaluations", "video", {**VIDEO, "batch_size": 10**12}),
    ],
)
def test_values_of_a_saved_config_follow_the_rules(config, section, key, value):
    saved = config.to_dict()
    saved[section][key] = value
    with pytest.raises(InvalidConfig, match="cannot read the saved config"):
        from_json(saved)


def test_no_key_of_a_saved_config_is_open(config):
    closed = [n for n, key in leaves(SCHEMA) if key.default is not None]
    closed.remove("model.tubes")  # of any type, see `make_tubes`
    closed += [f"{s}.video.{name}" for s, keys in SOURCES.items() for name in keys]
    for path in closed:
        for value in (None, "") if path.startswith(tuple(SOURCES)) else (None,):
            saved = config.to_dict()
            *sections, name = path.split(".")
            section = functools.reduce(dict.__getitem__, sections, saved)
            section[name] = value
            if path.endswith(("dataset", "split")) and value == "":
                from_json(saved)
                continue
            with pytest.raises(InvalidConfig, match=f"{path} is {value!r}: it must be"):
                from_json(saved)


@pytest.mark.parametrize("section", ["streams", "model", "optimizer"])
@pytest.mark.parametrize("value", [None, 3, "x", [], [1]])
def test_sections_of_a_saved_config_are_sections(config, section, value):
    with pytest.raises(InvalidConfig, match="cannot read the saved config"):
        from_json(config.to_dict() | {section: value})
