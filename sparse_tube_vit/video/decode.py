"""Encoded videos and images to uint8 frames with PyAV. An image is a one-frame clip."""

import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Callable

import av
import numpy as np
from av.filter import Graph
from av.sidedata import sidedata
from av.stream import Discard

from sparse_tube_vit.errors import TubeViTError

# Codecs whose frames say that no other refers to them, so that FFmpeg can skip them.
# Not MPEG-4, where two frames may share a packet: with one, FFmpeg loses the other.
SKIPPABLE = ("h264", "mpeg1video", "mpeg2video")

# 8 bits of luma and chroma, each in its plane; "j": all 256 levels, as JPEG has.
PLANAR = {f"yuv{j}{layout}p" for j in ("", "j") for layout in (420, 422, 444)}

# Between a picture's sides. Beyond it, a short side scaled to 224 makes a long one of
# thousands of pixels.
MAX_ASPECT = 20


class UndecodableClip(TubeViTError, ValueError):
    """The bytes hold no picture that can be decoded."""


class DecodeTimeout(UndecodableClip):
    """Decoding took longer than allowed.

    The time is that which the thread computes, so that a machine that is busy or was
    suspended loses no clip. It is looked at between packets: one call of FFmpeg, such
    as opening the file or decoding a packet, is never interrupted.
    """


@dataclasses.dataclass(frozen=True)
class Crop:
    """A rectangle of the upright picture, and the size it is scaled to, in pixels."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int


@dataclasses.dataclass(frozen=True)
class Orientation:
    """How a picture is stored: upright with its axes swapped, its lines reversed.

    Rows are reversed where `flipped`, columns where `mirrored`, of the upright picture.
    """

    swapped: bool = False
    flipped: bool = False
    mirrored: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """As the frame's display matrix says, by multiples of a quarter turn."""
        matrix = _display_matrix(frame)
        if matrix is None:
            return cls()
        (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3)
        # Of the upright picture, x is a x + c y of the stored one, and y is b x + d y.
        swapped = max(abs(a), abs(d)) < max(abs(b), abs(c))
        return cls(swapped, (b if swapped else d) < 0, (c if swapped else a) < 0)

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """The upright picture of a stored one (H, W, 3)."""
        if self.swapped:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]

    def stored(self, crop: Crop, height: int, width: int) -> Crop:
        """The same rectangle on the stored picture; upright it has that size."""
        top, left = crop.top, crop.left
        if self.flipped:
            top = height - top - crop.height
        if self.mirrored:
            left = width - left - crop.width
        crop = dataclasses.replace(crop, top=top, left=left)
        if not self.swapped:
            return crop
        return Crop(left, top, crop.width, crop.height, crop.out_width, crop.out_height)


def decode(
    data: bytes,
    times: Callable[[float], np.ndarray],
    crop: Callable[[int, int], Crop],
    timeout_seconds: float = math.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the frames on show at given times, cropped and scaled.

    Args:
      data: an encoded file: any container, codec or still picture that FFmpeg reads.
      times: called with the video's duration in seconds, returns T presentation times
        in seconds after the first frame, in any order. A time past the end shows the
        last frame.
      crop: called with the upright picture's height and width, returns what to keep.
      timeout_seconds: the most time that it may compute, see `DecodeTimeout`.

    Returns:
      (T, out_height, out_width, 3) uint8 RGB, upright; and (T,) when the frames on show
      were presented, in seconds after the first.

    Raises:
      UndecodableClip: no video or picture, no frame in it, or damaged data.
      DecodeTimeout: it took too long.
    """
    with opened(data, timeout_seconds) as video:
        to_rgb = _ToRgb(video.stream.time_base, crop)
        shown = video.packet_times()
        found = None
        if shown is not None:
            found = _show(video, shown, times, to_rgb, video.clock)
        if found is None:
            shown = video.frame_times()
            found = _show(video, shown, times, to_rgb, "count")
        if found is None:
            raise UndecodableClip("Decoded again, it has fewer frames.")
        return found


@contextlib.contextmanager
def opened(data: bytes, timeout_seconds: float = math.inf):
    """Opens an encoded file as a `Video`.

    Raises:
      UndecodableClip: it has no video or picture, or FFmpeg fails within the block.
      DecodeTimeout: what the block reads and decodes took too long.
    """
    try:
        with av.open(io.BytesIO(data), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UndecodableClip("It has no video stream.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise UndecodableClip("FFmpeg has no decoder for it.")
            for other in container.streams:
                if other is not stream:
                    other.discard = Discard.all
            # Clips run side by side in worker processes. libdav1d heeds the count.
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            yield Video(container, stream, timeout_seconds)
    except (av.error.FFmpegError, EOFError) as error:
        why = getattr(error, "strerror", None) or error
        raise UndecodableClip(f"FFmpeg cannot decode it: {why}.") from error


class Video:
    """The packets of an open file, and when its frames are shown.

    Times are in ticks, of which one lasts `tick` seconds.
    """

    def __init__(self, container, stream, timeout_seconds):
        self.stream, self.format = stream, container.format.name
        self.tick = float(stream.time_base)
        self.timeout_seconds, self.started = timeout_seconds, time.thread_time()
        # Reading all packets first costs little and gives exact presentation times,
        # where frame counts and durations that containers claim are often wrong.
        self.packets = [p for p in container.demux(stream) if p.size]
        self.clock = self._clock()
        # MPEG program streams have some of the times, FFmpeg makes up the others.
        self.guessed = self.format == "mpeg"

    def _clock(self):
        """What tells when frames are shown that the decoder puts in another order.

        Their "pts"; in AVI, which has none, the "dts" of the packet that brings a frame
        out of the decoder; or their "count", where packets have theirs as a time.
        """
        if not self.stream.codec_context.has_b_frames:
            return "pts"
        if self.format == "avi":
            return "dts"
        times = [p.pts for p in self.packets if p.pts is not None]
        return "count" if sorted(times) == times else "pts"

    def frames(self, start: int = 0, needed: set[int] | None = None):
        """Yields PyAV's frames in order of presentation, decoded from a packet on.

        With `needed`, presentation times, only these frames come for certain: packets
        after the last of them are not decoded, nor are other `SKIPPABLE` frames that no
        frame refers to.
        """
        packets, codec = self.packets[start:], self.stream.codec_context
        if needed is not None:
            last = max(i for i, packet in enumerate(packets) if packet.pts in needed)
            packets = packets[: last + 1]
            if codec.name not in SKIPPABLE:
                needed = None
        codec.flush_buffers()
        codec.skip_frame = "DEFAULT"
        for packet in [*packets, None]:  # None drains the decoder
            if time.thread_time() - self.started > self.timeout_seconds:
                raise DecodeTimeout(
                    f"It takes more than {self.timeout_seconds:g} s to decode."
                )
            if needed is not None and packet is not None:
                codec.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
            yield from codec.decode(packet)

    def packet_times(self) -> np.ndarray | None:
        """When frames are shown, sorted; None where packets do not tell."""
        field = "dts" if self.clock == "dts" else "pts"
        times = [getattr(p, field) for p in self.packets]
        if not times or None in times or self.guessed:
            return None
        vp8 = self.stream.codec_context.name == "vp8"  # has frames that none sees
        shown = sorted(
            t
            for t, p in zip(times, self.packets, strict=True)
            if not p.is_discard and not (vp8 and not memoryview(p)[0] & 16)
        )
        if not shown or not self.packets[0].is_keyframe or times[0] > shown[0]:
            return None
        return np.array(shown) if len({*shown}) == len(shown) else None

    def frame_times(self) -> np.ndarray:
        """When frames are shown, in order, as a full decode tells."""
        usual = float(1 / (self.stream.average_rate or 25) / self.stream.time_base)
        field = "dts" if self.clock == "dts" else "pts"
        times, durations = [], []
        for frame in self.frames():
            t = getattr(frame, field)
            if t is None:
                t = times[-1] + durations[-1] if times else 0
            times.append(t)
            durations.append(frame.duration or usual)
        if not times:
            raise UndecodableClip("It has no frames.")
        # Without good times, frames follow each other by their durations.
        good = np.all(np.diff(times) > 0) and not self.guessed
        return np.array(times) if good else np.cumsum([0, *durations[:-1]])

    def seconds(self, shown: np.ndarray) -> float:
        """For how long frames that are shown from these times on last."""
        # The last is on show for as long as the one before it; a picture for 1/25 s.
        last = shown[-1] - shown[-2] if len(shown) > 1 else 1 / self.tick / 25
        return float(shown[-1] - shown[0] + last) * self.tick


def _show(video, shown, times, to_rgb, clock):
    """Pictures of the frames wanted, and their times; None where one is not found."""
    wanted = times(video.seconds(shown)) / video.tick + shown[0]
    # On show is the last frame presented by then; a thousandth tick absorbs rounding.
    wanted = np.searchsorted(shown, wanted + 1e-3, side="right").clip(1) - 1
    missing, last, clip = {*wanted.tolist()}, wanted.max(), None
    for i, frame in placed(video, shown, wanted, clock):
        if i in missing:
            picture = to_rgb(frame)
            if clip is None:
                clip = np.empty((len(wanted), *picture.shape), np.uint8)
            # Copied at once, so that the next picture takes the same, warm memory.
            clip[wanted == i] = picture
            missing.remove(i)
        if i >= last:
            break
    return None if missing else (clip, (shown[wanted] - shown[0]) * video.tick)


def placed(video: Video, shown: np.ndarray, wanted: np.ndarray, clock: str):
    """Yields (place in `shown`, PyAV frame) until one is out of place.

    They are found by their "pts", and then only those wanted and some others come; by
    the "dts" of the packet that brings them out of the decoder; or by "count" alone.
    """
    places = {t: i for i, t in enumerate(shown.tolist())}
    place, delay, start, needed = -1, None, 0, None
    if clock == "pts":
        needed = {*shown[wanted].tolist()}
        start = _start(video.packets, min(needed))
    for count, frame in enumerate(video.frames(start, needed)):
        before = place
        match clock:
            case "pts":
                place = places.get(frame.pts, -1)
            case "dts" if frame.dts is not None:
                delay = frame.dts - shown[0] if delay is None else delay
                place = places.get(frame.dts - delay, -1)
            case _:
                place = before + 1
        # Containers may call a key frame what is none.
        if place <= before or (count == 0 and start and not frame.key_frame):
            return
        yield place, frame


def _start(packets, first):
    """Number of the last key frame from which the frame shown at `first` decodes."""
    starts = [0]
    for i, packet in enumerate(packets):
        # What precedes a key frame in time, but not in the file, needs the one before.
        if packet.is_keyframe and packet.pts <= first:
            starts.append(i)
        if packet.pts == first:
            break
    return starts[-1]


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
        plane = self.graph.vpull().planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # padded
        picture = rows[:, : plane.width * 3].reshape(plane.height, plane.width, 3)
        return self.orientation.upright(picture)

    def _configure(self, frame):
        self.orientation = Orientation.of(frame)
        swapped = self.orientation.swapped
        upright = (frame.height, frame.width)[:: -1 if swapped else 1]
        if max(upright) > MAX_ASPECT * min(upright):
            raise UndecodableClip(
                f"It has {upright[0]} x {upright[1]} pixels, one side more than "
                f"{MAX_ASPECT} times the other."
            )
        if self.layout is None:
            self.crop = self.choose_crop(*upright)
            self.chosen_on = upright
        elif upright != self.chosen_on:
            raise UndecodableClip(
                f"Its size changes from {self.chosen_on} to {upright}."
            )
        c = self.orientation.stored(self.crop, *upright)
        # Neighbouring pixels may share their colour: it must stay theirs.
        left = c.left - c.left % (4 // frame.format.chroma_width(4))
        top = c.top - c.top % (4 // frame.format.chroma_height(4))
        # Scaling first and then converting is up to 3 times as fast as both at once.
        scaled = frame.format.name if frame.format.name in PLANAR else "rgb24"
        filters = (
            ("crop", f"{c.width}:{c.height}:{left}:{top}:exact=1"),
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


def _display_matrix(frame):
    """The matrix that says how to turn a frame upright; None if it has none."""
    try:
        return frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV reads nothing where there is a kind of data that it does not know, as
        # EXIF: the kinds beyond its own are taken away.
        first = len(sidedata.Type)
        kinds = range(first, first + 8)
        graph = Graph()
        nodes = [
            graph.add(
                "buffer",
                video_size=f"{frame.width}x{frame.height}",
                pix_fmt=frame.format.name,
                time_base="1/25",
            ),
            *(graph.add("sidedata", f"mode=delete:type={kind}") for kind in kinds),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        graph.vpush(frame)
        return graph.vpull().side_data.get("DISPLAYMATRIX")


SUFFIXES = {
    "image": {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"},
    "video": {
        *(".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"),
    },
}
