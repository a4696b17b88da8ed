"""Opening of files: which stream is the video, stills, and gaps in time."""

import dataclasses
import fractions
import io
import struct

import av
import numpy as np
import pytest
from av.stream import Disposition

from sparse_tube_vit.video import opening
from sparse_tube_vit.video.decode import decode
from sparse_tube_vit.video.limits import UndecodableClip
from sparse_tube_vit.video.opening import kind_of, opened
from tests.video.written import (
    SIZE,
    assert_are,
    at,
    frames,
    full_decode,
    middles,
    moving,
    numbered,
    numbers,
    remux,
    whole,
    write_video,
)


def test_an_image_is_a_clip_of_one_frame():
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt = *SIZE, "rgb24"
    codec.time_base = fractions.Fraction(1, 25)
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    png = b"".join(map(bytes, codec.encode(frame) + codec.encode(None)))
    clip = frames(png, at(0.0), whole)
    np.testing.assert_array_equal(clip[0], picture)


@pytest.mark.parametrize(
    "suffix, container, codec",
    [
        (".h264", "h264", "libx264"),
        (".hevc", "hevc", "libx265"),
        (".obu", "obu", "libsvtav1"),
    ],
)
def test_a_bare_stream_is_a_video_by_its_content_and_its_suffix(
    suffix, container, codec
):
    stream = write_video(numbered(5), 25, container, codec)
    assert kind_of(stream) == "video" and suffix in opening.SUFFIXES["video"]
    _, shown = decode(stream, at(*middles(5)), whole)
    assert len({*shown}) == 5


def test_of_a_stream_of_jpegs_the_first_is_read():
    stream = write_video(numbered(5), 25, "mjpeg", "mjpeg", pix_fmt="yuvj420p")
    assert kind_of(stream) == "image"
    assert numbers(frames(stream, at(0.0), whole)) == [0]
    assert not {".mjpeg", ".mjpg"} & opening.SUFFIXES["video"]  # of one frame each


@pytest.mark.parametrize(
    "data", [b"", b"not a video at all" * 99], ids=["empty", "text"]
)
def test_what_is_no_video_is_a_named_error(data):
    with pytest.raises(UndecodableClip):
        decode(data, at(0.0), whole)


def test_a_tag_that_is_not_utf8_does_no_harm():
    video = write_video(numbered(4), 25, "avi", "mpeg4", title="Cafe Zoo")
    tagged = video.replace(b"Cafe Zoo", b"Caf\xe9 Zoo")
    assert tagged != video
    assert numbers(frames(tagged, at(0.0), whole)) == [0]


def with_cover(video, first, sound=False):
    """An mp4 of a video, or of sound alone if it is None, tagged with cover art."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        if sound:
            audio = out.add_stream("aac", rate=44100)
        if video:
            source = av.open(io.BytesIO(video))
            copied = out.add_stream_from_template(source.streams.video[0])
        cover = out.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = 80, 80, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        if sound:
            silence = np.zeros((1, 4096), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
            frame.sample_rate = 44100
            out.mux([*audio.encode(frame), *audio.encode(None)])
        white = np.full((80, 80, 3), 255, np.uint8)
        out.mux(cover.encode(av.VideoFrame.from_ndarray(white, format="rgb24")))
        out.mux(cover.encode(None))
        if video:
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = copied
                    out.mux(packet)
    data = file.getvalue()
    if first:  # tags before the tracks: FFmpeg then numbers the cover's stream 0
        trak, udta = data.index(b"trak") - 4, data.index(b"udta") - 4
        (size,) = struct.unpack_from(">I", data, udta)
        tags, rest = data[udta : udta + size], data[udta + size :]
        data = data[:trak] + tags + data[trak:udta] + rest
    return data


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_cover_art_is_not_the_video(video, first, sound):
    tagged = with_cover(video, first, sound)
    with av.open(io.BytesIO(tagged)) as container:
        (cover,) = [s for s in container.streams if s.disposition & 1024]
        assert (cover.index == 0) == first
    assert kind_of(tagged) == "video"
    expected = frames(video, at(*middles(40)), whole)
    np.testing.assert_array_equal(frames(tagged, at(*middles(40)), whole), expected)


def test_a_file_of_one_frame_is_a_video_by_its_suffix():
    one = write_video(numbered(1), 25)
    assert kind_of(one) == "image"
    assert kind_of(one, name="gs://b/clip.MP4") == "video"
    assert kind_of(one, name="clip.gif") == kind_of(one, name="clip") == "image"


@pytest.mark.parametrize("first", [False, True])
def test_sound_with_cover_art_is_no_clip(first):
    tagged = with_cover(None, first, sound=True)
    for read in (kind_of, lambda data: decode(data, at(0.0), whole)):
        with pytest.raises(UndecodableClip, match="no video stream but cover art"):
            read(tagged)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_of_several_videos_the_first_of_more_than_one_frame_is_read(container):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        streams = [out.add_stream("libx264", rate=25) for _ in range(3)]
        for stream, height in zip(streams, (96, 48, 32), strict=True):
            stream.height, stream.width, stream.pix_fmt = height, 64, "yuv420p"
        packets = []  # encoded before the first is written, as the header needs
        for stream, n in zip(streams, (1, 20, 20), strict=True):
            for i in range(n):
                grey = np.full((stream.height, 64, 3), 5 * i, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
                frame.pts = i
                packets += stream.encode(frame)
            packets += stream.encode(None)
        out.mux(packets)
    clip = frames(file.getvalue(), at(*middles(20)), whole)
    assert clip.shape == (20, 48, 64, 3) and numbers(clip) == list(range(20))


def test_tiles_of_a_picture_are_not_the_picture():
    """Nor is its thumbnail; whereas a picture may have one, and an alpha channel."""

    @dataclasses.dataclass
    class Stream:
        disposition: Disposition
        codec_context: object = True
        frames: int = 1

    class Streams:
        def __init__(self, *dispositions):
            self.video = [Stream(Disposition(d)) for d in dispositions]

        def best(self, kind):
            return self.video[-1]

    tile, thumbnail, main = Disposition.dependent, 0, Disposition.default
    for tiled in ((tile, tile), (tile, tile, thumbnail), (thumbnail, tile)):
        with pytest.raises(UndecodableClip, match="in tiles.*convert it"):
            opening._best_stream(Streams(*tiled))
    for whole_picture in ((main, thumbnail), (thumbnail, main), (tile, tile, main)):
        best = opening._best_stream(Streams(*whole_picture))
        assert best.disposition == Disposition.default


def shifted(first, milliseconds):
    """A change of packets for `remux`: from frame `first` on, all come later."""

    def change(i, packet):
        packet.pts = packet.dts = 40 * i + milliseconds * (i >= first)
        packet.time_base = fractions.Fraction(1, 1000)

    return change


@pytest.mark.parametrize("first", [1, 12, 23])
@pytest.mark.parametrize("seconds", [20, 3600, 80_000])
@pytest.mark.parametrize("container", ["mpegts", "matroska", "mp4"])
def test_a_gap_in_time_is_closed(container, seconds, first):
    video = write_video(moving(24), 25, container, b_frames=0)
    regular = remux(video, container, shifted(0, 0))
    gap = remux(video, container, shifted(first, 1000 * seconds))
    with av.open(io.BytesIO(gap)) as file:
        times = [p.pts * p.time_base for p in file.demux(video=0) if p.size]
    assert max(np.diff(times)) > seconds
    durations = []

    def times(duration):
        durations.append(duration)
        return np.linspace(0, duration, 60)

    (ours, shown), (reference, expected) = (
        decode(data, times, whole) for data in (gap, regular)
    )
    assert durations == [pytest.approx(24 / 25), pytest.approx(24 / 25)]
    np.testing.assert_array_equal(ours, reference)
    np.testing.assert_allclose(shown, expected, atol=1e-9)
    with opened(gap) as video:  # as the manifest has it
        assert video.seconds(video.packet_times()) == pytest.approx(24 / 25)


@pytest.mark.parametrize("steps", [[40, 40, 9_900, 40], [400, 400, 30_000, 400]])
def test_a_frame_that_is_shown_long_is_no_gap(steps):
    """Of less than ten seconds, or as slides are."""
    times = np.cumsum([0, *steps])
    video = write_video(numbered(5), container="matroska", times=times.tolist())
    clip, shown = decode(video, at((times[3] - 20) / 1000), whole)
    assert numbers(clip) == [2] and shown == pytest.approx([times[2] / 1000])


def test_odd_times_of_people(real_data):
    """Joined and damaged files give the frames of an ordinary one."""
    folder = real_data / "odd_inputs" / "times"
    if not folder.exists():
        pytest.skip(f"{folder} is absent")
    for name in ("concat_gap_20s.ts", "concat_gap_93600s.ts", "concat_back_20s.ts"):
        data = (folder / name).read_bytes()
        clip, shown = decode(data, lambda d: np.linspace(0, d, 180), whole)
        assert shown[-1] == pytest.approx(89 / 30) and len({*shown}) == 90
        starts = np.flatnonzero(np.diff(shown, prepend=-1))
        assert_are(clip[starts], full_decode(data))
    for name in ("first_frame_early.mp4", "last_frame_late.mp4"):
        data = (folder / name).read_bytes()
        _, shown = decode(data, lambda d: np.linspace(0, d, 180), whole)
        np.testing.assert_allclose(np.unique(shown), np.arange(90) / 30, atol=1e-3)
