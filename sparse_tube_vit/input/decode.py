"""Encoded videos and images to uint8 frames with PyAV. An image is a one-frame clip."""

import contextlib
import dataclasses
import io
from collections.abc import Callable

import av
import numpy as np
from av.filter import Graph

from sparse_tube_vit.errors import TubeViTError


class UndecodableClip(TubeViTError, ValueError):
    """The bytes hold no picture that can be decoded."""


@dataclasses.dataclass(frozen=True)
class Crop:
    """A rectangle of the upright picture, and the size it is scaled to, in pixels."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int

    def on_rotated(self, quarters: int, height: int, width: int) -> "Crop":
        """The same rectangle on a stored picture of that height and width.

        The stored picture becomes the upright one by `quarters` counterclockwise
        quarter turns.
        """
        bottom, right = self.top + self.height, self.left + self.width
        match quarters % 4:
            case 0:
                return self
            case 1:
                top, left = self.left, width - bottom
            case 2:
                top, left = height - bottom, width - right
            case 3:
                top, left = height - right, self.top
        if quarters % 2:
            swapped = (self.width, self.height, self.out_width, self.out_height)
            return Crop(top, left, *swapped)
        return dataclasses.replace(self, top=top, left=left)


def decode(
    data: bytes,
    times: Callable[[float], np.ndarray],
    crop: Callable[[int, int], Crop],
) -> np.ndarray:
    """Decodes the frames on show at given times, cropped and scaled.

    Args:
      data: an encoded file: any container, codec or still picture that FFmpeg reads.
      times: called with the video's duration in seconds, returns T presentation times
        in seconds after the first frame, in any order. A time past the end shows the
        last frame.
      crop: called with the upright picture's height and width, returns what to keep.

    Returns:
      (T, out_height, out_width, 3) uint8 RGB, upright.

    Raises:
      UndecodableClip: no video or picture, no frame in it, or damaged data.
    """
    with opened(data) as (container, stream):
        return _decode(container, stream, times, crop)


@contextlib.contextmanager
def opened(data: bytes):
    """Opens an encoded file; gives its PyAV container and its video stream.

    Raises:
      UndecodableClip: it has no video or picture, or FFmpeg fails in the block.
    """
    try:
        with av.open(io.BytesIO(data), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UndecodableClip("It has no video stream.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise UndecodableClip("FFmpeg has no decoder for it.")
            stream.thread_type = "NONE"  # clips run side by side in worker processes
            yield container, stream
    except (av.error.FFmpegError, EOFError) as error:
        raise UndecodableClip(f"FFmpeg cannot decode it: {error}") from error


def read_packets(container, stream) -> tuple[list[av.Packet], np.ndarray]:
    """All packets as stored, and when frames are shown: sorted, in stream's ticks."""
    # Reading all packets first costs little and gives exact presentation times, where
    # frame counts and durations that containers claim are often wrong.
    packets = [p for p in container.demux(stream) if p.size]
    if any(p.pts is None for p in packets):
        raise UndecodableClip("Its packets carry no presentation times.")
    shown = np.array(sorted(p.pts for p in packets if not p.is_discard), np.int64)
    if not len(shown):
        raise UndecodableClip("It has no frames.")
    return packets, shown


def seconds(shown: np.ndarray, stream) -> float:
    """For how long frames that are shown at these ticks last."""
    tick = float(stream.time_base)
    # The last frame is on show for as long as the one before it; a picture for 1/25 s.
    last = shown[-1] - shown[-2] if len(shown) > 1 else 1 / tick / 25
    return float(shown[-1] - shown[0] + last) * tick


def _decode(container, stream, times, crop):
    packets, shown = read_packets(container, stream)
    tick = float(stream.time_base)
    wanted = times(seconds(shown, stream)) / tick + shown[0]
    # On show is the last frame presented by then; a thousandth tick absorbs rounding.
    wanted = np.searchsorted(shown, wanted + 1e-3, side="right").clip(1) - 1

    to_rgb = _ToRgb(stream.time_base, crop)
    needed, last_needed = set(wanted.tolist()), wanted.max()
    missing, clip = set(needed), None
    for i, frame in _frames(container, stream, packets, shown, wanted.min()):
        if i in missing:
            picture = to_rgb(frame)
            if clip is None:
                clip = np.empty((len(wanted), *picture.shape), np.uint8)
            # Copied at once, so that the next picture takes the same, warm memory.
            clip[wanted == i] = picture
            missing.remove(i)
        if i >= last_needed:
            break
    if missing:
        raise UndecodableClip(
            f"{len(missing)} of the {len(needed)} frames wanted do not decode, the "
            f"first at {(shown[min(missing)] - shown[0]) * tick:.2f} s."
        )
    return clip


def _frames(container, stream, packets, shown, first):
    """(index, frame) in presentation order, from a key frame at or before `first`."""
    starts = [
        i for i, p in enumerate(packets) if p.is_keyframe and p.pts <= shown[first]
    ]
    # AVI stores no presentation times. FFmpeg guesses them, and only their order from
    # the beginning is right.
    start = 0 if container.format.name == "avi" else max(starts, default=0)
    count = 0
    for packet in [*packets[start:], None]:  # None drains the decoder
        for frame in stream.codec_context.decode(packet):
            index = count if start == 0 else int(np.searchsorted(shown, frame.pts))
            yield index, frame
            count += 1


class _ToRgb:
    """Crops, scales and converts frames in one pass of libswscale, and turns them."""

    def __init__(self, time_base, choose_crop):
        self.time_base, self.choose_crop = time_base, choose_crop
        self.layout = None

    def __call__(self, frame):
        layout = (frame.width, frame.height, frame.format.name)
        if layout != self.layout:  # the first frame, or the stream changes size
            self._configure(frame)
            self.layout = layout
        self.graph.vpush(frame)
        picture = self.graph.vpull().to_ndarray()
        return np.rot90(picture, self.quarters) if self.quarters else picture

    def _configure(self, frame):
        self.quarters = round(frame.rotation / 90) % 4
        upright = (frame.height, frame.width)[:: -1 if self.quarters % 2 else 1]
        if self.layout is None:
            self.crop = self.choose_crop(*upright)
            self.chosen_on = upright
        elif upright != self.chosen_on:
            raise UndecodableClip(
                f"Its size changes from {self.chosen_on} to {upright}."
            )
        c = self.crop.on_rotated(self.quarters, frame.height, frame.width)
        # Scaling in 4:2:0 and then converting is 2 to 3 times as fast as both at once.
        scaled = "yuv420p" if frame.format.name == "yuv420p" else "rgb24"
        filters = (
            ("crop", f"{c.width}:{c.height}:{c.left}:{c.top}"),
            ("scale", f"{c.out_width}:{c.out_height}:flags=bilinear"),
            ("format", f"pix_fmts={scaled}"),
            ("scale", ""),
            ("format", "pix_fmts=rgb24"),
            ("buffersink", None),
        )
        self.graph = Graph()
        # By default it starts a thread a core, which takes 5 times as long where the
        # cores are busy training.
        self.graph.threads = 1
        source = self.graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base=str(self.time_base),
            colorspace=str(int(frame.colorspace)),
            range=str(int(frame.color_range)),
        )
        nodes = [self.graph.add(*name_and_options) for name_and_options in filters]
        self.graph.link_nodes(source, *nodes).configure()
