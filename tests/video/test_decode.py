import contextlib
import dataclasses
import fractions
import io
import itertools
import json
import math
import resource
import struct

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image, ImageOps

from sparse_tube_vit.video import decode as module
from sparse_tube_vit.video import limits
from sparse_tube_vit.video.decode import (
    Crop,
    Orientation,
    UndecodableClip,
    decode,
    kind_of,
    opened,
)
from sparse_tube_vit.video.limits import LIMITS, DecodeTimeout, Limits
from sparse_tube_vit.video.transcode import Transcode

SIZE = (48, 64)
VPX = {"crf": "4", "b": "2M", "auto-alt-ref": "1", "lag-in-frames": "16"}
FINE = {
    "libx264": {"crf": "1"},
    "libx265": {"crf": "4"},
    "libsvtav1": {"crf": "4"},
    "libvpx": VPX,
    "libvpx-vp9": VPX,
}
X265 = "log-level=none:pools=none:frame-threads=1:keyint=8"


def write_video(
    frames,
    rate=25,
    container="mp4",
    codec="libx264",
    pix_fmt="yuv420p",
    title="",
    b_frames=None,
    times=None,
    tags=None,
    **options,
):
    """An encoded file; near-lossless, so that frames can be told apart.

    `times` are in milliseconds, `tags` attributes of the stream.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        options = FINE.get(codec, {"qmin": "1", "qmax": "2"}) | options
        stream = out.add_stream(codec, rate=fractions.Fraction(rate), options=options)
        if not isinstance(frames[0], av.VideoFrame):
            frames = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in frames]
        stream.height, stream.width = frames[0].height, frames[0].width
        stream.pix_fmt = pix_fmt
        stream.gop_size, stream.codec_context.thread_count = 8, 1
        if b_frames is not None:
            stream.max_b_frames = b_frames
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        out.metadata["title"] = title
        for i, frame in enumerate(frames):
            if times is not None:
                frame.pts, frame.time_base = times[i], fractions.Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def numbered(n):
    """Grey frames (n, 48, 64, 3) whose brightness tells their number."""
    return (
        np.repeat(np.arange(n), 48 * 64 * 3).reshape(n, *SIZE, 3).astype(np.uint8) * 5
    )


def numbers(clip):
    return (clip.mean(axis=(1, 2, 3)) / 5).round().astype(int).tolist()


def moving(n):
    """Frames (n, 48, 64, 3) of a soft pattern that moves, each like no other."""
    y, x, t = np.mgrid[:48, :64, :n].astype(float)
    waves = [np.sin(x / 5 + 0.8 * t), np.sin(y / 4 - 0.5 * t), np.sin((x + y) / 9 + t)]
    return (128 + 90 * np.stack(waves, -1)).astype(np.uint8).transpose(2, 0, 1, 3)


def full_decode(data):
    """All frames, upright, as PyAV's own conversion gives them."""
    with av.open(io.BytesIO(data)) as container:
        return [
            np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            for frame in container.decode(video=0)
        ]


def frames(*args):
    return decode(*args)[0]


def whole(height, width):
    return Crop(0, 0, height, width, height, width)


def at(*times):
    return lambda duration: np.array(times)


def middles(n, rate=25):
    """The middle of every frame's time on show."""
    return (np.arange(n) + 0.5) / float(fractions.Fraction(rate))


def assert_are(clip, reference, first=0):
    """Frame by frame the reference's from `first` on, and no other."""
    for i, ours in enumerate(clip, first):
        errors = [np.abs(ours.astype(int) - other).mean() for other in reference]
        assert np.argmin(errors) == i and errors[i] < 4, (i, errors)


@pytest.fixture(scope="module")
def video():
    return write_video(numbered(40))


def test_duration_and_frames_on_show(video):
    seen = []

    def times(duration):
        seen.append(duration)
        return np.array([0, 0.039, 0.04, 0.5, 1.0, 1.5599, 99.0])

    clip, shown = decode(video, times, whole)
    assert seen == [pytest.approx(40 / 25)]
    assert numbers(clip) == [0, 0, 1, 12, 25, 38, 39]
    np.testing.assert_allclose(shown, [0, 0, 0.04, 0.48, 1.0, 1.52, 1.56])
    assert clip.shape == (7, *SIZE, 3) and clip.dtype == np.uint8


def test_times_may_come_in_any_order_and_again(video):
    assert numbers(frames(video, at(1.0, 0.2, 1.0, 0.0), whole)) == [25, 5, 25, 0]


@pytest.mark.parametrize(
    "rate",
    ["30000/1001", "30", "12", "24000/1001", "45000/1499"],
    ids=lambda r: r.replace("/", "_"),
)
def test_every_frame_is_on_show_at_its_time(rate):
    video = write_video(numbered(30), rate)
    assert numbers(frames(video, at(*middles(30, rate)), whole)) == list(range(30))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_variable_rate_goes_by_the_clock(container):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.integers(5, 200, 40))
    video = write_video(numbered(40), container=container, times=times.tolist())
    asked = np.sort(rng.uniform(0, times[-1] - times[0], 200)).round()
    on_show = [np.flatnonzero(times - times[0] <= t)[-1] for t in asked]
    clip, shown = decode(video, at(*asked / 1000), whole)
    assert numbers(clip) == on_show
    np.testing.assert_allclose(shown, (times - times[0])[on_show] / 1000)


@pytest.mark.parametrize("codec", ["libx264", "mpeg1video", "mpeg2video"])
def test_frames_that_nothing_needs_are_not_decoded(codec):
    """But those asked for are the same as after a full decode."""
    data = write_video(moving(24), 25, "matroska", codec, b_frames=2)
    with opened(data) as video:
        every = {frame.pts: frame.to_ndarray() for frame in video.frames()}
        shown = video.packet_times().tolist()
        needed = {shown[3], shown[4], shown[13]}
        some = {frame.pts: frame.to_ndarray() for frame in video.frames(0, needed)}
    assert len(every) == 24 and needed <= some.keys()
    assert len({*shown[:14]} - some.keys()) >= 2 and not {*shown[17:]} & some.keys()
    for time, picture in some.items():
        np.testing.assert_array_equal(picture, every[time])


# Container, codec, and options of `write_video`. B frames are stored in another order
# than shown; an open group of pictures has some before the key frame that they need;
# intra refresh has key frames that are none; MPEG-PS and AVI lack presentation times.
KINDS = {
    "h264 mkv open": ("matroska", "libx264", {"x264-params": "open-gop=1:bframes=3"}),
    "h264 ts open": ("mpegts", "libx264", {"x264-params": "open-gop=1:bframes=3"}),
    "h264 mp4 refresh": ("mp4", "libx264", {"x264-params": "intra-refresh=1"}),
    "h264 ts refresh": ("mpegts", "libx264", {"x264-params": "intra-refresh=1"}),
    "h264 avi": ("avi", "libx264", {"b_frames": 3}),
    "h264 flv": ("flv", "libx264", {}),
    "h264 4:4:4": ("mov", "libx264", {"pix_fmt": "yuv444p"}),
    "h264 10 bit": ("matroska", "libx264", {"pix_fmt": "yuv420p10le"}),
    "h264 interlaced": ("mpegts", "libx264", {"x264-params": "interlaced=1"}),
    "h264 no container": ("h264", "libx264", {}),
    "hevc mp4": ("mp4", "libx265", {"x265-params": X265}),
    "hevc ts open": (
        "mpegts",
        "libx265",
        {"x265-params": f"{X265}:open-gop=1:bframes=4"},
    ),
    "hevc 10 bit": (
        "matroska",
        "libx265",
        {"x265-params": X265, "pix_fmt": "yuv420p10le"},
    ),
    "av1 mp4": ("mp4", "libsvtav1", {"preset": "12"}),
    "av1 webm 10 bit": (
        "webm",
        "libsvtav1",
        {"preset": "12", "pix_fmt": "yuv420p10le"},
    ),
    "vp8 webm": ("webm", "libvpx", {}),
    "vp9 webm": ("webm", "libvpx-vp9", {}),
    "mpeg1 mpg": ("mpeg", "mpeg1video", {"b_frames": 2}),
    "mpeg2 mpg": ("mpeg", "mpeg2video", {"b_frames": 2}),
    "mpeg2 mpg interlaced": ("mpeg", "mpeg2video", {"flags": "+ildct+ilme"}),
    "mpeg2 ts": ("mpegts", "mpeg2video", {"b_frames": 2, "pix_fmt": "yuv422p"}),
    "mpeg2 mkv": ("matroska", "mpeg2video", {"b_frames": 2}),
    "mpeg2 avi": ("avi", "mpeg2video", {"b_frames": 2}),
    "mpeg4 mp4": ("mp4", "mpeg4", {"b_frames": 2}),
    "mpeg4 avi": ("avi", "mpeg4", {}),
    "mpeg4 avi b": ("avi", "mpeg4", {"b_frames": 2}),
    "wmv": ("asf", "wmv2", {}),
    "mjpeg mov": ("mov", "mjpeg", {"pix_fmt": "yuvj422p"}),
    "gif": ("gif", "gif", {"pix_fmt": "rgb8"}),
    "apng": ("apng", "apng", {"pix_fmt": "rgb24"}),
}


# Packets of these do not tell when frames are shown, or not where to start.
UNCLEAR = ("h264 no container", "mpeg1 mpg", "mpeg2 mpg", "mpeg2 mpg interlaced")
UNCLEAR += ("h264 mp4 refresh", "h264 ts refresh")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_frames_of_a_full_decode_from_any_start(kind, monkeypatch):
    if kind not in UNCLEAR:  # they must do without a full decode of ours
        monkeypatch.setattr(module.Video, "frame_times", None)
    container, codec, options = KINDS[kind]
    n, scene = 24, moving(24)
    if "interlaced" in kind:  # PyAV gives colours to each field, we to the picture
        scene = scene[..., :1].repeat(3, axis=-1)
    video = write_video(scene, 25, container, codec, **options)
    reference = full_decode(video)
    assert len(reference) == n
    every = frames(video, at(*middles(n)), whole)
    assert_are(every, reference)
    for first in range(n):
        wanted = sorted({first, min(first + 1, n - 1), min(first + 6, n - 1)})
        late = frames(video, at(*middles(n)[wanted]), whole)
        np.testing.assert_array_equal(late, every[wanted])


def remux(video, container, change, packets=slice(None)):
    """The packets of a video, changed, in a new file."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(video)) as source,
        av.open(file, "w", format=container) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        stored = [packet for packet in source.demux(video=0) if packet.size]
        for i, packet in enumerate(stored[packets]):
            change(i, packet)
            packet.stream = stream
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_a_clip_cut_before_its_first_key_frame(container):
    video = write_video(moving(24), 25, container, b_frames=2)
    video = remux(video, container, lambda i, packet: None, slice(3, None))
    reference = full_decode(video)
    assert 10 < len(reference) < 24
    times = np.arange(0, len(reference) / 25, 0.01)
    clip, shown = decode(video, at(*times), whole)
    starts = np.flatnonzero(np.diff(shown, prepend=-1))
    assert_are(clip[starts], reference)
    for start in starts:
        (alone,) = frames(video, at(shown[start] + 0.02), whole)
        np.testing.assert_array_equal(alone, clip[start])


def count_packets(i, packet):
    packet.pts = packet.dts = 40 * i
    packet.time_base = fractions.Fraction(1, 1000)


def call_all_key_frames(i, packet):
    packet.is_keyframe = True


def give_two_one_time(i, packet):
    packet.pts = packet.dts = 40 * (i - (i == 5))
    packet.time_base = fractions.Fraction(1, 1000)


@pytest.mark.parametrize(
    "container, codec, b_frames, change",
    [
        ("matroska", "libx264", 3, count_packets),
        ("matroska", "mpeg4", 1, count_packets),
        ("mp4", "mpeg4", 0, call_all_key_frames),
        ("mp4", "libx264", 0, call_all_key_frames),
        ("matroska", "mpeg4", 0, give_two_one_time),
    ],
)
def test_containers_that_tell_less_than_the_truth(container, codec, b_frames, change):
    video = write_video(moving(24), 25, container, codec, b_frames=b_frames)
    video = remux(video, container, change)
    reference = full_decode(video)
    assert_are(frames(video, at(*middles(24)), whole), reference)
    for i in range(24):
        assert_are(frames(video, at(middles(24)[i]), whole), reference, i)


def swap_two_times(i, packet):
    packet.pts, packet.dts = 40 * {5: 6, 6: 5}.get(i, i), 40 * (i - 1)
    packet.time_base = fractions.Fraction(1, 1000)


def test_frames_that_come_in_another_order_than_their_times():
    video = write_video(moving(24), 25, "matroska", "mpeg4", b_frames=0)
    video = remux(video, "matroska", swap_two_times)
    assert_are(frames(video, at(*middles(24)), whole), full_decode(video))


@pytest.mark.parametrize(
    "height, width, gaps", [(48, 64, {0, 3600, 7200}), (16, 16, {3600, 7200})]
)
def test_several_frames_in_a_packet_of_a_program_stream(height, width, gaps):
    """FFmpeg guesses their times, in units of 1/90000 s."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (40, 6, 8, 3)).astype(np.uint8)
    blocks[rng.random(40) < 0.5] = 90
    scene = blocks.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    options = {"b_frames": 0, "qmin": "4", "qmax": "4"}
    video = write_video(scene, 25, "mpeg", "mpeg1video", **options)
    with av.open(io.BytesIO(video)) as container:
        guessed = sorted(p.pts for p in container.demux(video=0) if p.size)
    assert {*np.diff(guessed)} == gaps
    reference = full_decode(video)
    assert len(reference) == 40
    for i in range(40):
        (ours,) = frames(video, at(middles(40)[i]), whole)
        np.testing.assert_allclose(ours, reference[i], atol=1)


def with_edits(mp4, *edits):
    """The same media under another edit list: (start, frames), in frames of 1/25 s."""
    entries = [(1000 // 25 * n, (start + 2) * 512, 1, 0) for start, n in edits]
    body = b"".join(struct.pack(">Iihh", *entry) for entry in entries)
    body = struct.pack(">4sII", b"elst", 0, len(edits)) + body
    places = [mp4.index(name) - 4 for name in (b"moov", b"trak", b"edts", b"elst")]
    (old,) = struct.unpack_from(">I", mp4, places[-1])
    edited = bytearray(mp4[: places[-1]] + struct.pack(">I", len(body) + 4) + body)
    edited += mp4[places[-1] + old :]
    for place in places[:-1]:
        (size,) = struct.unpack_from(">I", edited, place)
        struct.pack_into(">I", edited, place, size + len(body) + 4 - old)
    return bytes(edited)


@pytest.mark.parametrize(
    "edits", [[(3, 12)], [(3, 8), (20, 8)], [(20, 8), (3, 8)], [(5, 9), (5, 9)]]
)
def test_edit_lists(edits):
    """What is cut, moved or shown twice; FFmpeg lets a frame more or less through."""
    video = with_edits(write_video(moving(40), b_frames=2), *edits)
    reference = full_decode(video)
    n = sum(n for _, n in edits)
    assert n - 2 <= len(reference) <= n + 4
    clip, shown = decode(video, lambda d: np.arange(0, d, 0.01), whole)
    starts = np.flatnonzero(np.diff(shown, prepend=-1))
    assert len(starts) == len(reference)
    for i, frame in enumerate(reference):
        np.testing.assert_allclose(clip[starts[i]].astype(int), frame, atol=1)
    for start in starts:
        (alone,) = frames(video, at(shown[start] + 0.02), whole)
        np.testing.assert_array_equal(alone, clip[start])


def mpeg4_avi(packed, dropped):
    """MPEG-4 as DivX and XviD store it, with a placeholder where a frame is dropped.

    If packed, B frames lie in one packet with the frame that they are shown before.
    """
    codec = av.CodecContext.create("mpeg4", "w")
    codec.height, codec.width, codec.pix_fmt = *SIZE, "yuv420p"
    codec.time_base, codec.gop_size = fractions.Fraction(1, 25), 8
    codec.max_b_frames, codec.thread_count = int(packed), 1
    codec.options = {"qmin": "1", "qmax": "2"}
    stored = []
    for i, picture in enumerate(moving(24)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = i
        stored += codec.encode(frame)
    stored += codec.encode(None)
    placeholder = bytes([0, 0, 1, 0xB6, 0x50, 0x4F])  # a P frame that is not coded
    packets = []
    for packet, following in itertools.pairwise([*stored, None]):
        if packets and packets[-1] is None:
            packets[-1] = placeholder
        elif packed and following is not None and following.pts < packet.pts:
            packets += [bytes(packet) + bytes(following), None]
        else:
            packets.append(bytes(packet))
    if packed:  # as its encoder would have signed it
        start = packets[0].index(b"\0\0\1\xb2")
        end = packets[0].index(b"\0\0\1", start + 4)
        signed = b"\0\0\1\xb2DivX503b1393p" + packets[0][end:]
        packets[0] = packets[0][:start] + signed
    for place in dropped:
        packets.insert(place, placeholder)
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for i, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, fractions.Fraction(1, 25)
            packet.pts = packet.dts = i
            packet.is_keyframe = data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 0
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    "packed, dropped, slots",
    [
        (False, (5, 13, 13), [*range(5), *range(6, 13), *range(15, 27)]),
        (True, (), range(24)),
        # The frame before one that is dropped leaves the decoder late.
        (True, (7,), [*range(6), *range(7, 25)]),
    ],
    ids=["dropped frames", "packed B frames", "both"],
)
def test_mpeg4_in_avi_as_divx_and_xvid_store_it(packed, dropped, slots):
    video = mpeg4_avi(packed, dropped)
    reference = full_decode(video)
    assert len(reference) == 24
    slots = np.array(slots)
    assert_are(frames(video, at(*(slots + 0.5) / 25), whole), reference)
    for first in range(slots[-1]):
        # Of a frame that was dropped, the one before is shown.
        on_show = np.searchsorted(slots, first, side="right") - 1
        assert_are(frames(video, at((first + 0.5) / 25), whole), reference, on_show)


def test_vp8_frames_that_are_only_referred_to_are_no_frames(monkeypatch):
    video = write_video(moving(24), 25, "webm", "libvpx")
    with av.open(io.BytesIO(video)) as container:
        payloads = [bytes(p) for p in container.demux(video=0) if p.size]
    assert video.count(payloads[5]) == 1
    hidden = bytes([payloads[5][0] & ~16]) + payloads[5][1:]
    video = video.replace(payloads[5], hidden)
    reference = full_decode(video)
    assert len(reference) == 23
    monkeypatch.setattr(module.Video, "frame_times", None)  # no need to look at all
    clip = frames(video, at(*middles(24)), whole)
    assert_are(np.delete(clip, 5, axis=0), reference)
    np.testing.assert_array_equal(clip[5], clip[4])


def test_a_crop_takes_colours_and_lightness_from_one_place():
    """Where two by two pixels share a colour, it moves a pixel up or left for that."""
    (picture,) = full_decode(video := write_video(moving(1)))
    for top, left in itertools.product((0, 3, 8), (2, 5)):
        crop = Crop(top, left, 20, 22, 20, 22)
        (part,) = frames(video, at(0.0), lambda h, w, crop=crop: crop)
        top, left = top // 2 * 2, left // 2 * 2
        expected = picture[top : top + 20, left : left + 22]
        assert np.abs(part.astype(int) - expected).mean() < 0.5


def test_crop_and_scale():
    picture = np.zeros((1, *SIZE, 3), np.uint8)
    picture[0, 8:24, 16:48] = (250, 40, 40)
    video = write_video(picture)
    clip = frames(video, at(0.0), lambda h, w: Crop(8, 16, 16, 32, 32, 32))
    assert clip.shape == (1, 32, 32, 3)
    inside = clip[0, 4:-4, 4:-4].reshape(-1, 3)
    np.testing.assert_allclose(inside, [(250, 40, 40)] * len(inside), atol=6)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "container, codec",
    [("mp4", "libx264"), ("mpeg", "mpeg2video"), ("avi", "mpeg4"), ("gif", "gif")],
)
def test_one_to_four_frames(n, container, codec):
    pix_fmt = "gray" if codec == "gif" else "yuv420p"
    b_frames = None if codec == "gif" else 2
    video = write_video(numbered(n) * 8, 25, container, codec, pix_fmt, "", b_frames)
    durations = []

    def times(duration):
        durations.append(duration)
        return np.append(middles(n), 99.0)

    clip = frames(video, times, whole)
    assert [x // 8 for x in numbers(clip)] == [*range(n), n - 1]
    assert durations[-1] == pytest.approx(n / 25)


@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (4, 4), (5, 7), (47, 63)])
@pytest.mark.parametrize(
    "codec, pix_fmt", [("mpeg4", "yuv420p"), ("libx264", "yuv444p")]
)
def test_pictures_of_few_and_of_odd_pixels(height, width, codec, pix_fmt):
    picture = moving(3)[:, :height, :width]
    video = write_video(picture, 25, "matroska", codec, pix_fmt)
    clip = frames(video, at(*middles(3)), whole)
    assert_are(clip, full_decode(video))
    # Crops of every odd and even kind give the size that was asked for.
    for top, left in itertools.product(range(min(height, 3)), range(min(width, 3))):
        crop = Crop(top, left, height - top, width - left, 8, 8)
        part = frames(video, at(0.0), lambda h, w, crop=crop: crop)
        assert part.shape == (1, 8, 8, 3)


COLOR_SPACES = {"bt601": (5, 0.299, 0.114), "bt709": (1, 0.2126, 0.0722)}


@pytest.mark.parametrize("space", COLOR_SPACES)
@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    "pix_fmt, bits",
    [("yuv420p", 8), ("yuv444p", 8), ("yuv420p10le", 10), ("yuv422p10le", 10)],
)
def test_colours_are_those_of_the_standards_formulas(pix_fmt, bits, full_range, space):
    tag, kr, kb = COLOR_SPACES[space]
    rng = np.random.default_rng(0)
    blocks = rng.integers(60, 190, (3, 3, 4)) << (bits - 8)  # Y, U, V of 16x16 pixels
    frame = av.VideoFrame(64, 48, pix_fmt)
    for plane, block in zip(frame.planes, blocks, strict=True):
        pixels = block.repeat(plane.height // 3, 0).repeat(plane.width // 4, 1)
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        stored = pixels.astype(np.uint8 if bits == 8 else "<u2").view(np.uint8)
        rows[:, : stored.shape[1]] = stored
        plane.update(rows.tobytes())
    # Range 2 is full, 1 is limited: 16 to 235, chroma to 240.
    tags = {"colorspace": tag, "color_range": 1 + full_range}
    for name, value in tags.items():
        setattr(frame, name, value)
    video = write_video([frame], 25, "matroska", "ffv1", pix_fmt, tags=tags)

    one = 1 << (bits - 8)
    luma, chroma = (256 * one - 1,) * 2 if full_range else (219 * one, 224 * one)
    y = (blocks[0] - (not full_range) * 16 * one) / luma
    u, v = (blocks[1:] - 128 * one) / chroma
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    expected = (255 * np.stack([red, green, blue], -1)).round().clip(0, 255)
    (ours,) = frames(video, at(0.0), whole)
    np.testing.assert_allclose(ours[8::16, 8::16], expected, atol=3.5)


@pytest.mark.parametrize("swapped, flipped, mirrored", itertools.product(*[(0, 1)] * 3))
def test_a_crop_of_the_stored_picture_is_the_crop_of_the_upright_one(
    swapped, flipped, mirrored
):
    orientation = Orientation(bool(swapped), bool(flipped), bool(mirrored))
    stored = np.arange(6 * 9 * 3).reshape(6, 9, 3)
    upright = orientation.upright(stored)
    c = orientation.stored(Crop(1, 2, 3, 4, 3, 4), *upright.shape[:2])
    part = stored[c.top : c.top + c.height, c.left : c.left + c.width]
    np.testing.assert_array_equal(orientation.upright(part), upright[1:4, 2:6])
    assert part.shape[:2] == (c.out_height, c.out_width)


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_videos_are_turned_upright(quarters, mirrored):
    """By the matrix in the track's header, which maps stored to upright points."""
    plain = write_video(moving(3))
    upright = [np.rot90(frame, quarters) for frame in full_decode(plain)]
    if mirrored:
        upright = [frame[:, ::-1] for frame in upright]
    # Counterclockwise by a quarter: x becomes y, and y becomes -x.
    turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), quarters)
    (a, b), (c, d) = (turn @ np.diag([-1, 1]) if mirrored else turn) * 65536
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    place = plain.index(identity, plain.index(b"tkhd"))
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    video = plain[:place] + matrix + plain[place + 36 :]
    assert_are(frames(video, at(*middles(3)), whole), upright)

    def corner(height, width):
        return Crop(4, 2, 16, 20, 16, 20)

    part = frames(video, at(*middles(3)), corner)
    assert_are(part, [frame[4:20, 2:22] for frame in upright])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_turned_upright(orientation, file_format):
    """As Pillow turns them by their EXIF orientation."""
    y, x = np.mgrid[:48, :64]
    picture = np.stack([4 * x, 5 * y, 0 * x], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(picture).save(file, file_format, quality=95, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    (ours,) = frames(file.getvalue(), at(0.0), whole)
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(int) - expected).mean() < 3


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
    "data", [b"", b"not a video at all" * 99], ids=["empty", "text"]
)
def test_what_is_no_video_is_a_named_error(data):
    with pytest.raises(UndecodableClip):
        decode(data, at(0.0), whole)


def test_damaged_data_is_a_named_error(video):
    damaged = bytearray(video)
    start = video.index(b"mdat") + 40
    damaged[start : start + 3000] = bytes(3000)
    with pytest.raises(UndecodableClip):
        decode(bytes(damaged), at(*np.arange(0, 1.6, 0.04)), whole)


def test_a_tag_that_is_not_utf8_does_no_harm():
    video = write_video(numbered(4), 25, "avi", "mpeg4", title="Cafe Zoo")
    tagged = video.replace(b"Cafe Zoo", b"Caf\xe9 Zoo")
    assert tagged != video
    assert numbers(frames(tagged, at(0.0), whole)) == [0]


@pytest.mark.parametrize(
    "container, codec", [("mp4", "libx264"), ("mpeg", "mpeg2video"), ("avi", "mpeg4")]
)
def test_damage_anywhere_gives_a_clip_or_a_named_error(container, codec):
    video = write_video(numbered(6), 25, container, codec)
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(150):
        damaged = bytearray(video)
        for place in rng.integers(0, len(video), 4):
            damaged[place] = rng.integers(256)
        try:
            assert frames(bytes(damaged), at(0.0, 0.1), whole).shape[0] == 2
        except UndecodableClip:
            errors += 1
    assert 0 < errors < 150


@pytest.mark.parametrize("kind", ["h264 mkv open", "mpeg2 mpg"])
def test_a_decode_that_takes_too_long_is_a_named_error(kind, monkeypatch):
    """By a clock that goes on by a second whenever it is looked at."""
    container, codec, options = KINDS[kind]
    video = write_video(moving(24), 25, container, codec, **options)
    monkeypatch.setattr(limits.time, "thread_time", itertools.count().__next__)
    for start in (0.0, 0.9):
        with pytest.raises(DecodeTimeout, match="takes more than 1 s to decode"):
            decode(video, at(start), whole, Limits(cpu_seconds=1))
        enough = Limits(cpu_seconds=1000)
        assert frames(video, at(start), whole, enough).shape == (1, *SIZE, 3)


def real_clips(folder, pixels=math.inf):
    """(entry of the manifest, bytes) of real clips of up to so many pixels in all."""
    for entry in json.loads((folder / "clips" / "manifest.json").read_text()):
        n = entry["frames_decoded"]
        if n and n * entry["height"] * entry["width"] < pixels:
            yield entry, (folder / "clips" / entry["file"]).read_bytes()


def middle(height, width):
    """Up to 256 pixels of the upright picture, from even places."""
    h, w = min(height, 256), min(width, 256)
    return Crop((height - h) // 4 * 2, (width - w) // 4 * 2, h, w, h, w)


def stretched(picture, stretch, shift):
    """The picture, wider and moved right by so many of its pixels; as it is at 1, 0."""
    if (stretch, shift) == (1, 0):
        return picture
    height, width = picture.shape[:2]
    wide = round(width * stretch)
    scale = width / wide
    to_source = np.array([[scale, 0, (scale - 1) / 2 + shift], [0, 1, 0]])
    return cv2.warpAffine(
        picture,
        to_source,
        (wide, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def check_real_clip(entry, data, starts):
    """Compares all frames with a full decode's, and those after so many starts."""
    with av.open(io.BytesIO(data)) as container:
        reference, times = [], []
        video = container.streams.video[0]
        aspect = video.sample_aspect_ratio or 1
        stretch = aspect if abs(aspect - 1) * max(video.width, video.height) > 1 else 1
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            picture = np.rot90(picture, round(frame.rotation / 90) % 4)
            # A crop begins where a chroma sample does, which shifts stretched ones.
            shifts = [0.0] if stretch == 1 else np.arange(-1.5, 0.75, 0.25)
            pictures = [stretched(picture, float(stretch), x) for x in shifts]
            c = middle(*pictures[0].shape[:2])
            rows, columns = np.s_[c.top : c.top + c.height, c.left : c.left + c.width]
            reference.append([picture[rows, columns].copy() for picture in pictures])
            times.append(frame.time)
    n = len(reference)
    assert n == entry["frames_decoded"]
    # AVI has no presentation times, and makes them up where frames are reordered.
    by_rate = middles(n, entry["frame_rate"])
    times = np.array(times) - times[0]
    good = entry["container"] != "avi"
    times = times + 0.5 * np.diff(times).min() if good else by_rate
    every, shown = decode(data, at(*times), middle)
    assert len({*shown}) == n
    # Chroma of 10 bits is spread over pixels in another way.
    limit = 4 if entry["pixel_format"] == "yuv420p10le" else 0.5
    limit = 1.5 if stretch != 1 else limit
    for i, (ours, fulls) in enumerate(zip(every, reference, strict=True)):
        error = min(np.abs(ours.astype(int) - full).mean() for full in fulls)
        assert error < limit, (entry["file"], i, error)
    for first in sorted({*np.linspace(0, n - 1, starts).astype(int)}):
        wanted = [i for i in (first, first + 1, first + 9) if i < n]
        late = frames(data, at(*times[wanted]), middle)
        np.testing.assert_array_equal(late, every[wanted], entry["file"])


def test_real_clips_give_the_frames_of_a_full_decode_from_any_start(real_data):
    clips = list(real_clips(real_data, pixels=10e6))
    assert len(clips) > 15
    for entry, data in clips:
        check_real_clip(entry, data, starts=5)


@pytest.mark.slow
def test_all_real_clips_give_the_frames_of_a_full_decode_from_any_start(real_data):
    clips = list(real_clips(real_data))
    assert len(clips) == 31
    for entry, data in clips:
        check_real_clip(entry, data, starts=12)


def test_a_real_clip_that_is_damaged(real_data):
    """Its first frame is whole; a full decode fails."""
    data = (real_data / "clips" / "decord__corrupted.mp4").read_bytes()
    with pytest.raises(av.error.InvalidDataError):
        full_decode(data)
    with pytest.raises(UndecodableClip, match="Invalid data"):
        decode(data, lambda duration: np.linspace(0, duration, 9), whole)


@pytest.mark.slow
def test_no_memory_is_lost():
    """In 10,000 decodes, of all the ways that they may end."""
    exif = Image.Exif()
    exif[0x0112] = 5
    photograph = io.BytesIO()
    Image.fromarray(moving(1)[0]).save(photograph, "JPEG", exif=exif)
    mp4, mpg = write_video(moving(8)), write_video(moving(8), 25, "mpeg", "mpeg2video")
    damaged = bytearray(mp4)
    start = mp4.index(b"mdat") + 40
    damaged[start : start + 3000] = bytes(3000)
    ways = [
        (mp4, at(0.0, 0.2), LIMITS),
        (mp4, at(0.2), Limits(cpu_seconds=0)),
        (mpg, at(0.2), LIMITS),
        (bytes(damaged), at(0.0, 0.3), LIMITS),
        (mp4[:900], at(0.0), LIMITS),
        (b"nothing", at(0.0), LIMITS),
        (photograph.getvalue(), at(0.0), LIMITS),
    ]

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    for i in range(12_000):
        if i == 2_000:
            before = resident()
        data, times, given = ways[i % len(ways)]
        with contextlib.suppress(UndecodableClip):
            decode(data, times, whole, given)
    # Less than half a kilobyte each: what opens a file has 32 of them.
    assert resident() - before < 5e6


@pytest.mark.parametrize("size, decodes", [((40, 2), True), ((3, 63), False)])
def test_a_picture_that_is_hardly_more_than_a_line(size, decodes):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")

    def read():
        return decode(
            file.getvalue(),
            lambda duration: np.zeros(1),
            lambda height, width: Crop(0, 0, height, width, 8, 8),
        )

    if decodes:
        assert read()[0].shape == (1, 8, 8, 3)
    else:
        with pytest.raises(UndecodableClip, match="63 x 3 pixels, one side"):
            read()


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
            module._best_stream(Streams(*tiled))
    for whole_picture in ((main, thumbnail), (thumbnail, main), (tile, tile, main)):
        best = module._best_stream(Streams(*whole_picture))
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


def with_aspect(aspect, pictures, container="mp4"):
    """A video whose pixels are `aspect` times as wide as high."""
    tags = {"sample_aspect_ratio": fractions.Fraction(aspect)}
    return write_video(pictures, 25, container, "libx264", "yuv444p", tags=tags)


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
@pytest.mark.parametrize("aspect, size", [("4/3", (48, 85)), ("1/2", (96, 64))])
def test_pixels_that_are_not_square_are_displayed_as_such(aspect, size, container):
    """By OpenCV's scaling of the stored picture."""
    scene = moving(2)
    video = with_aspect(aspect, scene, container)
    seen = []

    def crop(height, width):
        seen.append((height, width))
        return whole(height, width)

    (ours,) = frames(video, at(0.0), crop)
    assert seen == [size] and ours.shape == (*size, 3)
    expected = cv2.resize(scene[0], size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - expected).mean() < 3
    # A crop of the displayed picture is that of as much of the stored one.
    top, left, height, width = (s // 4 for s in (*size, *(2 * s for s in size)))
    part = Crop(top, left, height, width, height, width)
    (cropped,) = frames(video, at(0.0), lambda h, w: part)
    inside = expected[top : top + height, left : left + width]
    assert np.abs(cropped.astype(int) - inside).mean() < 6


def test_the_density_of_a_photo_is_not_its_shape():
    """As in Pillow and in browsers."""
    for file_format in ("JPEG", "PNG", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(moving(1)[0]).save(file, file_format, dpi=(300, 100))
        for kind in ("image", "video"):
            clip, _ = decode(file.getvalue(), at(0.0), whole, kind=kind)
            assert clip.shape == (1, *SIZE, 3), (file_format, kind)


def test_a_shape_that_is_rounded_to_whole_pixels_is_square():
    scene = moving(2)
    expected = frames(with_aspect(1, scene), at(0.0), whole)
    for aspect in ("65/64", "64/65"):
        video = with_aspect(aspect, scene)
        np.testing.assert_array_equal(frames(video, at(0.0), whole), expected)
    assert frames(with_aspect("60/64", scene), at(0.0), whole).shape[1:3] == (51, 64)


@pytest.mark.parametrize("aspect, height, width", [("4/3", 48, 85), ("1/2", 96, 64)])
def test_the_smallest_crops_of_pixels_that_are_not_square(aspect, height, width):
    """Neither empty, which FFmpeg takes for the whole, nor beyond the picture."""
    scene = np.zeros((1, 48, 64, 3), np.uint8)
    scene[:, 24:, 32:] = 200
    video = with_aspect(aspect, scene)
    bottom, right = height - 1, width - 1
    for top, left, value in ((0, 0, 0), (bottom, right, 200), (0, right, 0)):
        crop = Crop(top, left, 1, 1, 8, 8)
        part = frames(video, at(0.0), lambda h, w, crop=crop: crop)
        np.testing.assert_allclose(part, value, atol=3)


# Numbers of ITU-T H.273: of a matrix and primaries, and of a matrix equal to it.
EQUAL = {(10, 9): 9, (12, 1): 1, (12, 9): 9, (12, 6): 7, (13, 2): 1}


@pytest.mark.parametrize("matrix, primaries", EQUAL)
def test_matrices_that_ffmpeg_does_not_convert_but_knows_by_another_name(
    matrix, primaries
):
    def tagged(matrix):
        tags = {"colorspace": matrix, "color_primaries": primaries}
        return write_video(moving(2), 25, "matroska", "ffv1", tags=tags)

    ours = frames(tagged(matrix), at(0.0, 0.04), whole)
    equal = frames(tagged(EQUAL[matrix, primaries]), at(0.0, 0.04), whole)
    np.testing.assert_array_equal(ours, equal)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv422p10le"])
@pytest.mark.parametrize("full", [False, True])
def test_ycgco(pix_fmt, full):
    """By its equations in ITU-T H.273."""
    rgb = np.full((*SIZE, 3), (200, 60, 30), np.uint8)
    rgb[:, 32:] = 20, 90, 160
    red, green, blue = np.moveaxis(rgb.astype(float), -1, 0)
    planes = [
        (red + 2 * green + blue) / 4,
        128 + (2 * green - red - blue) / 4,
        128 + (red - blue) / 2,
    ]
    if not full:
        planes[0] = 16 + planes[0] * 219 / 255
        planes[1:] = [128 + (plane - 128) * 224 / 255 for plane in planes[1:]]
    encoded = av.VideoFrame.from_ndarray(
        np.stack(planes).round().astype(np.uint8), format="yuv444p"
    )
    encoded = encoded.reformat(format=pix_fmt)
    tags = {"colorspace": 8, "color_range": 2 if full else 1}
    video = write_video([encoded] * 2, 25, "matroska", "ffv1", pix_fmt, tags=tags)
    for file in (video, Transcode(crf=0)(video)):
        (picture,) = frames(file, at(0.0), whole).astype(int)
        for columns in (slice(2, 30), slice(34, 62)):  # beside the edge
            assert np.abs(picture - rgb)[2:-2, columns].max() < 6


@pytest.mark.parametrize(
    "matrix, name", [(11, "YDzDx"), (14, "ICtCp"), (15, "IPT-PQ-C2")]
)
def test_colours_of_other_models_are_named(matrix, name):
    video = write_video(moving(2), 25, "matroska", "ffv1", tags={"colorspace": matrix})
    with pytest.raises(UndecodableClip, match=f"stored as {name}, which FFmpeg cannot"):
        decode(video, at(0.0), whole)
