import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sparse_tube_vit import Tube, TubeViT
from sparse_tube_vit.config import EncoderOptions, default_config, evaluation, stream
from sparse_tube_vit.models.tubes import ClipTooSmall
from sparse_tube_vit.models.tubevit import (
    InvalidModel,
    UnknownHead,
    check_tubes,
    init_params,
)
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS
from tests.compiled import apply

CLIP = (8, 16, 16)

#: A second block would take as long to compile again.
ONE_BLOCK = EncoderOptions(depth=1, width=24, mlp_dim=48, heads=2)


@pytest.fixture(scope="module")
def model():
    return TubeViT(
        tubes=(
            Tube((4, 4, 4), (4, 8, 8)),
            Tube((2, 6, 6), (4, 8, 8), (1, 2, 2)),
            Tube((1, 8, 8), (8, 8, 8)),
        ),
        classes={"motions": 5, "shapes": 3},
        options=EncoderOptions(depth=2, width=24, mlp_dim=48, heads=2),
    )


@pytest.fixture(scope="module")
def params(model):
    params = init_params(model, jax.random.key(0), CLIP)
    # Heads start at zero; random ones tell inputs apart.
    for name in ("head_motions", "head_shapes"):
        kernel = params[name]["kernel"]
        params[name]["kernel"] = jax.random.normal(jax.random.key(1), kernel.shape)
    return params


@pytest.fixture(scope="module")
def videos():
    return np.random.default_rng(0).integers(0, 256, (2, *CLIP, 3), np.uint8)


def test_initial_values_are_those_of_the_formulas(model):
    """Glorot and Bengio's uniform bound, LeCun's deviation, 0.02, ones and zeros."""
    options = {"positions": "learned", "registers": 9, "pooling": "map", "clip": CLIP}
    model, params = with_option(model, options=ONE_BLOCK, **options)
    params = flatten_dict(params, sep="/")
    fans = dict.fromkeys(("query", "key", "value", "out"), (24, 24))
    fans |= {"up": (24, 48), "down": (48, 24), "pooling": (1, 24)}
    for name, x in params.items():
        layer, leaf = f"/{name}".split("/")[-2:]
        if (layer in fans and leaf == "kernel") or leaf == "probe":
            bound = np.sqrt(6 / sum(fans[layer]))
            assert 0.8 * bound < np.abs(x).max() <= bound, name
        elif layer == "positions" or name == "registers":
            np.testing.assert_allclose(x.std(), 0.02, rtol=0.2, err_msg=name)
        elif layer.startswith("tube_") and leaf == "kernel":
            deviation = 1 / np.sqrt(np.prod(x.shape[:4]))
            np.testing.assert_allclose(x.std(), deviation, rtol=0.1, err_msg=name)
        else:
            np.testing.assert_array_equal(x, float(leaf == "scale"), name)


# Paper table 11 gives 86, 307 and 632 million, the counts of image ViTs: those have a
# 16x16 patch embedding and a head of 1000 classes besides the encoder.
@pytest.mark.parametrize("variant, millions", [("B", 86), ("L", 307), ("H", 632)])
def test_parameter_counts_of_the_paper(variant, millions):
    v = VARIANTS[variant]
    classes = {"k400": 400, "inet": 1000}
    model = TubeViT(TUBE_SETS["main"], classes, EncoderOptions(**v))
    shapes = jax.eval_shape(
        lambda key: init_params(model, key, (32, 224, 224)), jax.random.key(0)
    )
    counts = {
        name: sum(x.size for x in jax.tree.leaves(part))
        for name, part in shapes.items()
    }
    d = v["width"]
    others = 16 * 16 * 3 * d + d + 1000 * (d + 1)
    assert counts["encoder"] + others == pytest.approx(millions * 1e6, rel=0.01)
    channels = [d // 2, d // 4, d, d]  # what space-to-depth leaves (table 12)
    tubes = sum(
        np.prod(t.kernel) * 3 * c + c
        for t, c in zip(TUBE_SETS["main"], channels, strict=True)
    )
    assert counts["stem"] == tubes
    assert counts["pooling"] == 4 * (d * d + d) + d
    assert counts["head_k400"] == 400 * (d + 1)
    assert counts["head_inet"] == 1000 * (d + 1)


def test_one_parameter_tree_serves_images_and_videos(model, params, videos):
    shapes = apply(model, {"params": params}, videos[:, 0], "shapes")
    motions = apply(model, {"params": params}, videos, "motions")
    assert shapes.shape == (2, 3) and motions.shape == (2, 5)
    assert shapes.dtype == motions.dtype == jnp.float32
    # What `init` makes of an image is what it makes of a clip.
    from_image = jax.eval_shape(
        lambda key: init_params(model, key, (1, 16, 16)), jax.random.key(0)
    )
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, from_image)


def test_an_image_is_a_clip_of_one_frame(model, params, videos):
    images = videos[:, 0]
    a = apply(model, {"params": params}, images, "shapes")
    b = apply(model, {"params": params}, images[:, None], "shapes")
    np.testing.assert_array_equal(a, b)


def test_images_go_through_the_image_tube_alone(model, params, videos):
    def loss(params):
        return jnp.sum(apply(model, {"params": params}, videos[:, 0], "shapes") ** 2)

    gradient = jax.grad(loss)(params)
    reached = {n: bool(np.any(t["kernel"])) for n, t in gradient["stem"].items()}
    assert reached == {"tube_0": False, "tube_1": False, "tube_2": True}
    assert not np.any(gradient["head_motions"]["kernel"])
    assert np.any(gradient["head_shapes"]["kernel"])


def test_uint8_and_normalized_floats_give_the_same(model, params, videos):
    floats = videos.astype(np.float32) / 127.5 - 1
    a = apply(model, {"params": params}, videos, "motions")
    b = apply(model, {"params": params}, floats, "motions")
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_order_of_frames_matters(model, params, videos):
    a = apply(model, {"params": params}, videos, "motions")
    b = apply(model, {"params": params}, videos[:, ::-1], "motions")
    assert np.abs(a - b).max() > 1e-3


def test_features(model, params, videos):
    out = apply(model, {"params": params}, videos, method="features")
    tokens = 2 * 2 * 2 + 2 * 2 * 2 + 4
    assert out["tokens"].shape == (2, tokens, 24)
    logits = out["pooled"] @ params["head_motions"]["kernel"]
    expected = apply(model, {"params": params}, videos, "motions")
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"positions": "lerned"}, "must be one of fixed, fixed_no_stride, learned"),
        ({"kernels": "interp"}, "kernels is 'interp'"),
        ({"pooling": "avg"}, "must be one of attention, mean, class_token"),
        ({"options": {"gelu": "relu"}}, "must be one of tanh, erf"),
        ({"options": {"gate_after": 2}}, "must be 1 to 1 of 2 layers"),
        ({"options": {"heads": 5}}, "width 24 is not a multiple of heads 5"),
        ({"options": {"depth": 0}}, "depth is 0: it must be a whole number"),
        ({"positions": "learned"}, "need clip"),
        ({"positions": "none", "position_gain": 0.1}, "position_gain must be None"),
    ],
)
def test_options_that_make_no_model(model, option, message):
    option = dict(option)
    model = model.with_options(**option.pop("options", {})).clone(**option)
    with pytest.raises(InvalidModel, match=message):
        init_params(model, jax.random.key(0), CLIP)


def test_named_errors(model, params, videos):
    with pytest.raises(UnknownHead, match="no head 'dogs'; it has motions, shapes"):
        apply(model, {"params": params}, videos, "dogs")
    with pytest.raises(ClipTooSmall, match="4x4x4"):
        apply(model, {"params": params}, videos[:, :3], "motions")
    with pytest.raises(ValueError, match=r"\(2, 8, 16, 16, 1\)"):
        apply(model, {"params": params}, videos[..., :1], "motions")


def test_tubes_are_checked_at_the_strides_of_evaluations():
    config = default_config()
    config.clip.update(frames=12, size=16)
    config.model.update(
        width=24,
        tubes=(
            {"kernel": (8, 8, 8), "stride": (16, 8, 8), "space_to_depth": (2, 1, 1)},
        ),
    )
    source = {"kind": "video", "dataset": "d", "head": "h", "batch_size": 1}
    config.streams.video = stream(**source)
    config.evaluations.video = evaluation(**source)
    check_tubes(config)
    config.evaluations.more = evaluation(**source, stride_scale=0.8)
    with pytest.raises(ClipTooSmall, match="needs at least 14 frames"):
        check_tubes(config)


def with_option(model, **option):
    model = model.clone(**option)
    return model, init_params(model, jax.random.key(0), CLIP)


@pytest.mark.parametrize("pooling", ["attention", "class_token"])
def test_videos_and_images_together_are_as_alone(model, videos, pooling):
    model, params = with_option(model, options=ONE_BLOCK, pooling=pooling)
    params = {"params": jax.tree.map(lambda x: x + 0.1, params)}
    given = {"a": videos, "b": videos[:1, 0], "c": videos[:, :1]}
    heads = {"a": "motions", "b": "shapes", "c": "motions"}
    logits = apply(model, params, given, heads)
    for name, x in given.items():
        alone = apply(model, params, x, heads[name])
        np.testing.assert_allclose(logits[name], alone, rtol=1e-4, atol=1e-5)


def test_mean_pooling(model, videos):
    model, params = with_option(model, pooling="mean")
    assert "pooling" not in params
    out = apply(model, {"params": params}, videos, method="features")
    np.testing.assert_allclose(out["pooled"], out["tokens"].mean(1), atol=1e-6)


def test_a_class_token_joins_the_sequence(model, videos):
    """As the encoder makes of the tokens with one put in front, without a position."""
    model, params = with_option(model, pooling="class_token")
    params["class_token"] = jax.random.normal(jax.random.key(2), (1, 1, 24))
    out = apply(model, {"params": params}, videos, method="features")

    def by_hand(model, x):
        z = model.stem(x) + model.place(x.shape[1:4])
        token = jnp.tile(model.class_token, (len(z), 1, 1))
        return model.encoder(jnp.concatenate([token, z], axis=1))

    z = apply(model, {"params": params}, videos, method=by_hand)
    np.testing.assert_allclose(out["pooled"], z[:, 0], atol=1e-6)
    np.testing.assert_allclose(out["tokens"], z[:, 1:], atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "class_token"])
def test_registers_join_the_sequence_and_are_not_pooled(model, videos, pooling):
    model, params = with_option(model, options=ONE_BLOCK, pooling=pooling, registers=2)
    out = apply(model, {"params": params}, videos, method="features")

    def by_hand(model, x):
        z = model.stem(x) + model.place(x.shape[1:4])
        extra = [model.class_token] if pooling == "class_token" else []
        extra = jnp.concatenate([*extra, model.register_tokens], 1)
        extra = jnp.tile(extra, (len(z), 1, 1))
        return model.encoder(jnp.concatenate([extra, z], axis=1))

    z = apply(model, {"params": params}, videos, method=by_hand)
    extra = 2 + (pooling == "class_token")
    pooled = z[:, 0] if pooling == "class_token" else z[:, extra:].mean(1)
    np.testing.assert_allclose(out["pooled"], pooled, atol=1e-6)
    np.testing.assert_allclose(out["tokens"], z[:, extra:], atol=1e-6)
    # They are not idle: without them the tokens are others.
    alone = model.clone(registers=0)
    params = {k: v for k, v in params.items() if k != "registers"}
    alone = apply(alone, {"params": params}, videos, method="features")
    assert np.abs(alone["tokens"] - out["tokens"]).max() > 1e-4


# Positions are added to tokens and pooling comes after blocks: no pair of them meets.
@pytest.mark.parametrize(
    "option",
    [
        *({"pooling": name} for name in ("attention", "mean", "class_token", "map")),
        *({"positions": name} for name in ("fixed_no_stride", "learned", "none")),
    ],
    ids=lambda option: "-".join(option.values()),
)
def test_one_tree_serves_images_and_videos_whatever_the_options(model, videos, option):
    model, params = with_option(model, options=ONE_BLOCK, clip=CLIP, **option)
    key = jax.random.key(0)
    from_image = jax.eval_shape(lambda: init_params(model, key, (1, 16, 16)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, from_image)
    for x in (videos, videos[:, 0]):
        pooled = apply(model, {"params": params}, x, method="features")["pooled"]
        assert pooled.shape == (2, 24) and np.isfinite(pooled).all()
