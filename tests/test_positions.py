import math

import numpy as np
import pytest

from sparse_tube_vit.positions import sincos
from sparse_tube_vit.tubes import token_centres
from sparse_tube_vit.variants import TUBE_SETS


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
