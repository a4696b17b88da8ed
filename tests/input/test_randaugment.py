import collections
import functools

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from sparse_tube_vit.input import randaugment
from sparse_tube_vit.input.randaugment import OPERATIONS, SIGNED, rand_augment

GREY = (128, 128, 128)


def enhanced(kind, image, level):
    return getattr(ImageEnhance, kind)(image).enhance(0.1 + 1.8 * level / 10)


def shifted(image, right, down):
    """Pasted elsewhere on grey."""
    canvas = Image.new("RGB", image.size, GREY)
    canvas.paste(image, (round(right), round(down)))
    return canvas


def sheared(image, slope):
    """Each row pasted as far to the left as its centre lies down, times the slope."""
    canvas = Image.new("RGB", image.size, GREY)
    for y in range(image.height):
        row = image.crop((0, y, image.width, y + 1))
        canvas.paste(row, (-round(slope * (y + 0.5)), y))
    return canvas


def transposed(image):
    return image.transpose(Image.Transpose.TRANSPOSE)


def solarize_add(image, level):
    added = [min(i + int(110 * level / 10), 255) if i < 128 else i for i in range(256)]
    return image.point(added * 3)


PILLOW = {
    "AutoContrast": lambda image, level: ImageOps.autocontrast(image),
    "Equalize": lambda image, level: ImageOps.equalize(image),
    "Invert": lambda image, level: ImageOps.invert(image),
    "Posterize": lambda i, level: ImageOps.posterize(i, max(1, int(level / 10 * 4))),
    "Solarize": lambda image, level: ImageOps.solarize(image, int(level / 10 * 256)),
    "SolarizeAdd": solarize_add,
    "Rotate": lambda image, level: image.rotate(level / 10 * 30, fillcolor=GREY),
    "ShearX": lambda image, level: sheared(image, level / 10 * 0.3),
    "ShearY": lambda i, level: transposed(sheared(transposed(i), level / 10 * 0.3)),
    "TranslateX": lambda i, level: shifted(i, -level / 10 * 0.45 * i.width, 0),
    "TranslateY": lambda i, level: shifted(i, 0, -level / 10 * 0.45 * i.height),
} | {
    kind: functools.partial(enhanced, kind)
    for kind in ("Color", "Contrast", "Brightness", "Sharpness")
}
WITHIN = dict.fromkeys(("Color", "Contrast", "Sharpness"), 1)  # the others: 0


def images():
    """Noise; soft, dull colours with a ramp and an edge; one colour."""
    rng = np.random.default_rng(0)
    yield rng.integers(0, 256, (37, 53, 3), np.uint8)
    soft = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))
    soft = np.asarray(soft.resize((91, 64), Image.Resampling.BICUBIC)) * [0.7, 0.5, 0.3]
    soft[:20, :30] = np.arange(30)[None, :, None] + 20
    yield (soft + 30).astype(np.uint8)
    yield np.full((9, 7, 3), (200, 10, 90), np.uint8)


def fading():
    """Frames of noise, each darker than the one before it."""
    frames = np.random.default_rng(1).integers(60, 256, (5, 31, 40, 3))
    return (frames * np.linspace(1, 0.3, 5)[:, None, None, None]).astype(np.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_frame_changes_as_in_pillow(name):
    changed = False
    for image in images():
        for level in (0.0, 1.0, 3.7, 5.0, 8.2, 10.0):
            for signed in (level, -level) if name in SIGNED else (level,):
                out = OPERATIONS[name](image[None], signed)
                expected = np.asarray(PILLOW[name](Image.fromarray(image), signed))
                assert out.shape == (1, *image.shape) and out.dtype == np.uint8
                off = np.abs(out[0].astype(int) - expected).max()
                assert off <= WITHIN.get(name, 0), f"{image.shape} at {signed}: {off}"
                changed |= (out[0] != image).any()
    assert changed


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_the_middle_of_the_scale_changes_no_picture(name):
    for image in images():
        out = OPERATIONS[name](image[None], 5.0)
        np.testing.assert_array_equal(out[0], image)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_clip_changes_as_a_whole(name):
    """As do its frames side by side in one image, where neighbours do not count."""
    clip = fading()
    out = OPERATIONS[name](clip, 7.0)
    if name in ("Sharpness", *SIGNED):
        expected = [OPERATIONS[name](frame[None], 7.0)[0] for frame in clip]
    else:
        side_by_side = Image.fromarray(np.concatenate(clip, axis=1))
        expected = np.split(np.asarray(PILLOW[name](side_by_side, 7.0)), 5, axis=1)
    np.testing.assert_allclose(
        out.astype(int), np.stack(expected), atol=WITHIN.get(name, 0)
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_equal_frames_stay_equal_in_any_layout(name):
    frame = fading()[0, :, ::-1]
    still = np.broadcast_to(frame, (4, *frame.shape))
    out = OPERATIONS[name](still, 7.0)
    assert out.shape == still.shape and out.dtype == np.uint8
    assert (out == out[:1]).all()
    np.testing.assert_array_equal(out, OPERATIONS[name](still.copy(), 7.0))


def test_the_random_numbers_decide():
    clip = fading()
    flipped = clip[:, :, ::-1]

    def draw(seed, clip):
        return rand_augment(np.random.default_rng(seed), clip, 2, 10.0)

    outs = [draw(seed, flipped) for seed in range(20)]
    for seed, out in enumerate(outs):
        np.testing.assert_array_equal(out, draw(seed, flipped.copy()))
        assert out.shape == clip.shape and out.dtype == np.uint8
    assert len({out.tobytes() for out in outs}) > 15
    np.testing.assert_array_equal(clip, fading())  # the input itself is left alone


def test_operations_and_signs_are_drawn_evenly(monkeypatch):
    drawn = collections.Counter()

    def count(name, clip, level):
        drawn[name, level] += 1
        return clip

    for name in OPERATIONS:
        recorder = functools.partial(count, name)
        monkeypatch.setitem(randaugment.OPERATIONS, name, recorder)
    rand_augment(np.random.default_rng(0), fading(), 6000, 4.0)
    expected = {(name, 4.0): 400 for name in OPERATIONS if name not in SIGNED}
    expected |= {(name, sign * 4.0): 200 for name in SIGNED for sign in (1, -1)}
    assert drawn.keys() == expected.keys()
    for key, count in expected.items():
        assert abs(drawn[key] - count) < 5 * count**0.5, key
