"""Properties of an encoded file."""

import fractions

from sparse_tube_vit.video.conversion import Crop, ToRgb
from sparse_tube_vit.video.limits import UndecodableClip
from sparse_tube_vit.video.opening import opened

#: Properties that `inspect` returns.
DECODED = (
    "container",
    "codec",
    "width",
    "height",
    "frame_rate",
    "decoded_frames",
    "seconds",
)


def inspect(encoded: bytes, kind: str) -> dict:
    """Decodes every frame of a video, or the first of an image, on one thread.

    A frame of every size is also converted as training does it, so that no file is
    accepted of which training would not take the picture.

    Args:
        encoded: Encoded file, of any kind that `video.opening` reads.
        kind: "video" or "image".

    Returns:
        The properties `DECODED`: names of FFmpeg's container and codec, such as
        "mov,mp4,m4a,3gp,3g2,mj2" and "h264"; width and height of the upright picture
        in pixels; the container's average frames a second, a Fraction, None if unknown;
        the number of frames; seconds by presentation times, with that of the last
        frame. Of an image frame_rate and seconds are None.

    Raises:
        UndecodableClip: FFmpeg fails or conceals damaged data, the frames differ in
            size, or training could not convert them.
    """
    with opened(encoded, kind=kind) as video:
        to_rgb, sizes, frames = ToRgb(video, _small), set(), 0
        for frame in video.frames():
            if frame.is_corrupt:
                raise UndecodableClip(f"It is damaged from frame {frames} on.")
            size = (frame.width, frame.height)
            if size not in sizes:
                to_rgb(frame)
                sizes.add(size)
            frames += 1
        if not frames:
            raise UndecodableClip("None of its frames decodes.")
        width, height = size[:: -1 if to_rgb.orientation.swapped else 1]
        found = {
            "container": video.format,
            "codec": video.stream.codec_context.name,
            "width": width,
            "height": height,
            "frame_rate": None,
            "decoded_frames": frames,
            "seconds": None,
        }
        if kind == "video":
            # A number type of PyAV's own from version 19 on, None or 0 where unknown.
            rate = video.stream.average_rate or None
            found["frame_rate"] = rate and fractions.Fraction(rate)
            found["seconds"] = round(_seconds(video), 6)
        return found


def _small(height, width):
    return Crop(0, 0, height, width, 8, 8)


def seconds(encoded: bytes) -> float:
    """Returns the duration of a video by presentation times, mostly without decoding.

    Raises:
        UndecodableClip: FFmpeg fails.
    """
    with opened(encoded, kind="video") as video:
        return _seconds(video)


def _seconds(video):
    ticks = video.packet_times()
    return video.seconds(video.frame_times() if ticks is None else ticks)
