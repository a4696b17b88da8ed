import numpy as np

from sparse_tube_vit.input import augment


class Fixed:
    """Random numbers that are known: uniform gives what it was made with."""

    def __init__(self, *values):
        self.values = list(values)
        self.ranges = []

    def uniform(self, low, high, size):
        self.ranges.append((low, high, size))
        drawn = np.array([self.values.pop(0) for _ in range(size)])
        assert ((low <= drawn) & (drawn <= high)).all()
        return drawn


def test_flip_mirrors_every_other_clip():
    clip = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    rng = np.random.default_rng(0)
    flipped = 0
    for _ in range(400):
        out = augment.flip(rng, clip)
        if out[0, 0, 0, 0] != clip[0, 0, 0, 0]:
            np.testing.assert_array_equal(out[:, :, ::-1], clip)
            flipped += 1
    assert 160 < flipped < 240


def test_color_jitter_is_arithmetic_on_every_pixel():
    clip = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    brightness, contrast, balance = 1.2, 0.8, np.array([1.1, 0.9, 1.0])
    rng = Fixed(brightness, contrast, *balance)
    out = augment.jitter_color(rng, clip, 0.4)
    expected = np.zeros(clip.shape)
    for c in range(3):
        scaled = clip[..., c] * brightness * balance[c]
        middle = scaled[0].mean()
        expected[..., c] = (scaled - middle) * contrast + middle
    np.testing.assert_allclose(out, expected.clip(0, 255), atol=0.51)
    assert out.dtype == np.uint8
    assert rng.ranges == [(0.6, 1.4, 2), (0.8, 1.2, 3)]


def test_no_strength_changes_nothing():
    clip = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    out = augment.jitter_color(np.random.default_rng(1), clip, 0.0)
    np.testing.assert_array_equal(out, clip)
