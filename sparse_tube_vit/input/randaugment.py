"""RandAugment (Cubuk et al., 2019) of clips, the same for all frames.

Statistics are of the whole clip, so that nothing flickers. A one-frame clip changes as
an image in Pillow: exactly, or to one level of 255 in AutoContrast, Brightness,
Contrast, Color and Sharpness. No operation mirrors: classes may differ by left and
right.

Operations and magnitudes are those of the TensorFlow Model Garden, whose defaults are
the two layers and magnitude 10 of the TubeViT paper (section 5), but without Cutout,
which is not in the RandAugment paper. A magnitude m is 0 to 10; 10 is not the strongest
for all operations:

  AutoContrast, Equalize, Invert   no magnitude
  Rotate                           +-3 m degrees
  ShearX, ShearY                   +-0.03 m pixels a pixel
  TranslateX, TranslateY           +-0.045 m of the width or height, 10 m pixels of 224
  Posterize                        0.4 m bits are kept, at least one
  Solarize                         inverts from 25.6 m on: nothing at 10
  SolarizeAdd                      adds 11 m to levels below 128
  Color, Contrast, Brightness,     0.1 + 0.18 m: blend factor of the picture with its
  Sharpness                        grey, mean, black or smoothed form
"""

import math

import cv2
import numpy as np

from sparse_tube_vit.input.augment import as_one_image, look_up

GREY = 128  # fills pixels that a shift uncovers
LUMA = np.array([0.299, 0.587, 0.114])
LEVELS = np.arange(256, dtype=np.float32)
ROUND_DOWN = -0.4999  # Pillow rounds a blend down, OpenCV to the nearest


def rand_augment(
    rng: np.random.Generator, clip: np.ndarray, layers: int, magnitude: float
) -> np.ndarray:
    """Applies operations drawn uniformly, one after the other (paper, section 5).

    Args:
        rng: Source of the random numbers.
        clip: Clip (T, H, W, 3), uint8, in any memory layout.
        layers: Number of operations, drawn with replacement.
        magnitude: Magnitude of each, 0 to 10; the sign of shifts is random.

    Returns:
        Clip (T, H, W, 3), uint8.
    """
    for name in rng.choice(list(OPERATIONS), layers):
        sign = rng.choice((-1, 1)) if name in SIGNED else 1
        clip = OPERATIONS[name](clip, sign * magnitude)
    return clip


def _range(clip):
    """Returns the lowest and highest levels (3,) of red, green and blue."""
    rows = clip.reshape(-1, clip.shape[2] * 3)
    lowest, highest = rows.min(axis=0), rows.max(axis=0)  # (W * 3,)
    lowest, highest = lowest.reshape(-1, 3).min(0), highest.reshape(-1, 3).max(0)
    return lowest.astype(int), highest.astype(int)


def _auto_contrast(clip, level):
    del level
    lowest, highest = _range(clip)
    out = np.empty(clip.shape, np.uint8)
    for before, after in zip(clip, out, strict=True):
        channels = cv2.split(before)
        for c, low, high in zip(channels, lowest, highest, strict=True):
            if high > low:
                scale = 255 / (high - low)
                cv2.addWeighted(c, scale, c, 0, ROUND_DOWN - low * scale, dst=c)
        cv2.merge(channels, dst=after)
    return out


def _equalize(clip, level):
    del level
    channels = range(3)
    counts = [
        cv2.calcHist([as_one_image(clip)], [c], None, [256], [0, 256]) for c in channels
    ]
    counts = np.column_stack(counts).astype(np.int64)  # (256, 3)
    _, highest = _range(clip)
    step = (counts.sum(axis=0) - counts[highest, channels]) // 255
    below = counts.cumsum(axis=0) - counts
    equalized = (below + step // 2) // np.maximum(step, 1)
    return look_up(clip, np.where(step > 0, equalized, LEVELS[:, None]))


def _posterize(clip, level):
    bits = max(1, int(0.4 * level))
    return clip & np.uint8(256 - 2 ** (8 - bits))


# Thresholds and sums take less than half the time of a look-up table.


def _solarize(clip, level):
    frames, threshold = as_one_image(clip), int(25.6 * level)
    if threshold > 255:
        return clip
    bright = cv2.threshold(frames, threshold - 1, 255, cv2.THRESH_BINARY)[1]
    return cv2.bitwise_xor(frames, bright, dst=bright).reshape(clip.shape)


def _solarize_add(clip, level):
    frames, added = as_one_image(clip), int(11 * level)
    dark = cv2.threshold(frames, 127, added, cv2.THRESH_BINARY_INV)[1]
    return cv2.add(frames, dark, dst=dark).reshape(clip.shape)


def _factor(level):
    return 0.1 + 0.18 * level


def _away_from_grey(clip, grey, level):
    frames, factor = as_one_image(clip), _factor(level)
    offset = (1 - factor) * grey + ROUND_DOWN
    return cv2.addWeighted(frames, factor, frames, 0, offset).reshape(clip.shape)


def _brightness(clip, level):
    return _away_from_grey(clip, 0, level)


def _contrast(clip, level):
    return _away_from_grey(clip, round(LUMA @ cv2.mean(as_one_image(clip))[:3]), level)


def _color(clip, level):
    factor = _factor(level)
    mix = factor * np.eye(3) + (1 - factor) * LUMA  # rows: red, green, blue
    mix = np.column_stack([mix, [ROUND_DOWN] * 3])
    return cv2.transform(as_one_image(clip), mix).reshape(clip.shape)


def _sharpness(clip, level):
    # The smoothing kernel is 5 in the middle and 1 around it, over 13: the mean of the
    # nine pixels, blended with the middle one.
    frames, smooth = as_one_image(clip), (1 - _factor(level)) * 9 / 13
    out = cv2.blur(frames, (3, 3))
    cv2.addWeighted(frames, 1 - smooth, out, smooth, ROUND_DOWN, dst=out)
    out = out.reshape(clip.shape)
    # As in Pillow a frame's edge stays; the blur mixed it with the next frame's.
    out[:, [0, -1]] = clip[:, [0, -1]]
    out[:, :, [0, -1]] = clip[:, :, [0, -1]]
    return out


def _affine(clip, matrix):
    """Samples pixel (x, y) at (a x + b y + c, d x + e y + f), matrix (a, ..., f).

    The nearest pixel is that of Pillow: coordinates are of pixel centres, half a pixel
    from the picture's corner, in fixed point with 16 fractional bits.
    """
    _, height, width, _ = clip.shape
    y, x = np.ogrid[:height, :width]

    def nearest(a, b, c):
        a, b, c = (math.floor(v * 2**16 + 0.5) for v in (a, b, c + a / 2 + b / 2))
        return (a * x + b * y + c) >> 16  # (H, W)

    column, row = nearest(*matrix[:3]), nearest(*matrix[3:])
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = np.where(inside, row * width + column, height * width).ravel()
    # NumPy gathers words, pixels of four bytes, fast; the last one is grey.
    pixels = np.full((height * width + 1, 4), GREY, np.uint8)
    frame, words = pixels[:-1].reshape(height, width, 4), pixels.view(np.uint32)[:, 0]
    moved = np.empty_like(words[:-1])
    out = np.empty(clip.shape, np.uint8)
    for before, after in zip(clip, out, strict=True):  # a frame fits the cache
        cv2.cvtColor(before, cv2.COLOR_RGB2RGBA, dst=frame)
        words.take(source, out=moved, mode="clip")  # "raise" would copy
        cv2.cvtColor(
            moved.view(np.uint8).reshape(frame.shape), cv2.COLOR_RGBA2RGB, after
        )
    return out


def _rotate(clip, level):
    angle, (_, height, width, _) = math.radians(3 * level), clip.shape
    cos, sin, x, y = math.cos(angle), math.sin(angle), width / 2, height / 2
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return _affine(clip, matrix)


def _translate(clip, right, down):
    """Samples pixel (x, y) at (x + right, y + down), rounded to whole pixels."""
    right, down = math.floor(right + 0.5), math.floor(down + 0.5)
    out = np.full_like(clip, GREY)
    _, height, width, _ = clip.shape

    def overlap(shift, size):
        return slice(max(0, -shift), max(0, min(size, size - shift)))

    to = overlap(down, height), overlap(right, width)
    source = overlap(-down, height), overlap(-right, width)
    out[:, *to] = clip[:, *source]
    return out


#: Functions of a clip (T, H, W, 3) uint8 and a magnitude, by name.
OPERATIONS = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": lambda clip, level: 255 - clip,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "Rotate": _rotate,
    "ShearX": lambda clip, level: _affine(clip, (1, 0.03 * level, 0, 0, 1, 0)),
    "ShearY": lambda clip, level: _affine(clip, (1, 0, 0, 0.03 * level, 1, 0)),
    "TranslateX": lambda clip, level: _translate(
        clip, 0.045 * level * clip.shape[2], 0
    ),
    "TranslateY": lambda clip, level: _translate(
        clip, 0, 0.045 * level * clip.shape[1]
    ),
}
#: Operations whose magnitude gets a random sign.
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
