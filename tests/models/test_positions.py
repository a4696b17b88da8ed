import math

import jax
import numpy as np
import pytest

from sparse_tube_vit.models.positions import (
    Positions,
    PositionsMismatch,
    sincos,
    token_centres,
)
from sparse_tube_vit.models.tubes import Tube
from sparse_tube_vit.models.variants import TUBE_SETS


@pytest.mark.parametrize("width", [192, 768, 1024])
def test_every_channel_is_that_of_the_paper(width):
    centres = np.random.default_rng(0).uniform(0, 224, (9, 3))
    embedding = sincos(centres, width)
    bands = width // 6
    for (t, y, x), row in zip(centres, embedding, strict=True):
        for j in range(bands):
            omega = 1 / 10_000 ** (j / bands)
            expected = [
                wave(place * omega)
                for place in (t, x, y)
                for wave in (math.sin, math.cos)
            ]
            np.testing.assert_allclose(row[6 * j : 6 * j + 6], expected, atol=1e-6)
        assert not row[6 * bands :].any()


def test_stride_and_offset_and_kernel_all_count():
    """No two tokens of the main set that lie at different places look the same."""
    centres = token_centres(TUBE_SETS["main"], (32, 224, 224))
    places = np.unique(centres, axis=0)
    embedding = sincos(places, 768)
    assert len(np.unique(embedding, axis=0)) == len(places)


def test_near_places_are_more_alike_than_far_ones():
    line = np.array([[0.5, 8.0, x] for x in range(0, 224, 16)])
    embedding = sincos(line, 768)
    likeness = embedding @ embedding[0]
    assert (np.diff(likeness[:6]) < 0).all()


TUBES = (
    Tube((4, 8, 8), (4, 16, 16), (0, 4, 4)),
    Tube((1, 8, 8), (8, 8, 8)),
)
CLIP = (8, 32, 32)


def test_without_the_stride_neighbours_are_one_apart():
    expected = [
        [first[0] + t, first[1] + y, first[2] + x]
        for first, grid in (((2, 8, 8), (2, 2, 2)), ((0.5, 4, 4), (1, 4, 4)))
        for t, y, x in np.ndindex(grid)
    ]
    no_stride = token_centres(TUBES, CLIP, stride=False)
    np.testing.assert_array_equal(no_stride, expected)
    embedding = Positions("fixed_no_stride", TUBES, 24).apply({}, CLIP)
    np.testing.assert_array_equal(embedding, sincos(no_stride, 24))


def test_fixed_and_no_positions():
    fixed = Positions("fixed", TUBES, 24).apply({}, CLIP)
    np.testing.assert_array_equal(fixed, sincos(token_centres(TUBES, CLIP), 24))
    none = Positions("none", TUBES, 24).apply({}, CLIP)
    np.testing.assert_array_equal(none, np.zeros((8 + 16, 24)))


@pytest.mark.parametrize("kind", ["fixed", "fixed_no_stride", "learned"])
def test_a_gain_scales_fixed_positions_and_adds_them_to_learned_ones(kind):
    positions = Positions(kind, TUBES, 24, CLIP, 0.02)
    params = positions.init(jax.random.key(0), CLIP)["params"]
    assert params["gain"] == np.float32(0.02)
    params |= {"gain": np.float32(3)}
    centres = token_centres(TUBES, CLIP, stride=kind != "fixed_no_stride")
    expected = 3 * sincos(centres, 24)
    if kind == "learned":
        tubes = [params[f"tube_{i}"].reshape(-1, 24) for i in range(2)]
        expected += np.concatenate(tubes)
    np.testing.assert_allclose(
        positions.apply({"params": params}, CLIP), expected, atol=1e-6
    )


def test_learned_positions_are_one_a_token_and_an_image_takes_the_first_frame():
    positions = Positions("learned", TUBES, 24, CLIP)
    params = positions.init(jax.random.key(0), (1, 32, 32))["params"]
    assert {name: p.shape for name, p in params.items()} == {
        "tube_0": (2, 2, 2, 24),
        "tube_1": (1, 4, 4, 24),
    }
    of_clip = positions.apply({"params": params}, CLIP)
    expected = [p.reshape(-1, 24) for p in params.values()]
    np.testing.assert_array_equal(of_clip, np.concatenate(expected))
    of_image = positions.apply({"params": params}, (1, 32, 32))
    np.testing.assert_array_equal(of_image, expected[1])
    with pytest.raises(PositionsMismatch, match=r"tube 0 has \(2, 2, 2\) tokens"):
        positions.apply({"params": params}, (12, 32, 32))
