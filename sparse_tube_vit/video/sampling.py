"""Times and crops of clips: at random for training, evenly spread for evaluation."""

import math
from collections.abc import Callable

import numpy as np

from sparse_tube_vit.video.conversion import Crop
from sparse_tube_vit.video.limits import UndecodableClip


def clip_times(start: float, frames: int, fps: float, duration: float) -> np.ndarray:
    """Returns presentation times (T,) in seconds of a clip; a short video loops."""
    return (start + np.arange(frames) / fps) % duration


def within(
    times: Callable[[float], np.ndarray], span: tuple[float, float] | None
) -> Callable[[float], np.ndarray]:
    """Returns `times`, a function of a duration, for the part of a video in a span.

    Args:
        times: Maps a duration to presentation times, both in seconds.
        span: Start and end of the part in seconds; None for the whole video.

    Returns:
        A function that raises UndecodableClip where a video ends before the part.
    """
    if span is None:
        return times
    start, end = span

    def in_span(duration):
        if duration <= start:
            raise UndecodableClip(
                f"It lasts {duration:.1f} s, but its clip begins at {start:g} s."
            )
        return start + times(min(end, duration) - start)

    return in_span


def random_start(
    rng: np.random.Generator, frames: int, fps: float, duration: float
) -> float:
    """Returns a start in seconds such that the clip fits, or any if the video loops."""
    room = duration - frames / fps
    return rng.uniform(0, room if room > 0 else duration)


def spread_starts(views: int, frames: int, fps: float, duration: float) -> np.ndarray:
    """Returns starts (views,) in seconds, from first to last possible.

    One view is of the middle, or starts at 0 where the video is shorter. Where starts
    would be less than a frame of the clip apart, as in a short video that loops, they
    spread over its whole duration.
    """
    room = duration - frames / fps
    if room <= 0 or room < (views - 1) / fps:
        return np.arange(views) * duration / views
    return np.linspace(0, room, views) if views > 1 else np.array([room / 2])


#: Least and greatest ratio of a random crop's width to its height.
_RATIOS = (3 / 4, 4 / 3)


def random_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    size: int,
    area: tuple[float, float],
) -> Crop:
    """Returns a crop of random area and aspect ratio, scaled to size x size.

    Its width is 3/4 to 4/3 of its height. After ten draws that do not fit, it is the
    largest central one of such a ratio.

    Args:
        rng: Source of the random numbers.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        size: Sides of the result in pixels.
        area: Least and greatest area, as a fraction of the picture.
    """
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(*np.log(_RATIOS)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return Crop(int(top), int(left), h, w, size, size)
    w = max(1, min(width, round(height * _RATIOS[1])))
    h = max(1, min(height, round(width / _RATIOS[0])))
    return Crop((height - h) // 2, (width - w) // 2, h, w, size, size)


def whole_picture(height: int, width: int, size: int) -> Crop:
    """Returns the whole picture as a crop, its shorter side scaled to `size` pixels."""
    scale = size / min(height, width)
    out = (max(size, round(height * scale)), max(size, round(width * scale)))
    return Crop(0, 0, height, width, *out)


def crop_starts(height: int, width: int, views: int) -> list[int]:
    """Returns starts in pixels of square crops spread along the longer side.

    One view is the middle.
    """
    room = abs(height - width)
    starts = np.linspace(0, room, views) if views > 1 else [room / 2]
    return np.rint(starts).astype(int).tolist()


def spread_crops(clip: np.ndarray, views: int, size: int) -> np.ndarray:
    """Returns the square crops of `crop_starts`, (views, T, size, size, 3).

    Args:
        clip: Clip (T, H, W, 3) whose shorter side has `size` pixels.
        views: Number of crops.
        size: Side of the crops in pixels.
    """
    _, h, w, _ = clip.shape
    crops = []
    for start in crop_starts(h, w, views):
        top, left = (start, 0) if h > w else (0, start)
        crops.append(clip[:, top : top + size, left : left + size])
    return np.stack(crops)
