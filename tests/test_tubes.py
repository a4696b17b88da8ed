import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_tube_vit.tubes import (
    ClipTooSmall,
    NoImageTube,
    SparseTubes,
    Tube,
    count_tokens,
    cut_windows,
    normalize,
    token_centres,
)
from sparse_tube_vit.variants import TUBE_SETS

# Sizes that do not divide, offsets, gaps past the end, and windows that overlap in
# time, in space, or everywhere.
CLIP = (11, 25, 30)
TUBES = [
    Tube((1, 8, 8), (4, 8, 8)),
    Tube((2, 5, 4), (5, 11, 13), (1, 2, 3)),
    Tube((6, 4, 4), (2, 9, 9), (1, 4, 4)),
    Tube((3, 6, 7), (4, 4, 3), (0, 1, 0)),
    Tube((4, 3, 3), (1, 1, 2)),
    Tube((11, 25, 30), (7, 7, 7)),
]


def windows_one_by_one(x, tube):
    """Every window by its own slice, in plain numpy."""
    (kt, kh, kw), (st, sh, sw), (ot, oh, ow) = tube.kernel, tube.stride, tube.offset
    _, t, h, w, _ = x.shape
    windows = []
    for i in range(ot, t - kt + 1, st):
        for j in range(oh, h - kh + 1, sh):
            for k in range(ow, w - kw + 1, sw):
                window = x[:, i : i + kt, j : j + kh, k : k + kw]
                windows.append(window.reshape(len(x), -1))
    return np.stack(windows, axis=1)


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (2, *CLIP, 3), np.uint8)


@pytest.mark.parametrize("tube", TUBES, ids=str)
def test_windows_are_those_of_a_loop(tube, clips):
    expected = windows_one_by_one(clips, tube)
    np.testing.assert_array_equal(cut_windows(jnp.asarray(clips), tube), expected)
    assert expected.shape[1] == np.prod(tube.grid(CLIP))


@pytest.mark.parametrize("tube", TUBES, ids=str)
def test_tokens_and_gradients_are_those_of_a_convolution(tube, clips):
    model = SparseTubes((tube, Tube((1, 5, 5), (3, 5, 5))), width=7)
    params = model.init(jax.random.key(0), clips)["params"]
    rng = np.random.default_rng(1)
    params["tube_0"]["bias"] = jnp.asarray(rng.normal(size=7), jnp.float32)
    n = int(np.prod(tube.grid(CLIP)))
    weights = jnp.asarray(rng.normal(size=(n, 7)), jnp.float32)

    def by_windows(tube_params):
        tokens = model.apply({"params": params | {"tube_0": tube_params}}, clips)
        return tokens[:, :n]

    def by_convolution(tube_params):
        o = tube.offset
        y = jax.lax.conv_general_dilated(
            normalize(jnp.asarray(clips))[:, o[0] :, o[1] :, o[2] :],
            tube_params["kernel"],
            window_strides=tube.stride,
            padding="VALID",
            dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
        )
        return y.reshape(2, n, 7) + tube_params["bias"]

    own = params["tube_0"]
    np.testing.assert_allclose(by_windows(own), by_convolution(own), atol=2e-5)
    ours, theirs = (
        jax.grad(lambda p, f=f: jnp.sum(f(p) * weights))(own)
        for f in (by_windows, by_convolution)
    )
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "tubes, clip, tokens",
    [
        ("main", (32, 224, 224), 98 + 147 + 98 + 196),
        ("main", (64, 224, 224), 196 + 392 + 196 + 392),
        ("main", (1, 224, 224), 196),
        ("core", (32, 224, 224), 2 * 14 * 14 + 2 * 14 * 14),
    ],
)
def test_token_counts_of_the_paper(tubes, clip, tokens):
    assert count_tokens(TUBE_SETS[tubes], clip) == tokens
    assert token_centres(TUBE_SETS[tubes], clip).shape == (tokens, 3)


def test_centres_of_windows():
    tube = Tube((4, 12, 12), (16, 32, 32), (0, 16, 16))
    centres = tube.centres((32, 64, 96))
    assert tube.grid((32, 64, 96)) == (2, 2, 3)
    np.testing.assert_array_equal(centres[0], [2, 22, 22])
    np.testing.assert_array_equal(centres[1], [2, 22, 54])  # across first
    np.testing.assert_array_equal(centres[3], [2, 54, 22])  # then down
    np.testing.assert_array_equal(centres[-1], [18, 54, 86])  # then time


@pytest.mark.parametrize("axis", range(3))
def test_a_clip_too_small_is_a_named_error(axis):
    tube = Tube((4, 8, 8), (4, 8, 8), (1, 2, 2))
    least = [5, 10, 10]
    assert tube.grid(least) == (1, 1, 1)
    least[axis] -= 1
    with pytest.raises(ClipTooSmall, match="needs at least 5 frames of 10x10 pixels"):
        tube.grid(least)


def test_images_need_a_tube_of_one_frame():
    with pytest.raises(NoImageTube, match="8x8x8 every"):
        count_tokens([Tube((8, 8, 8), (8, 8, 8))], (1, 32, 32))
    # One frame, but not the first: it cannot read an image either.
    with pytest.raises(NoImageTube):
        count_tokens([Tube((1, 8, 8), (8, 8, 8), (1, 0, 0))], (1, 32, 32))


@pytest.mark.parametrize(
    "sizes", [{"kernel": (1, 2)}, {"stride": (0, 1, 1)}, {"offset": (0, -1, 0)}]
)
def test_a_tube_of_impossible_size(sizes):
    given = {"kernel": (1, 2, 2), "stride": (1, 2, 2)} | sizes
    with pytest.raises(ValueError, match=next(iter(sizes))):
        Tube(**given)


def test_uint8_and_floats_in_minus_one_to_one_are_the_same():
    x = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(normalize(x), np.linspace(-1, 1, 256), atol=1e-6)
    np.testing.assert_array_equal(normalize(normalize(x)), normalize(x))
    with pytest.raises(TypeError, match="int32"):
        normalize(jnp.arange(3))
