"""Clips to small H.264 files that decode fast and can be entered anywhere."""

import dataclasses
import fractions
import io

import av
from av.filter import Graph

from sparse_tube_vit.datasets import DatasetError
from sparse_tube_vit.input.decode import UndecodableClip, opened, read_packets


class BadTranscode(DatasetError):
    """The options of a transcoding are malformed."""


@dataclasses.dataclass(frozen=True)
class Transcode:
    """Makes a clip an H.264 mp4 file of its frames, upright, and nothing else.

    Every frame keeps its presentation time after the first, whatever the frame rate.
    Pictures become yuv420p of even height and width. The same clip gives the same
    bytes in any process.

    Attributes:
        short_side: The shorter side in pixels. Smaller pictures are not enlarged.
        gop: Key frames are at most this many frames apart.
        crf: x264's constant rate factor, 0 to 51: smaller is better and larger.
    """

    short_side: int = 256
    gop: int = 30
    crf: int = 23

    @classmethod
    def parse(cls, options: str) -> "Transcode":
        """Reads "short_side=256,gop=30,crf=23"; what is not named has its default.

        Raises BadTranscode.
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

    def __call__(self, encoded: bytes) -> bytes:
        """Transcodes a file; raises UndecodableClip if it does not decode wholly."""
        with opened(encoded) as (container, stream):
            file = io.BytesIO()
            with av.open(file, "w", format="mp4") as target:
                self._encode(target, stream, _frames(container, stream))
            return file.getvalue()

    def _encode(self, target, stream, frames):
        output = target.add_stream("libx264", rate=stream.average_rate or 25)
        context = output.codec_context
        # Ticks of a whole fraction of a second, as mp4 has them: times stay exact.
        scale = stream.time_base.numerator
        context.time_base = fractions.Fraction(1, stream.time_base.denominator)
        context.pix_fmt, context.gop_size = "yuv420p", self.gop
        context.options = {
            "crf": str(self.crf),
            "preset": "faster",
            # Decodes in half the time, for a tenth more bytes.
            "tune": "fastdecode",
            # Bytes would depend on the machine with more threads, and on what lies in
            # memory with x264's macroblock tree.
            "threads": "1",
            "x264-params": "mbtree=0",
        }
        upright, first = None, None
        for pts, frame in frames:
            if upright is None:
                upright = _Upright(stream.time_base, self.short_side)
                first = pts
            picture = upright(frame)
            if pts == first:
                context.height, context.width = picture.height, picture.width
                context.color_range = picture.color_range
                context.colorspace = picture.colorspace
                context.color_primaries = picture.color_primaries
                context.color_trc = picture.color_trc
            picture.pts = (pts - first) * scale
            picture.time_base = context.time_base
            target.mux(output.encode(picture))
        if upright is None:
            raise UndecodableClip("None of its frames decodes.")
        target.mux(output.encode(None))


def _frames(container, stream):
    """Yields all frames with the ticks at which they are shown, in that order."""
    packets, shown = read_packets(container, stream)
    count = 0
    for packet in [*packets, None]:  # None drains the decoder
        for frame in stream.codec_context.decode(packet):
            if frame.is_corrupt:
                raise UndecodableClip(f"It is damaged from frame {count} on.")
            # AVI stores no presentation times. FFmpeg guesses them, and only their
            # order is right.
            yield (
                (int(shown[count]) if container.format.name == "avi" else frame.pts),
                frame,
            )
            count += 1


class _Upright:
    """Scales frames, converts them to yuv420p and turns them upright."""

    def __init__(self, time_base, short_side):
        self.time_base, self.short_side = time_base, short_side
        self.size = self.layout = None

    def __call__(self, frame):
        layout = (frame.width, frame.height, frame.format.name, frame.rotation)
        if layout != self.layout:
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
        turn = {
            0: (),
            1: (("transpose", "cclock"),),
            2: (("hflip", ""), ("vflip", "")),
            3: (("transpose", "clock"),),
        }[round(frame.rotation / 90) % 4]
        flags = "bicubic+accurate_rnd+bitexact"  # the same on any processor
        filters = (
            ("scale", f"{width}:{height}:flags={flags}:out_range=limited"),
            ("format", "pix_fmts=yuv420p"),
            *turn,
            ("buffersink", None),
        )
        self.graph = Graph()
        self.graph.threads = 1  # clips run side by side in worker processes
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
