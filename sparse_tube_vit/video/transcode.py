"""Transcoding to small H.264 files that decode fast from any frame."""

import dataclasses
import fractions
import io

import av
import numpy as np

from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.video.conversion import Orientation, filter_graph
from sparse_tube_vit.video.decode import frames_by_index
from sparse_tube_vit.video.limits import UndecodableClip
from sparse_tube_vit.video.opening import opened


class BadTranscode(DatasetError):
    """The options of `--transcode` are malformed."""


@dataclasses.dataclass(frozen=True)
class Transcode:
    """Transcoding of a clip to an H.264 mp4 file of its upright frames alone.

    Every frame keeps its presentation time relative to the first, whatever the frame
    rate; gaps are closed as by `Video.timeline`. Pictures become yuv420p of even height
    and width; pixels that are not square keep their shape. The same clip gives the same
    bytes in any process.

    Attributes:
        short_side: Shorter side in pixels. Smaller pictures are not enlarged.
        gop: Greatest distance of key frames, in frames.
        crf: x264's constant rate factor, 0 to 51; lower is better quality.
    """

    short_side: int = 256
    gop: int = 30
    crf: int = 23

    @classmethod
    def parse(cls, options: str) -> "Transcode":
        """Parses "short_side=256,gop=30,crf=23", with defaults for missing options.

        Raises:
            BadTranscode: An option is unknown, repeated or out of range.
        """
        limits = {"short_side": (2, 4096), "gop": (1, 1000), "crf": (0, 51)}
        values = {}
        for option in options.split(","):
            name, _, value = option.partition("=")
            if name not in limits or name in values:
                raise BadTranscode(
                    f"--transcode {options}: {option!r} is not one of"
                    f" {', '.join(f'{name}=N' for name in limits)}, each at most once"
                )
            low, high = limits[name]
            if not value.isdecimal() or not low <= int(value) <= high:
                raise BadTranscode(
                    f"--transcode {options}: {name} is a number from {low} to {high},"
                    f" not {value!r}"
                )
            values[name] = int(value)
        return cls(**values)

    def __str__(self) -> str:
        options = dataclasses.asdict(self).items()
        return ",".join(f"{name}={value}" for name, value in options)

    def __call__(
        self, encoded: bytes, span: tuple[float, float] | None = None
    ) -> bytes:
        """Returns the transcoded file.

        Args:
            encoded: Encoded video.
            span: Start and end in seconds after the first frame of the part that is
                kept; None keeps all. The part begins with the frame that is displayed
                at its start.

        Raises:
            UndecodableClip: Not all of the part decodes.
        """
        with opened(encoded, kind="video") as video:
            for ticks, clock in video.timings():
                if file := self._encode(video, span, ticks, clock):
                    return file

    def _encode(self, video, span, ticks, clock) -> bytes | None:
        """Returns a file of the frames at these ticks; None if one does not come."""
        kept, timeline = np.arange(len(ticks)), video.timeline(ticks)
        if span is not None:
            start, end = np.array(span) / video.tick + timeline[0]
            # A thousandth of a tick absorbs rounding, as in decoding.
            first = max(np.searchsorted(timeline, start + 1e-3) - 1, 0)
            kept = kept[first : max(np.searchsorted(timeline, end - 1e-3), first + 1)]
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as target:
            stream = target.add_stream("libx264", rate=video.stream.average_rate or 25)
            encoder, tick = stream.codec_context, video.stream.time_base
            # mp4 has whole fractions of a second: times stay exact.
            encoder.time_base = fractions.Fraction(1, tick.denominator)
            encoder.pix_fmt, encoder.gop_size = "yuv420p", self.gop
            encoder.options = {
                "crf": str(self.crf),
                "preset": "faster",
                # Decodes in half the time, for a tenth more bytes.
                "tune": "fastdecode",
                # With more threads the bytes would depend on the machine, and with
                # x264's macroblock tree on the contents of memory.
                "threads": "1",
                "x264-params": "mbtree=0",
            }
            upright, count = _Upright(tick, self.short_side), 0
            for index, frame in frames_by_index(video, ticks, kept, clock):
                if index < len(ticks) and not kept[0] <= index <= kept[-1]:
                    continue
                if frame.is_corrupt:
                    raise UndecodableClip(f"It is damaged from frame {count} on.")
                if index == len(ticks):
                    return None
                picture = upright(frame)
                if count == 0:
                    encoder.height, encoder.width = picture.height, picture.width
                    encoder.color_range = picture.color_range
                    encoder.colorspace = picture.colorspace
                    encoder.color_primaries = picture.color_primaries
                    encoder.color_trc = picture.color_trc
                    if video.pixel_aspect != 1:  # 1 is what its absence means
                        encoder.sample_aspect_ratio = (
                            1 / video.pixel_aspect
                            if upright.orientation.swapped
                            else video.pixel_aspect
                        )
                since = timeline[index] - timeline[kept[0]]
                picture.pts = round(since) * tick.numerator
                picture.time_base = encoder.time_base
                target.mux(stream.encode(picture))
                count += 1
            if count < len(kept):
                return None
            target.mux(stream.encode(None))
        return file.getvalue()


class _Upright:
    """Scales frames, converts them to yuv420p and turns them upright."""

    def __init__(self, time_base, short_side):
        self.time_base, self.short_side = time_base, short_side
        self.size = self.layout = None

    def __call__(self, frame):
        layout = (frame.width, frame.height, frame.format.name)
        if layout != self.layout:  # the first frame, or a change within the stream
            self._configure(frame)
            self.layout = layout
        self.graph.vpush(frame)
        return self.graph.vpull()

    def _configure(self, frame):
        size = (frame.width, frame.height)
        if self.size not in (None, size):
            raise UndecodableClip(f"Its size changes from {self.size} to {size}.")
        self.size = size
        short = min(size)
        short_side = min(short, self.short_side)
        width, height = (max(2, n * short_side // short // 2 * 2) for n in size)
        flags = "bicubic+accurate_rnd+bitexact"  # the same on any processor
        self.orientation = Orientation.of(frame)
        turns = {
            "transpose": self.orientation.swapped,
            "vflip": self.orientation.flipped,
            "hflip": self.orientation.mirrored,
        }
        filters = (
            ("scale", f"{width}:{height}:flags={flags}:out_range=limited"),
            ("format", "pix_fmts=yuv420p"),
            *((name, "") for name, needed in turns.items() if needed),
        )
        self.graph = filter_graph(frame, self.time_base, filters)
