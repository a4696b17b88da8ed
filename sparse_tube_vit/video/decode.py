"""Decoding of videos and images to uint8 frames. An image is a clip of one frame."""

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from sparse_tube_vit.video.conversion import Crop, ToRgb
from sparse_tube_vit.video.limits import LIMITS, Limits, UndecodableClip
from sparse_tube_vit.video.opening import Video, opened


def decode(
    data: bytes,
    times: Callable[[float], np.ndarray],
    crop: Callable[[int, int], Crop],
    limits: Limits = LIMITS,
    kind: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the frames displayed at given times, cropped and scaled.

    Args:
        data: Encoded file: any container, codec or still picture that FFmpeg reads.
        times: Function of the video's duration in seconds that returns T presentation
            times in seconds after the first frame, in any order. A time past the end
            gives the last frame.
        crop: Function of the upright picture's height and width, in square pixels, that
            returns the crop.
        limits: Limits of what it may take.
        kind: As for `opened`.

    Returns:
        Frames (T, out_height, out_width, 3), uint8 RGB and upright; and their
        presentation times (T,) in seconds after the first frame of the video.

    Raises:
        UndecodableClip: There is no video or picture, no frame, or damaged data.
        DecodeTimeout, ClipTooLarge: It exceeds the limits.
    """
    with opened(data, limits, kind) as video:
        to_rgb = ToRgb(video, crop)
        for ticks, clock in video.timings():
            if found := _decode_at(video, ticks, times, to_rgb, clock):
                return found


def decode_clips(
    data: bytes,
    clips: Callable[[float], Sequence[tuple[Hashable, np.ndarray]]],
    crop: Callable[[int, int], Crop],
    limits: Limits = LIMITS,
    kind: str | None = None,
) -> Iterator[tuple[Hashable, np.ndarray]]:
    """Yields clips of a video, one after the other, from one pass over its frames.

    Frames that several clips show are decoded once and kept until the last of them;
    where clips lie far apart, the frames between them are not decoded.

    Args:
        data: Encoded file.
        clips: Function of the video's duration in seconds that returns, for each clip,
            a key and T presentation times as for `decode`. Clips are in order of time.
        crop: As for `decode`.
        limits: Limits of what all of it may take.
        kind: "video" if it is known to be one, of any number of frames.

    Yields:
        Key and frames (T, out_height, out_width, 3) of each clip, as `decode` gives.

    Raises:
        UndecodableClip: As `decode`, after the clips before the damage; or it is an
            image.
        DecodeTimeout, ClipTooLarge: It exceeds the limits.
    """
    with opened(data, limits, kind) as video:
        if video.kind == "image":
            raise UndecodableClip("It is an image: clips in time are of videos.")
        to_rgb, done = ToRgb(video, crop), 0
        for ticks, clock in video.timings():
            timeline = video.timeline(ticks)
            wanted = [
                (key, _indices(video, timeline, times))
                for key, times in clips(video.seconds(ticks))
            ]
            for part in _far_apart(video, ticks, clock, wanted[done:]):
                before = done
                for clip in _decode_in_order(video, ticks, clock, part, to_rgb):
                    done += 1
                    yield clip
                if done - before < len(part):
                    break
            if done >= len(wanted):
                return


#: Up to so many frames in between, decoding on is cheaper than seeking.
_SEEK_GAP = 64


def _far_apart(video, ticks, clock, clips):
    """Splits clips (key, indices) where decoding is to start again at a key frame.

    A seek searches all packets, and skips more than `_SEEK_GAP` frames and 1% of all,
    so that there are at most a hundred.
    """
    if clock != "pts" or len(clips) < 2:  # by that alone it can start elsewhere
        return [clips] if clips else []
    keys = np.array(sorted(p.pts for p in video.packets if p.is_keyframe))
    parts, last = [], None
    for key, indices in clips:
        first = indices.min()
        if last is None or (
            first - last > max(len(ticks) / 100, _SEEK_GAP)
            and np.searchsorted(keys, ticks[last], "right")
            < np.searchsorted(keys, ticks[first], "right")
        ):
            parts.append([])
        parts[-1].append((key, indices))
        last = max(indices.max(), last or 0)
    return parts


def _decode_in_order(video, ticks, clock, clips, to_rgb):
    """Yields (key, frames) of clips (key, indices) until the order is broken."""
    wanted = np.unique(np.concatenate([indices for _, indices in clips]))
    needed, pictures, n = {*wanted.tolist()}, {}, 0
    firsts = [indices.min() for _, indices in clips]
    # The first frame that a clip or any later one needs.
    firsts = np.minimum.accumulate(firsts[::-1])[::-1]
    for i, frame in frames_by_index(video, ticks, wanted, clock):
        if i in needed:
            pictures[i] = to_rgb(frame).copy()
        while n < len(clips) and clips[n][1].max() <= i:
            key, indices = clips[n]
            if not pictures.keys() >= {*indices.tolist()}:
                return
            yield key, np.stack([pictures[j] for j in indices.tolist()])
            n += 1
            if n < len(clips):
                for j in [j for j in pictures if j < firsts[n]]:
                    del pictures[j]
        if n == len(clips):
            return


def _indices(video, timeline, seconds):
    """Returns indices of the frames shown at times in seconds after the first."""
    ticks = np.asarray(seconds) / video.tick + timeline[0]
    # The last frame presented by then; a thousandth of a tick absorbs rounding.
    return np.searchsorted(timeline, ticks + 1e-3, side="right").clip(1) - 1


def _decode_at(video, ticks, times, to_rgb, clock):
    """Returns what `decode` does; None where one of the frames does not come."""
    timeline = video.timeline(ticks)
    wanted = _indices(video, timeline, times(video.seconds(ticks)))
    missing, clip = {*wanted.tolist()}, None
    every = np.unique(wanted)
    near = np.split(every, np.flatnonzero(np.diff(every) > _SEEK_GAP) + 1)
    for part in _far_apart(video, ticks, clock, [*enumerate(near)]):
        indices = np.concatenate([some for _, some in part])
        for i, frame in frames_by_index(video, ticks, indices, clock):
            if i in missing:
                picture = to_rgb(frame)
                if clip is None:
                    clip = np.empty((len(wanted), *picture.shape), np.uint8)
                # Copied at once: the next picture reuses the memory in the cache.
                clip[wanted == i] = picture
                missing.remove(i)
            if i >= indices[-1]:
                break
    return None if missing else (clip, (timeline[wanted] - ticks[0]) * video.tick)


def frames_by_index(video: Video, ticks: np.ndarray, wanted: np.ndarray, clock: str):
    """Yields (index in `ticks`, PyAV frame) until the order is broken.

    Args:
        video: The open file.
        ticks: Sorted presentation times of its frames, in ticks.
        wanted: Indices of frames; with the clock "pts", others may not come.
        clock: Frames are identified by "pts", "dts" or "count", see `Video.clock`.
    """
    indices = {t: i for i, t in enumerate(ticks.tolist())}
    index, delay, start, needed = -1, None, 0, None
    if clock == "pts":
        needed = {*ticks[wanted].tolist()}
        start = _key_packet(video.packets, min(needed))
    for count, frame in enumerate(video.frames(start, needed)):
        before = index
        match clock:
            case "pts":
                index = indices.get(frame.pts, -1)
            case "dts" if frame.dts is not None:
                delay = frame.dts - ticks[0] if delay is None else delay
                index = indices.get(frame.dts - delay, -1)
            case _:
                index = before + 1
        # Containers may mark frames as key frames that are none.
        if index <= before or (count == 0 and start and not frame.key_frame):
            return
        yield index, frame


def _key_packet(packets, first):
    """Returns the index of the last key frame from which pts `first` decodes."""
    start = 0
    for i, packet in enumerate(packets):
        # A frame before a key frame in time, but after it in the file, needs the
        # previous key frame.
        if packet.is_keyframe and packet.pts <= first:
            start = i
        if packet.pts == first:
            break
    return start
