"""Random flips and colour jitter of uint8 clips, the same for all frames."""

import cv2
import numpy as np

cv2.setNumThreads(0)  # worker processes augment clips side by side


def flip(rng: np.random.Generator, clip: np.ndarray) -> np.ndarray:
    """Mirrors a clip (T, H, W, 3) uint8 left to right with probability 1/2."""
    # NumPy would take 15 times as long to copy a mirrored view.
    return (
        cv2.flip(as_one_image(clip), 1).reshape(clip.shape)
        if rng.random() < 0.5
        else clip
    )


def jitter_color(
    rng: np.random.Generator, clip: np.ndarray, strength: float
) -> np.ndarray:
    """Scales brightness, contrast and the balance of red, green and blue at random.

    Factors are uniform between 1 - strength and 1 + strength, for the balance half as
    far from 1. They are applied as one look-up table per channel.

    Args:
        rng: Source of the random numbers.
        clip: Clip (T, H, W, 3), uint8.
        strength: 0 (no change) to 1.
    """
    brightness, contrast = rng.uniform(1 - strength, 1 + strength, 2)
    balance = rng.uniform(1 - strength / 2, 1 + strength / 2, 3)
    levels = np.arange(256)[:, None] * brightness * balance  # (256, 3)
    middle = np.array(cv2.mean(clip[0])[:3]) * brightness * balance
    return look_up(clip, ((levels - middle) * contrast + middle).round())


def look_up(clip: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Maps levels by a table (256,), or (256, 3) for red, green and blue."""
    table = table.clip(0, 255).astype(np.uint8).reshape(256, 1, -1)
    return cv2.LUT(as_one_image(clip), table).reshape(clip.shape)


def as_one_image(clip: np.ndarray) -> np.ndarray:
    """Returns a clip as one image (T*H, W, 3), for operations on single pixels."""
    return clip.reshape(-1, *clip.shape[2:])
