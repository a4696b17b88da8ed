"""RandAugment (Cubuk et al., 2019) for clips: all frames change in the same way.

Statistics are the whole clip's, so that nothing flickers, and a one-frame clip changes
as an image does in Pillow: exactly, or by up to one level of 255 in Contrast, Color and
Sharpness. No operation mirrors: classes may tell left from right.

Operations and magnitudes are those of the TensorFlow Model Garden, whose defaults are
the two layers and magnitude 10 of the TubeViT paper (section 5), but without Cutout,
which the RandAugment paper does not have either. A magnitude m goes from 0 to 10, which
is not for all operations the strongest:

  AutoContrast, Equalize, Invert   no magnitude
  Rotate                           +-3 m degrees
  ShearX, ShearY                   +-0.03 m pixels a pixel
  TranslateX, TranslateY           +-0.045 m of the width or height, 10 m pixels of 224
  Posterize                        0.4 m bits are kept, at least one
  Solarize                         inverts from 25.6 m on: nothing at 10
  SolarizeAdd                      adds 11 m to levels below 128
  Color, Contrast, Brightness,     0.1 + 0.18 m: the picture is extrapolated by this
  Sharpness                        factor from its grey, mean, black or smoothed form
"""

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(0)  # clips run side by side in worker processes

GREY = (128, 128, 128)  # fills what a shift uncovers
LUMA = np.array([0.299, 0.587, 0.114])
LEVELS = np.arange(256, dtype=np.float32)  # Pillow blends in float32 too
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13


def rand_augment(
    rng: np.random.Generator, clip: np.ndarray, layers: int, magnitude: float
) -> np.ndarray:
    """Applies operations drawn uniformly, one after the other (paper, section 5).

    Args:
      clip: (T, H, W, 3) uint8, in any memory layout.
      layers: how many operations; one may be drawn again.
      magnitude: of each operation, 0 to 10; a shift's direction is random.

    Returns:
      (T, H, W, 3) uint8.
    """
    for name in rng.choice(list(OPERATIONS), layers):
        sign = rng.choice((-1, 1)) if name in SIGNED else 1
        clip = OPERATIONS[name](clip, sign * magnitude)
    return clip


def _look_up(clip, table):
    """Replaces levels by a table (256,), or (256, 3) for red, green and blue."""
    table = table.clip(0, 255).astype(np.uint8).reshape(256, 1, -1)
    return cv2.LUT(_tall(clip), table).reshape(clip.shape)


def _tall(clip):
    """One image (T*H, W, 3), frame below frame, for what looks at single pixels."""
    return clip.reshape(-1, *clip.shape[2:])


def _counts(clip):
    """Histograms (256, 3) of red, green and blue, and each one's lowest and highest."""
    tall = [_tall(clip)]
    counts = [cv2.calcHist(tall, [c], None, [256], [0, 256]) for c in range(3)]
    counts = np.column_stack(counts).astype(np.int64)
    lowest = (counts > 0).argmax(axis=0)
    highest = 255 - (counts[::-1] > 0).argmax(axis=0)
    return counts, lowest, highest


def _auto_contrast(clip, level):
    del level
    _, lowest, highest = _counts(clip)
    scale = 255 / np.maximum(highest - lowest, 1)
    stretched = LEVELS[:, None] * scale - lowest * scale
    return _look_up(clip, np.where(highest > lowest, stretched, LEVELS[:, None]))


def _equalize(clip, level):
    del level
    counts, _, highest = _counts(clip)
    step = (counts.sum(axis=0) - counts[highest, range(3)]) // 255
    below = counts.cumsum(axis=0) - counts
    equalized = (below + step // 2) // np.maximum(step, 1)
    return _look_up(clip, np.where(step > 0, equalized, LEVELS[:, None]))


def _posterize(clip, level):
    bits = max(1, int(0.4 * level))
    return clip & np.uint8(256 - 2 ** (8 - bits))


def _solarize(clip, level):
    threshold = int(25.6 * level)
    return _look_up(clip, np.where(threshold > LEVELS, LEVELS, 255 - LEVELS))


def _solarize_add(clip, level):
    return _look_up(clip, np.where(LEVELS < 128, LEVELS + int(11 * level), LEVELS))


def _factor(level):
    return 0.1 + 0.18 * level


def _brightness(clip, level):
    return _look_up(clip, _factor(level) * LEVELS)


def _contrast(clip, level):
    mean = round(LUMA @ cv2.mean(_tall(clip))[:3])
    return _look_up(clip, mean + _factor(level) * (LEVELS - mean))


# Pillow rounds a blend down, OpenCV to the nearest: hence almost 1/2 less in these two.


def _color(clip, level):
    factor = _factor(level)
    mix = factor * np.eye(3) + (1 - factor) * LUMA  # rows: red, green, blue
    mix = np.column_stack([mix, [-0.49] * 3])
    return cv2.transform(_tall(clip), mix).reshape(clip.shape)


def _sharpness(clip, level):
    kernel = (1 - _factor(level)) * SMOOTH
    kernel[1, 1] += _factor(level)
    out = cv2.filter2D(_tall(clip), -1, kernel, delta=-0.49).reshape(clip.shape)
    # A frame's edge stays as it is, also where the frame below would have run into it.
    out[:, [0, -1]] = clip[:, [0, -1]]
    out[:, :, [0, -1]] = clip[:, :, [0, -1]]
    return out


def _by_frame(clip, change):
    # OpenCV's remap would save a fifth of the time, but needs maps of our own making.
    return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in clip])


def _rotate(clip, level):
    return _by_frame(clip, lambda frame: frame.rotate(3 * level, fillcolor=GREY))


def _affine(clip, matrix):
    """Pixel (x, y) shows what was at (a x + b y + c, d x + e y + f); a .. f: matrix."""
    affine = Image.Transform.AFFINE
    return _by_frame(
        clip, lambda frame: frame.transform(frame.size, affine, matrix, fillcolor=GREY)
    )


# Every operation is a function of a clip (T, H, W, 3) uint8 and a magnitude.
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
    "TranslateX": lambda clip, level: _affine(
        clip, (1, 0, 0.045 * level * clip.shape[2], 0, 1, 0)
    ),
    "TranslateY": lambda clip, level: _affine(
        clip, (1, 0, 0, 0, 1, 0.045 * level * clip.shape[1])
    ),
}
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
