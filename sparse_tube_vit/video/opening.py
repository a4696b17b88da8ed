"""Opening of encoded files: their video, its packets and presentation times.

`opened` alone decides how a file is read: which stream is the video, whether it is an
image or a video, when its frames are shown. Preparation, verification, training and
inference all read through it, so that what one of them accepts, the others do.
"""

import contextlib
import fractions
import io
import pathlib
from collections.abc import Iterator

import av
import numpy as np
from av.stream import Discard, Disposition

from sparse_tube_vit.video import pictures
from sparse_tube_vit.video.conversion import convertible
from sparse_tube_vit.video.limits import (
    LIMITS,
    CpuLimit,
    DecodeTimeout,
    Limits,
    UndecodableClip,
)

#: File name suffixes by kind; a GIF may be either.
SUFFIXES = {
    "image": {
        *(".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe"),
        *(".jpeg", ".jpg", ".jxl", ".mpo", ".pam", ".pbm", ".pgm", ".png", ".pnm"),
        *(".ppm", ".qoi", ".tif", ".tiff", ".webp"),
    },
    "video": {
        *(".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v"),
        *(".flv", ".gif", ".h263", ".h264", ".h265", ".hevc", ".ivf", ".m2ts", ".m2v"),
        *(".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".obu"),
        *(".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
    },
}

# Codecs that mark frames to which no other refers, so that FFmpeg can skip them. Not
# MPEG-4, where two frames may share a packet: skipping one, FFmpeg loses the other.
SKIPPABLE = ("h264", "mpeg1video", "mpeg2video")

FFMPEG_ERRORS = (av.error.FFmpegError, EOFError)
REFUSALS = (av.error.ArgumentError, av.error.MemoryError)  # of frames too large, too

# Streams that FFmpeg shows as video, but that are cover art or previews of chapters.
COVERS = Disposition.attached_pic | Disposition.timed_thumbnails

# The next frame comes after a gap if it is later by so many seconds, as for ffmpeg's
# -dts_delta_threshold, and by so many times the usual step.
GAP_SECONDS, GAP_STEPS = 10, 100

# Metadata need not be UTF-8: PyAV always replaces such characters from version 19 on.
METADATA = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)

# By default FFmpeg fills a truncated picture with grey or black.
STRICT = {"err_detect": "explode"}

# FFmpeg's demuxers that may read a file, and protocols that these may use. Playlists,
# session descriptions and the like would open other files and the network.
PROTOCOLS = ("pipe",)
DEMUXERS = (
    *("apng", "asf", "av1", "avi", "dv", "flv", "gif", "h263", "h264", "hevc", "ivf"),
    *("m4v", "matroska", "mjpeg", "mov", "mpeg", "mpegts", "mpegvideo", "obu", "ogg"),
    *("vc1", "yuv4mpegpipe"),
    *("bmp_pipe", "gif_pipe", "j2k_pipe", "jpeg_pipe", "jpegxl_anim", "jpegxl_pipe"),
    *("pam_pipe", "pbm_pipe", "pgm_pipe", "png_pipe", "ppm_pipe", "qoi_pipe"),
    *("tiff_pipe", "webp_pipe"),
)


@contextlib.contextmanager
def naming_failures(kinds=Exception):
    """Raises errors of PyAV in the block as UndecodableClip.

    Around calls of PyAV alone any kind: where a file contradicts itself, PyAV raises
    IndexError, ValueError and others beside the errors of FFmpeg.
    """
    try:
        yield
    except UndecodableClip:
        raise
    except av.error.ExitError as error:
        raise DecodeTimeout(
            "It waits for longer than config.loader.read_timeout_seconds."
        ) from error
    except kinds as error:
        if not isinstance(error, FFMPEG_ERRORS):
            why = f"PyAV cannot read it: {type(error).__name__}: {error}."
            raise UndecodableClip(why) from error
        why = getattr(error, "strerror", None) or error
        raise UndecodableClip(f"FFmpeg cannot decode it: {why}.") from error


@contextlib.contextmanager
def opened(data: bytes, limits: Limits = LIMITS, kind: str | None = None):
    """Yields an encoded file as a `Video`.

    Args:
        data: Encoded file.
        limits: Limits of what it may take.
        kind: "image" to read the first picture alone, and not to conceal that it is
            damaged; "video" to read all frames. None: an image if the file is a still
            picture or has one frame. Of a still picture, what follows its end is
            ignored: other pictures, a video, text.

    Raises:
        UndecodableClip: There is no video or picture, or FFmpeg fails in the block.
        DecodeTimeout, ClipTooLarge: It exceeds the limits.
    """
    limits.check_file(data)
    if picture := pictures.unsupported(data):
        raise UndecodableClip(
            f"It is {picture}, which FFmpeg cannot decode: convert it to PNG or GIF."
        )
    cpu_limit = CpuLimit(limits)
    options = limits.codec_options | {
        "protocol_whitelist": ",".join(PROTOCOLS),
        "format_whitelist": ",".join(DEMUXERS),
    }
    with naming_failures():
        try:
            container = av.open(
                io.BytesIO(data),
                format=pictures.demuxer(data),
                options=options,
                timeout=limits.read_seconds,
                **METADATA,
            )
        except av.error.ArgumentError as error:
            raise UndecodableClip(
                "It is damaged, or of a format that is not read; docs/data.md lists"
                " those that are."
            ) from error
    with naming_failures(FFMPEG_ERRORS), container:
        stream = _best_stream(container.streams)
        codec = stream.codec_context
        limits.check_frame(codec.width, codec.height)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        # Clips are decoded side by side in worker processes. libdav1d obeys the
        # count alone.
        stream.thread_type, codec.thread_count = "NONE", 1
        codec.options = limits.codec_options
        yield Video(container, stream, data, limits, cpu_limit, kind)


def kind_of(data: bytes, limits: Limits = LIMITS, name="") -> str:
    """Returns "image" for a still picture or a file of one frame, else "video".

    Args:
        data: Encoded file.
        limits: Limits of what is read.
        name: File name, if there is one: by a suffix of videos alone it is one, of any
            number of frames, as in a folder of clips.

    Raises:
        UndecodableClip: The file has no picture, or exceeds the limits.
    """
    with opened(data, limits, kind=kind_by_name(name)) as video:
        return video.kind


def kind_by_name(name) -> str | None:
    """Returns "video" for a file name with a suffix of videos alone, else None."""
    suffix = pathlib.PurePath(name).suffix.lower()
    return "video" if suffix in SUFFIXES["video"] - SUFFIXES["image"] else None


def _best_stream(streams):
    """Returns the stream that is the video or the picture: no cover, no part of one.

    Of several, it is the first of more than one frame, those marked as default first.
    """
    videos = [s for s in streams.video if not s.disposition & COVERS]
    if any(s.disposition & Disposition.dependent for s in videos):
        # The whole picture is no stream if it is in tiles; others are thumbnails.
        videos = [s for s in videos if s.disposition & Disposition.default]
        if not videos:
            raise UndecodableClip(
                "It is a picture in tiles, as phones store HEIC, which PyAV cannot "
                "join: convert it to JPEG or PNG."
            )
    if not videos:
        raise UndecodableClip(
            "It has no video stream" + (" but cover art." if streams.video else ".")
        )
    decodable = [s for s in videos if s.codec_context is not None]
    if not decodable:
        raise UndecodableClip("FFmpeg has no decoder for it.")
    # Where the container tells no number of frames, FFmpeg has counted some.
    most = streams.best("video")
    return max(
        decodable,
        key=lambda s: (
            s.frames > 1 or (s.frames == 0 and s is most),
            bool(s.disposition & Disposition.default),
        ),
    )


class Video:
    """The packets of an open file and the presentation times of its frames.

    Times are in ticks of `tick` seconds.

    Attributes:
        kind: "image", of which only the first picture is read, or "video".
        pixel_aspect: Ratio of a stored pixel's width to its height when displayed. 1 if
            the picture's longer side would change by a pixel at most, as where its size
            was rounded; and in formats of pictures, where no program heeds it.
        clock: Source of a frame's time: "pts", "dts", or "count", the frames' order.
    """

    def __init__(self, container, stream, data, limits, cpu_limit, kind):
        self.stream, self.format = stream, container.format.name
        self.tick = float(stream.time_base)
        self.limits, self.cpu_limit = limits, cpu_limit
        # Reading all packets first costs little and gives exact presentation times;
        # frame counts and durations of containers are often wrong.
        self.packets, size = [], 0
        with naming_failures():
            for packet in container.demux(stream):
                cpu_limit.check()
                if packet.size:
                    self.packets.append(packet)
                    size += packet.size
                    limits.check_packets(len(self.packets), size, data)
        if not self.packets:
            raise UndecodableClip("It has no frames.")
        still = self.format.endswith("_pipe")
        if still:  # the others are of what follows its end
            self.packets = self.packets[:1]
        self.kind = kind or ("video" if len(self.packets) > 1 else "image")
        self.pixel_aspect = fractions.Fraction(1)
        if not still and self.format not in ("gif", "apng"):
            aspect = stream.sample_aspect_ratio or self.pixel_aspect
            if abs(aspect - 1) * max(stream.width, stream.height) > 1:
                self.pixel_aspect = aspect
        self.clock = self._clock()
        # MPEG program streams lack some of the times, and FFmpeg guesses them.
        self.guesses_times = self.format == "mpeg"

    def _clock(self):
        """Returns the source of presentation times of frames that are reordered.

        "pts" of the frames; "dts" in AVI, which has no pts, of the packet that makes
        the decoder return a frame; "count" where pts only number the packets.
        """
        if not self.stream.codec_context.has_b_frames:
            return "pts"
        if self.format == "avi":
            return "dts"
        times = [p.pts for p in self.packets if p.pts is not None]
        return "count" if sorted(times) == times else "pts"

    def frames(self, start: int = 0, needed: set[int] | None = None):
        """Yields PyAV's frames in order of presentation.

        Of an image, only the first frame comes.

        Args:
            start: Index of the packet to decode from.
            needed: Presentation times in ticks; only these frames are sure to come.
                Packets after the last of them are not decoded, nor other frames to
                which no frame refers, in `SKIPPABLE` codecs.
        """
        if self.kind == "image":
            yield self._picture()
            return
        packets, codec = self.packets[start:], self.stream.codec_context
        if needed is not None:
            last = max(i for i, packet in enumerate(packets) if packet.pts in needed)
            packets = packets[: last + 1]
            if codec.name not in SKIPPABLE:
                needed = None
        codec.flush_buffers()
        codec.skip_frame = "DEFAULT"
        for packet in [*packets, None]:  # None drains the decoder
            self.cpu_limit.check()
            if needed is not None and packet is not None:
                codec.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
            yield from map(convertible, self._decoded(packet, codec))

    def _decoded(self, packet, codec):
        try:
            with naming_failures():
                return codec.decode(packet)
        except UndecodableClip as error:
            if codec.width and not isinstance(error.__cause__, REFUSALS):
                raise
            raise UndecodableClip(f"{error} {self.limits.of_unknown_size}") from error

    def _picture(self):
        """Returns the first frame, with nothing concealed that does not decode."""
        codec, options = self.stream.codec_context, self.limits.codec_options
        codec.options = options | STRICT
        try:
            return self._first_frame(codec, self.packets)
        except UndecodableClip:
            # It may have refused metadata, which it does not know or is damaged.
            whole = bytes(self.packets[0])
            pixels = pictures.without_metadata(whole)
            if pixels == whole:
                raise
        strict, lenient = (av.CodecContext.create(codec.name, "r") for _ in range(2))
        strict.options, lenient.options = options | STRICT, options
        picture = self._first_frame(strict, [av.Packet(pixels)])
        with contextlib.suppress(UndecodableClip):
            return self._first_frame(lenient, self.packets)  # with its orientation
        return picture

    def _first_frame(self, codec, packets):
        for packet in [*packets, None]:  # None drains the decoder
            self.cpu_limit.check()
            for frame in self._decoded(packet, codec):
                return convertible(frame)
        raise UndecodableClip("It has no frames.")

    def packet_times(self) -> np.ndarray | None:
        """Returns sorted presentation times of the packets; None if they lack some."""
        field = "dts" if self.clock == "dts" else "pts"
        times = [getattr(p, field) for p in self.packets]
        if not times or None in times or self.guesses_times:
            return None
        vp8 = self.stream.codec_context.name == "vp8"  # has frames that are not shown
        ticks = sorted(
            t
            for t, p in zip(times, self.packets, strict=True)
            if not p.is_discard and not (vp8 and not memoryview(p)[0] & 16)
        )
        if not ticks or not self.packets[0].is_keyframe or times[0] > ticks[0]:
            return None
        return np.array(ticks) if len({*ticks}) == len(ticks) else None

    def frame_times(self) -> np.ndarray:
        """Returns presentation times of all frames in order, by a full decode."""
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
        # Times that do not rise are replaced by sums of the durations.
        good = np.all(np.diff(times) > 0) and not self.guesses_times
        return np.array(times) if good else np.cumsum([0, *durations[:-1]])

    def timings(self) -> Iterator[tuple[np.ndarray, str]]:
        """Yields (presentation times in ticks, clock): first by packets, then decoded.

        Packets may lack them. The caller stops at those by which its frames come. An
        image has the time 0 alone.

        Raises:
            UndecodableClip: The frames came by none.
        """
        if self.kind == "image":
            yield np.zeros(1), "count"
        else:
            if (ticks := self.packet_times()) is not None:
                yield ticks, self.clock
            yield self.frame_times(), "count"
        raise UndecodableClip("Decoded again, it has fewer frames.")

    def timeline(self, ticks: np.ndarray) -> np.ndarray:
        """Returns presentation times with gaps closed.

        Recordings that were joined, and clips cut out of one, may have frames seconds
        to hours apart, between which a single frame would be shown. A step of more than
        `GAP_SECONDS` and of more than `GAP_STEPS` median steps becomes a median step.
        Other long steps are as the container tells: the frame is shown that long.
        """
        steps = np.diff(ticks)
        if len(steps) < 2:
            return ticks
        usual = np.sort(steps)[(len(steps) - 1) // 2]
        gaps = steps > max(GAP_SECONDS / self.tick, GAP_STEPS * usual)
        if not gaps.any():
            return ticks
        return ticks[0] + np.cumsum([0, *np.where(gaps, usual, steps)])

    def seconds(self, ticks: np.ndarray) -> float:
        """Returns the duration in seconds of frames with these presentation times.

        Args:
            ticks: Presentation times, of which gaps are closed first.
        """
        ticks = self.timeline(ticks)
        # The last frame lasts as long as the one before it; a single picture 1/25 s.
        last = ticks[-1] - ticks[-2] if len(ticks) > 1 else 1 / self.tick / 25
        return float(ticks[-1] - ticks[0] + last) * self.tick
