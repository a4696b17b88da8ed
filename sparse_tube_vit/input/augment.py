"""Random changes of a clip's looks: the same for all frames, on the host, in uint8."""

import numpy as np
from PIL import Image


def flip(rng: np.random.Generator, clip: np.ndarray) -> np.ndarray:
    """Mirrors a clip (T, H, W, 3) left to right, every other time."""
    return clip[:, :, ::-1] if rng.random() < 0.5 else clip


def jitter_color(
    rng: np.random.Generator, clip: np.ndarray, strength: float
) -> np.ndarray:
    """Random brightness, contrast and balance of red, green and blue.

    Each is scaled by a factor between 1 - strength and 1 + strength (the balance by
    half as much), in one look-up table a channel.

    Args:
      clip: (T, H, W, 3) uint8.
      strength: 0 (nothing changes) up to 1.
    """
    brightness, contrast = rng.uniform(1 - strength, 1 + strength, 2)
    balance = rng.uniform(1 - strength / 2, 1 + strength / 2, 3)
    levels = np.arange(256)[:, None] * brightness * balance  # (256, 3)
    middle = clip[0].mean(axis=(0, 1)) * brightness * balance
    table = ((levels - middle) * contrast + middle).round().clip(0, 255)
    table = table.T.ravel().astype(int).tolist()
    tall = Image.fromarray(clip.reshape(-1, *clip.shape[2:]))  # frame below frame
    return np.asarray(tall.point(table)).reshape(clip.shape)
