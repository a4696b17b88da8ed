"""Decoding of videos and images to uint8 frames. An image is a clip of one frame.

`opened` alone decides how a file is read: which stream is the video, whether it is an
image or a video, when its frames are shown. Preparation, verification, training and
inference all read through it, so that what one of them accepts, the others do.
"""

import contextlib
import dataclasses
import fractions
import io
from collections.abc import Callable, Hashable, Iterator, Sequence

import av
import numpy as np
from av.filter import Graph
from av.sidedata import sidedata
from av.stream import Discard, Disposition

from sparse_tube_vit.video import pictures
from sparse_tube_vit.video.limits import (
    LIMITS,
    DecodeTimeout,
    Limits,
    Stopwatch,
    UndecodableClip,
)

# Codecs that mark frames to which no other refers, so that FFmpeg can skip them. Not
# MPEG-4, where two frames may share a packet: skipping one, FFmpeg loses the other.
SKIPPABLE = ("h264", "mpeg1video", "mpeg2video")

FFMPEG_ERRORS = (av.error.FFmpegError, EOFError)
REFUSALS = (av.error.ArgumentError, av.error.MemoryError)  # of frames too large, too

# Pixel formats of 8 bits of luma and chroma in planes; "j": full range, as in JPEG.
PLANAR = {f"yuv{j}{layout}p" for j in ("", "j") for layout in (420, 422, 444)}

# Streams that FFmpeg shows as video, but that are cover art or previews of chapters.
COVERS = Disposition.attached_pic | Disposition.timed_thumbnails

# The next frame comes after a gap if it is later by so many seconds, as for ffmpeg's
# -dts_delta_threshold, and by so many times the usual step.
GAP_SECONDS, GAP_STEPS = 10, 100

# Matrices from RGB to YCbCr that FFmpeg's scaler does not convert, by their numbers in
# ITU-T H.273: of other colour models, with the coefficients of another matrix, and one
# that a filter converts.
OTHER_MODELS = {11: "YDzDx", 14: "ICtCp", 15: "IPT-PQ-C2"}
OTHER_MODELS |= {16: "YCgCo-Re", 17: "YCgCo-Ro"}
CONSTANT_LUMINANCE, BT2020, BT709, FROM_PRIMARIES = 10, 9, 1, (12, 13)
MATRIX_OF_PRIMARIES = {6: 7, 7: 7, 9: BT2020}  # 6 and 7 are of SMPTE 170M and 240M
YCGCO, YCGCO_TO_BT709 = 8, "ispace=ycgco:iprimaries=bt709:itrc=bt709:all=bt709"

# Metadata need not be UTF-8: PyAV always replaces such characters from version 19 on.
METADATA = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)

# By default FFmpeg fills a truncated picture with grey or black.
STRICT = {"err_detect": "explode"}

# Limit between a picture's sides: beyond it, scaling the short side to 224 pixels makes
# the long one thousands of pixels.
MAX_ASPECT = 20


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


@dataclasses.dataclass(frozen=True)
class Crop:
    """A rectangle of the upright picture, and the size it is scaled to, in pixels."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int

    def rescaled(self, size: tuple[int, int], other: tuple[int, int]) -> "Crop":
        """Returns this crop of a picture (height, width) for one of another size."""
        (height, width), (other_height, other_width) = size, other
        top, left = self.top * other_height // height, self.left * other_width // width
        # Rounded up, so that no crop is empty.
        bottom = -(-(self.top + self.height) * other_height // height)
        right = -(-(self.left + self.width) * other_width // width)
        return dataclasses.replace(
            self, top=top, left=left, height=bottom - top, width=right - left
        )


@dataclasses.dataclass(frozen=True)
class Orientation:
    """The storage order of a picture, relative to the upright one.

    Attributes:
        swapped: Rows are stored as columns.
        flipped: The rows of the upright picture are reversed.
        mirrored: The columns of the upright picture are reversed.
    """

    swapped: bool = False
    flipped: bool = False
    mirrored: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """Returns the orientation by the frame's display matrix, in quarter turns."""
        matrix = _display_matrix(frame)
        if matrix is None:
            return cls()
        (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3)
        # Upright x = a x + c y of the stored picture, upright y = b x + d y.
        swapped = max(abs(a), abs(d)) < max(abs(b), abs(c))
        return cls(swapped, (b if swapped else d) < 0, (c if swapped else a) < 0)

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """Returns a view of a stored picture (H, W, 3) as upright."""
        if self.swapped:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]

    def stored(self, crop: Crop, height: int, width: int) -> Crop:
        """Returns a crop of the upright picture (height, width) on the stored one."""
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
        return video.attempt(
            lambda ticks, clock: _decode_at(video, ticks, times, to_rgb, clock)
        )


@contextlib.contextmanager
def naming_failures(kinds=Exception):
    """Names errors of PyAV in the block as an undecodable clip.

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
    stopwatch = Stopwatch(limits)
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
        yield Video(container, stream, data, limits, stopwatch, kind)


def kind_of(data: bytes, limits: Limits = LIMITS) -> str:
    """Returns "image" for a still picture or a file of one frame, else "video".

    Raises:
        UndecodableClip: The file has no picture, or exceeds the limits.
    """
    with opened(data, limits) as video:
        return video.kind


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
    """

    def __init__(self, container, stream, data, limits, stopwatch, kind):
        self.stream, self.format = stream, container.format.name
        self.tick = float(stream.time_base)
        self.limits, self.stopwatch = limits, stopwatch
        # Reading all packets first costs little and gives exact presentation times;
        # frame counts and durations of containers are often wrong.
        self.packets, size = [], 0
        with naming_failures():
            for packet in container.demux(stream):
                stopwatch.check()
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
        self.guessed = self.format == "mpeg"

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
            self.stopwatch.check()
            if needed is not None and packet is not None:
                codec.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
            yield from map(_convertible, self._decoded(packet, codec))

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
            self.stopwatch.check()
            for frame in self._decoded(packet, codec):
                return _convertible(frame)
        raise UndecodableClip("It has no frames.")

    def packet_times(self) -> np.ndarray | None:
        """Returns sorted presentation times of the packets; None if they lack some."""
        field = "dts" if self.clock == "dts" else "pts"
        times = [getattr(p, field) for p in self.packets]
        if not times or None in times or self.guessed:
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
        good = np.all(np.diff(times) > 0) and not self.guessed
        return np.array(times) if good else np.cumsum([0, *durations[:-1]])

    def attempt(self, function: Callable[[np.ndarray, str], object]):
        """Returns `function(presentation times, clock)`, by packets or a full decode.

        An image has the time 0.

        Args:
            function: Returns None where the frames do not come at these times.

        Raises:
            UndecodableClip: It returns None for those of a full decode too.
        """
        if self.kind == "image":
            return function(np.zeros(1), "count")
        ticks, result = self.packet_times(), None
        if ticks is not None:
            result = function(ticks, self.clock)
        if result is None:
            result = function(self.frame_times(), "count")
        if result is None:
            raise UndecodableClip("Decoded again, it has fewer frames.")
        return result

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


def decode_clips(
    data: bytes,
    clips: Callable[[float], Sequence[tuple[Hashable, np.ndarray]]],
    crop: Callable[[int, int], Crop],
    limits: Limits = LIMITS,
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

    Yields:
        Key and frames (T, out_height, out_width, 3) of each clip, as `decode` gives.

    Raises:
        UndecodableClip: As `decode`, after the clips before the damage; or it is an
            image.
        DecodeTimeout, ClipTooLarge: It exceeds the limits.
    """
    with opened(data, limits) as video:
        if video.kind == "image":
            raise UndecodableClip("It is an image: clips in time are of videos.")
        to_rgb, done = ToRgb(video, crop), 0
        for attempt in (_by_packets, _by_count):
            if (found := attempt(video)) is None:
                continue
            ticks, clock = found
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
        raise UndecodableClip("Decoded again, it has fewer frames.")


def _by_packets(video):
    """Returns (ticks, clock) as the container tells; None where it does not."""
    ticks = video.packet_times()
    return None if ticks is None else (ticks, video.clock)


def _by_count(video):
    return video.frame_times(), "count"


def _far_apart(video, ticks, clock, clips):
    """Splits clips (key, indices) where decoding is to start again at a key frame.

    Each start searches all packets: there are at most a hundred.
    """
    if clock != "pts":  # which alone can start elsewhere
        return [clips] if clips else []
    keys = np.array(sorted(p.pts for p in video.packets if p.is_keyframe))
    parts, last = [], None
    for key, indices in clips:
        first = indices.min()
        if last is None or (
            first - last > len(ticks) / 100
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
    missing, last, clip = {*wanted.tolist()}, wanted.max(), None
    for i, frame in frames_by_index(video, ticks, wanted, clock):
        if i in missing:
            picture = to_rgb(frame)
            if clip is None:
                clip = np.empty((len(wanted), *picture.shape), np.uint8)
            # Copied at once, so that the next picture reuses the memory in the cache.
            clip[wanted == i] = picture
            missing.remove(i)
        if i >= last:
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


class ToRgb:
    """Crops, scales and converts frames to upright RGB, uint8 (H, W, 3).

    Args:
        video: The open file.
        choose_crop: As `crop` of `decode`.
    """

    def __init__(self, video: Video, choose_crop: Callable[[int, int], Crop]):
        self.time_base, self.pixel_aspect = video.stream.time_base, video.pixel_aspect
        self.choose_crop, self.layout = choose_crop, None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns the crop of a frame, in memory that the next call may reuse.

        Raises:
            UndecodableClip: The picture is too long, or changes its size.
        """
        layout = (frame.width, frame.height, frame.format.name)
        if layout != self.layout:  # the first frame, or a change within the stream
            self._configure(frame)
            self.layout = layout
        self.graph.vpush(frame)
        plane = self.graph.vpull().planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # padded
        picture = rows[:, : plane.width * 3].reshape(plane.height, plane.width, 3)
        return self.orientation.upright(picture)

    def _configure(self, frame):
        self.orientation = Orientation.of(frame)
        displayed = _in_square_pixels(frame, self.pixel_aspect)
        upright = displayed[:: -1 if self.orientation.swapped else 1]
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
        c = c.rescaled(displayed, (frame.height, frame.width))
        # Pixels that share their chroma must stay together.
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
        )
        self.graph = filter_graph(frame, self.time_base, filters)


def _in_square_pixels(frame, pixel_aspect):
    """Returns height and width of a stored picture as displayed, never smaller."""
    if pixel_aspect > 1:
        return frame.height, round(frame.width * pixel_aspect)
    return round(frame.height / pixel_aspect), frame.width


def _convertible(frame):
    """Returns a frame with a matrix from RGB to YCbCr that FFmpeg converts."""
    matrix = int(frame.colorspace)
    if matrix in OTHER_MODELS:
        raise UndecodableClip(
            f"Its colours are stored as {OTHER_MODELS[matrix]}, which FFmpeg cannot "
            "convert to RGB."
        )
    if matrix == CONSTANT_LUMINANCE:
        frame.colorspace = BT2020
    if matrix in FROM_PRIMARIES:
        primaries = int(frame.color_primaries)
        frame.colorspace = MATRIX_OF_PRIMARIES.get(primaries, BT709)
    return frame


def filter_graph(frame: av.VideoFrame, time_base, filters) -> Graph:
    """Returns a graph that filters frames of the layout of `frame`, on one thread.

    Args:
        frame: A frame.
        time_base: Seconds a tick of the frames' times, a fraction.
        filters: (name, options) of FFmpeg's filters, one after the other.
    """
    graph = Graph()
    # By default it starts a thread per core, which takes 5 times as long while the
    # cores are busy training.
    graph.threads = 1
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(time_base),
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    if int(frame.colorspace) == YCGCO:
        filters = [("colorspace", YCGCO_TO_BT709), *filters]
    nodes = [graph.add(*name_and_options) for name_and_options in filters]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    return graph


def _display_matrix(frame):
    """Returns the bytes of a frame's display matrix, or None if it has none."""
    kind = sidedata.Type.DISPLAYMATRIX.value
    if not _filtered(frame, [("sidedata", f"mode=select:type={kind}")]):
        return None
    # Without other side data: PyAV fails on kinds that it does not know, such as EXIF,
    # and frees the metadata of others twice, as of a PNG's colour profile.
    others = {*range(len(sidedata.Type) + 8)} - {kind}
    alone = _filtered(frame, [("sidedata", f"mode=delete:type={i}") for i in others])
    # Not `frame.side_data`: it would be in a reference cycle with the frame, which then
    # stays in memory, gigabytes of them, until Python looks for garbage.
    return sidedata.SideDataContainer(alone).get("DISPLAYMATRIX")


def _filtered(frame, filters):
    """Returns a frame after FFmpeg's filters, None if they drop it."""
    graph = filter_graph(frame, "1/25", filters)
    graph.vpush(frame)
    try:
        return graph.vpull()
    except av.error.BlockingIOError:
        return None


#: File name suffixes by kind; a GIF may be either.
SUFFIXES = {
    "image": {
        *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".jxl"),
        *(".mpo", ".png", ".tif", ".tiff", ".webp"),
    },
    "video": {
        *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
    },
}
