import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_tube_vit.models import tubes as tubes_module
from sparse_tube_vit.models.positions import token_centres
from sparse_tube_vit.models.tubes import (
    ClipTooSmall,
    InvalidTube,
    NoImageTube,
    SparseTubes,
    Tube,
    count_tokens,
    cut_windows,
    kernel_channels,
    normalize,
    pixels_read,
    resize_kernel,
    select_windows,
)
from sparse_tube_vit.models.variants import TUBE_SETS

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
# Neighbouring windows that touch, leave gaps, and overlap; groups that end with the
# clip, before it, and past it, and one that may not.
GROUPS = [
    Tube((3, 8, 8), (6, 12, 12), (0, 1, 2), space_to_depth=(2, 1, 1)),
    Tube((4, 3, 3), (5, 12, 10), (1, 1, 0), space_to_depth=(1, 2, 2)),
    Tube((2, 5, 9), (8, 14, 12), (1, 0, 0), space_to_depth=(4, 2, 3)),
    Tube((1, 8, 8), (3, 8, 8), space_to_depth=(1, 2, 2)),
    Tube((4, 3, 3), (6, 12, 10), (1, 1, 0), space_to_depth=(3, 2, 2), whole=True),
]


def windows_one_by_one(x, tube):
    """Every window by its own slice, in plain numpy; zeros past the end."""
    (kt, kh, kw), (st, sh, sw), (ot, oh, ow) = tube.kernel, tube.stride, tube.offset
    ft, fh, fw = tube.space_to_depth
    b, t, h, w, _ = x.shape
    if tube.whole:  # the last token begins where all of its windows fit
        t, h, w = (
            n - (f - 1) * (s // f)
            for n, f, s in zip((t, h, w), (ft, fh, fw), (st, sh, sw), strict=True)
        )
    longer = np.pad(x, ((0, 0), (0, 99), (0, 99), (0, 99), (0, 0)))
    tokens = []
    for i in range(ot, t - kt + 1, st):
        for j in range(oh, h - kh + 1, sh):
            for k in range(ow, w - kw + 1, sw):
                windows = []
                for m in range(ft):
                    for n in range(fh):
                        for o in range(fw):
                            p = i + m * (st // ft)
                            q = j + n * (sh // fh)
                            r = k + o * (sw // fw)
                            window = longer[:, p : p + kt, q : q + kh, r : r + kw]
                            windows.append(window.reshape(b, -1))
                tokens.append(np.stack(windows, axis=1))
    return np.stack(tokens, axis=1)


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (2, *CLIP, 3), np.uint8)


@pytest.mark.parametrize("tube", TUBES + GROUPS, ids=str)
def test_windows_are_those_of_a_loop(tube, clips):
    expected = windows_one_by_one(clips, tube)
    np.testing.assert_array_equal(cut_windows(jnp.asarray(clips), tube), expected)
    assert expected.shape[1] == np.prod(tube.grid(CLIP))


@pytest.mark.parametrize("tube", TUBES + GROUPS, ids=str)
def test_windows_are_selected_exactly(tube, clips):
    found = np.asarray(jax.jit(select_windows, static_argnums=1)(clips, tube))
    assert found.dtype == clips.dtype and found.shape[4:] == (*tube.kernel, 3)
    sizes = zip(tube.grid(CLIP), tube.space_to_depth, strict=True)
    found = found.reshape(len(clips), *(size for pair in sizes for size in pair), -1)
    found = found.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    expected = windows_one_by_one(clips, tube)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_tokens_on_tpus_are_those_elsewhere(clips, monkeypatch):
    """Of windows that overlap in time, that leave gaps, and that end past the clip."""
    model = SparseTubes((TUBES[2], *GROUPS[:2], GROUPS[3]), width=48)
    params = jax.jit(model.init)(jax.random.key(0), clips)
    expected = jax.jit(lambda x: model.apply(params, x))(clips)
    monkeypatch.setattr(tubes_module, "platform", lambda: "tpu")
    found = jax.jit(lambda x: model.apply(params, x))(clips)
    np.testing.assert_allclose(found, expected, atol=1e-5)


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
def test_tokens_are_the_sum_of_the_tubes_grids(tubes, clip, tokens):
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


@pytest.mark.parametrize("tube", GROUPS[:-1], ids=str)
def test_space_to_depth_keeps_the_tokens_and_concatenates_channels(tube, clips):
    plain = dataclasses.replace(tube, space_to_depth=(1, 1, 1))
    assert tube.grid(CLIP) == plain.grid(CLIP)
    width = 24  # shared by 2, 4 and 24 windows
    model = SparseTubes((tube, Tube((1, 5, 5), (3, 5, 5))), width)
    params = model.init(jax.random.key(0), clips)["params"]
    kernel, f = np.asarray(params["tube_0"]["kernel"]), tube.windows_per_token
    assert kernel.shape == (*tube.kernel, 3, width // f)
    windows = windows_one_by_one(clips / 127.5 - 1, tube)  # past the clip: mid-grey
    expected = windows @ kernel.reshape(-1, width // f)
    n = expected.shape[1]
    tokens = model.apply({"params": params}, clips)[:, :n]
    np.testing.assert_allclose(tokens, expected.reshape(2, n, width), atol=2e-5)
    # A token's place is the middle between the ends of its windows.
    windows = tube.windows(CLIP)
    middle = (windows.min(1) + windows.max(1) + tube.kernel) / 2
    np.testing.assert_array_equal(tube.centres(CLIP), middle)


def test_channels_of_a_wider_model_are_the_first_of_the_concatenated(clips):
    """768 to 1280 in small: two windows of 6 channels give the 9 of a token."""
    tube = Tube((4, 6, 6), (4, 12, 12), space_to_depth=(2, 1, 1), channels=6)
    model = SparseTubes((tube,), width=9)
    params = model.init(jax.random.key(0), clips)["params"]
    kernel = np.asarray(params["tube_0"]["kernel"])
    windows = windows_one_by_one(clips / 127.5 - 1, tube) @ kernel.reshape(-1, 6)
    expected = windows.reshape(*windows.shape[:2], 12)[..., :9]
    tokens = model.apply({"params": params}, clips)
    np.testing.assert_allclose(tokens, expected, atol=2e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: tube_of(space_to_depth=(4, 1, 1)), "does not divide the stride"),
        (lambda: tube_of(space_to_depth=(0, 1, 1)), "space_to_depth"),
        (lambda: tube_of(whole=1), "whole 1: expected True or False"),
        (
            lambda: tube_of(space_to_depth=(2, 2, 1)).kernel_channels(6),
            "width of 6 cannot be shared by 4",
        ),
        (
            lambda: tube_of(space_to_depth=(2, 1, 1), channels=4).kernel_channels(9),
            "2 windows of 4 channels make less than the width of 9",
        ),
        (
            lambda: kernel_channels(TUBE_SETS["main"], 768, "interpolated"),
            "Give all the same number of windows",
        ),
    ],
)
def test_what_does_not_divide_is_a_named_error(make, message):
    with pytest.raises(InvalidTube, match=message):
        make()


def tube_of(**options):
    return Tube((8, 8, 8), (6, 32, 32), **options)


# torch.nn.functional.interpolate(x, size, mode="trilinear", align_corners=False) of
# PyTorch 2.13 for x[t, h, w] = 16 t^2 + 4 h w + w, of size 2x3x2.
GOLDEN_RESIZED = {
    (1, 3, 2): [8, 9, 8, 13, 8, 17],
    (3, 2, 4): [0, 0.5, 1.5, 2, 0, 2, 6, 8, 8, 8.5, 9.5, 10]
    + [8, 10, 14, 16, 16, 16.5, 17.5, 18, 16, 18, 22, 24],
    (4, 5, 1): [0.5, 1.3, 2.5, 3.7, 4.5, 4.5, 5.3, 6.5, 7.7, 8.5]
    + [12.5, 13.3, 14.5, 15.7, 16.5, 16.5, 17.3, 18.5, 19.7, 20.5],
}


@pytest.mark.parametrize("size", GOLDEN_RESIZED)
def test_kernels_are_resized_as_pytorch_does(size):
    t, h, w = np.indices((2, 3, 2), np.float32)
    kernel = (16 * t**2 + 4 * h * w + w)[..., None, None]
    resized = resize_kernel(kernel, size)[..., 0, 0]
    expected = np.reshape(GOLDEN_RESIZED[size], size)
    np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_interpolated_kernels_are_one_kernel_and_train_it(clips):
    tubes = (
        Tube((1, 16, 12), (3, 16, 12)),
        Tube((8, 4, 4), (3, 9, 9)),
        Tube((8, 8, 8), (8, 8, 8)),
    )
    model = SparseTubes(tubes, 5, kernels="interpolated")
    params = model.init(jax.random.key(0), clips)["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "shared": {"kernel": (8, 8, 8, 3, 5), "bias": (5,)}
    }
    shared = params["shared"]["kernel"]
    separate = {
        f"tube_{i}": {
            "kernel": resize_kernel(shared, tube.kernel),
            "bias": params["shared"]["bias"],
        }
        for i, tube in enumerate(tubes)
    }
    np.testing.assert_array_equal(separate["tube_2"]["kernel"], shared)
    np.testing.assert_allclose(
        model.apply({"params": params}, clips),
        SparseTubes(tubes, 5).apply({"params": separate}, clips),
        atol=1e-5,
    )
    # The image tube alone trains the whole kernel's middle: frames 3 and 4 of 8.
    gradient = jax.grad(
        lambda p: jnp.sum(model.apply({"params": p}, clips[:, :1]) ** 2)
    )(params)["shared"]["kernel"]
    reached = np.abs(gradient).sum((1, 2, 3, 4)) > 0
    np.testing.assert_array_equal(np.flatnonzero(reached), [3, 4])


def count_one_by_one(tube, clip):
    """The tokens whose windows, or the first of them, lie within the clip."""
    count, t = 1, tube
    axes = (clip, t.kernel, t.stride, t.offset, t.space_to_depth)
    for size, kernel, stride, offset, factor in zip(*axes, strict=True):
        last = (factor - 1) * stride // factor if t.whole else 0
        starts = range(offset, size, stride)
        count *= sum(start + last + kernel <= size for start in starts)
    return count


@pytest.mark.parametrize(
    "scale, tokens", [(1.5, 188), (1, 539), (0.9, 917), (0.8, 1124), (0.7, 1565)]
)
def test_restride_gives_more_tokens_from_the_same_kernels(scale, tokens):
    """Paper table 7d has 559, 768, 1024 and 1536 of strides that it does not tell."""
    tubes, clip = [t.restride(scale) for t in TUBE_SETS["main"]], (32, 224, 224)
    assert sum(count_one_by_one(tube, clip) for tube in tubes) == tokens
    assert count_tokens(tubes, clip) == tokens


def test_restrided_tubes_stride_in_multiples_of_their_factors():
    tube = Tube((4, 4, 4), (6, 32, 32), (0, 0, 0), (2, 4, 1)).restride(0.7)
    assert tube.stride == (4, 24, 22)  # 4.2, 22.4, 22.4 to multiples of 2, 4, 1


def test_restride_makes_no_token_that_reaches_past_the_clip():
    """The shorter stride leaves room for a first window, but not for its neighbour."""
    tube = Tube((4, 4, 4), (8, 16, 16), space_to_depth=(2, 1, 1))
    clip = (16, 64, 64)
    assert tube.restride(1) == tube and not any(tube.past(clip))
    shorter = tube.restride(0.75)
    assert shorter.grid(clip) == (2, 6, 6) and not any(shorter.past(clip))
    partial = dataclasses.replace(shorter, whole=False)
    assert partial.grid(clip) == (3, 6, 6) and partial.past(clip) == (3, 0, 0)


def test_a_tube_is_made_again_from_its_dict():
    for tube in (*TUBES, *GROUPS):
        assert Tube(**tube.to_dict()) == tube
    tube = Tube((1, 8, 8), (3, 8, 8))
    assert tube.to_dict() == {"kernel": (1, 8, 8), "stride": (3, 8, 8)}


@pytest.mark.parametrize("axis", range(3))
def test_a_clip_too_small_is_a_named_error(axis):
    tube = Tube((4, 8, 8), (4, 8, 8), (1, 2, 2))
    least = [5, 10, 10]
    assert tube.grid(least) == (1, 1, 1)
    least[axis] -= 1
    with pytest.raises(ClipTooSmall, match="needs at least 5 frames of 10x10 pixels"):
        tube.grid(least)
    tube = dataclasses.replace(tube, space_to_depth=(2, 1, 1), whole=True)
    with pytest.raises(ClipTooSmall, match="needs at least 7 frames"):
        tube.grid((6, 10, 10))


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


def test_pixels_read_are_those_that_change_a_token():
    """A pixel is read if the tokens' gradient with respect to it is not zero."""
    tubes = (
        Tube((2, 4, 4), (4, 8, 8), (1, 1, 0), space_to_depth=(2, 2, 1)),
        Tube((1, 3, 5), (3, 6, 6), space_to_depth=(1, 2, 2)),  # some past the clip
        Tube((3, 3, 3), (2, 2, 7), (0, 4, 1)),
    )
    clip = (8, 18, 19)
    x = normalize(np.zeros((1, *clip, 3), np.uint8))
    stem = SparseTubes(tubes, width=8)

    @jax.jit
    def gradient(key, x):
        params = stem.init(key, x)
        tokens = stem.apply(params, x)
        weights = jax.random.normal(key, tokens.shape)
        return jax.grad(lambda x: (stem.apply(params, x) * weights).sum())(x)

    read = np.abs(gradient(jax.random.key(0), x)[0]).max(-1) > 0
    np.testing.assert_array_equal(pixels_read(tubes, clip), read)
    assert 0 < read.mean() < 1
