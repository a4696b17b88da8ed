from pathlib import Path

import jax
import numpy as np
import pytest

from sparse_tube_vit.checkpoints.resizing import (
    inflate_kernel,
    positions_at,
    resize_patches,
)
from sparse_tube_vit.models.tubes import Tube

GOLDEN = Path(__file__).parents[1] / "golden"


def test_resized_patches_keep_their_products_where_they_grow():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(14, 14, 3, 5))
    patches = rng.normal(size=(7, 14, 14, 3))
    larger = np.asarray(jax.image.resize(patches, (7, 16, 20, 3), "bilinear"))
    resized = resize_patches(kernel, (16, 20))
    expected = np.einsum("nhwc,hwcd->nd", patches, kernel)
    products = np.einsum("nhwc,hwcd->nd", larger, resized)
    np.testing.assert_allclose(products, expected, atol=1e-4)
    # Resizing the kernel itself does not.
    naive = jax.image.resize(kernel, (16, 20, 3, 5), "bilinear")
    naive = np.einsum("nhwc,hwcd->nd", larger, naive)
    assert np.abs(naive - expected).max() > 1


@pytest.mark.parametrize("h, w", [(8, 8), (12, 4), (16, 20)])
def test_patches_are_resized_as_timm_does(h, w):
    references = np.load(GOLDEN / "references.npz")
    old = references["resize/old"].transpose(2, 3, 1, 0)
    expected = references[f"resize/{h}x{w}"].transpose(2, 3, 1, 0)
    resized = resize_patches(old, (h, w))
    np.testing.assert_allclose(resized, expected, atol=1e-4)


def test_positions_at_a_tubes_centres():
    # A plane's value at any place between the centres of patches is known.
    clip = (8, 48, 48)
    tube = Tube((4, 8, 8), (4, 16, 8), (0, 12, 0))
    image = Tube((1, 16, 16), (1, 16, 16))
    y, x = np.mgrid[8:48:16, 8:48:16]
    plane = np.stack([1 + 2 * y - 3 * x, 0 * x + 4], -1).astype(float)
    at = positions_at(plane, tube, clip)
    y, x = np.array([16, 32])[:, None], np.clip([4, 12, 20, 28, 36, 44], 8, 40)[None]
    assert at.shape == (2, 2, 6, 2)
    np.testing.assert_allclose(at[0, ..., 0], 1 + 2 * y - 3 * x)
    np.testing.assert_array_equal(at[0], at[1])
    at = positions_at(plane, image, clip)
    np.testing.assert_allclose(at[5], plane, atol=1e-12)


@pytest.mark.parametrize("side", [3, 7])
@pytest.mark.parametrize("how", ["cubic", "smoothed_cubic"])
def test_positions_are_resized_as_torch_does(how, side):
    references = np.load(GOLDEN / "image_vits" / "references.npz")
    grid = references["positions/old"][0].transpose(1, 2, 0)
    expected = references[f"positions/{how}/{side}"][0].transpose(1, 2, 0)
    tube = Tube((1, 4, 4), (1, 4, 4))
    at = positions_at(grid, tube, (1, 4 * side, 4 * side), how)
    np.testing.assert_allclose(at[0], expected, atol=1e-5)


def test_the_central_frame_of_an_even_number_is_the_later():
    kernel = np.ones((2, 2, 3, 5))
    tube = inflate_kernel(kernel, 4, "central_frame")
    np.testing.assert_array_equal(tube.sum((1, 2, 3, 4)), [0, 0, kernel.sum(), 0])
