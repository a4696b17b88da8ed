"""Which moments and which part of a video a clip shows: at random, or evenly spread."""

import math

import numpy as np

from sparse_tube_vit.video.decode import Crop


def clip_times(start: float, frames: int, fps: float, duration: float) -> np.ndarray:
    """Presentation times (T,) in seconds of a clip; a short video loops."""
    return (start + np.arange(frames) / fps) % duration


def random_start(
    rng: np.random.Generator, frames: int, fps: float, duration: float
) -> float:
    """A start in seconds such that the clip fits; anywhere where the video loops."""
    room = duration - frames / fps
    return rng.uniform(0, room if room > 0 else duration)


def spread_starts(views: int, frames: int, fps: float, duration: float) -> np.ndarray:
    """Starts (views,) in seconds, from the first possible to last; one: the middle.

    Where these would be less than a frame of the clip apart, as in a short video, which
    loops, they spread over all of it.
    """
    room = duration - frames / fps
    if room <= 0 or room < (views - 1) / fps:
        return np.arange(views) * duration / views
    return np.linspace(0, room, views) if views > 1 else np.array([room / 2])


def random_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    size: int,
    area: tuple[float, float],
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Crop:
    """A rectangle of random area (as a share) and aspect ratio, scaled to size x size.

    After ten draws that do not fit, the largest central one with an allowed aspect.
    """
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(*np.log(aspect)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return Crop(int(top), int(left), h, w, size, size)
    w = max(1, min(width, round(height * aspect[1])))
    h = max(1, min(height, round(width / aspect[0])))
    return Crop((height - h) // 2, (width - w) // 2, h, w, size, size)


def whole_picture(height: int, width: int, size: int) -> Crop:
    """The whole picture, its shorter side scaled to `size` pixels."""
    scale = size / min(height, width)
    out = (max(size, round(height * scale)), max(size, round(width * scale)))
    return Crop(0, 0, height, width, *out)


def crop_starts(height: int, width: int, views: int) -> list[int]:
    """Where square crops start that spread along the longer side; one: the middle."""
    room = abs(height - width)
    starts = np.linspace(0, room, views) if views > 1 else [room / 2]
    return np.rint(starts).astype(int).tolist()


def spread_crops(clip: np.ndarray, views: int, size: int) -> np.ndarray:
    """The square crops of `crop_starts`.

    Args:
      clip: (T, H, W, 3), the shorter side `size` pixels.

    Returns:
      (views, T, size, size, 3).
    """
    _, h, w, _ = clip.shape
    crops = []
    for start in crop_starts(h, w, views):
        top, left = (start, 0) if h > w else (0, start)
        crops.append(clip[:, top : top + size, left : left + size])
    return np.stack(crops)
