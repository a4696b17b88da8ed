import contextlib
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
from PIL import Image

from sparse_tube_vit.video import limits, opening
from sparse_tube_vit.video.conversion import Crop
from sparse_tube_vit.video.decode import decode
from sparse_tube_vit.video.limits import LIMITS, DecodeTimeout, Limits, UndecodableClip
from sparse_tube_vit.video.opening import opened
from tests.video.written import (
    KINDS,
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


def test_what_lies_between_frames_far_apart_is_not_decoded(monkeypatch):
    data, decoded, packets = write_video(moving(400)), opening.Video._decoded, []

    def counted(self, packet, codec):
        packets.append(packet)
        return decoded(self, packet, codec)

    monkeypatch.setattr(opening.Video, "_decoded", counted)
    shown = [201, 2, 398, 3, 200, 60]
    clip, times = decode(data, at(*np.array(middles(400))[shown]), whole)
    assert len(packets) < 120
    np.testing.assert_array_equal(clip, np.stack(full_decode(data))[shown])
    np.testing.assert_allclose(times, np.array(shown) / 25)


# Packets of these do not tell when frames are shown, or not where to start.
UNCLEAR = ("h264 no container", "mpeg1 mpg", "mpeg2 mpg", "mpeg2 mpg interlaced")
UNCLEAR += ("h264 mp4 refresh", "h264 ts refresh")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_frames_of_a_full_decode_from_any_start(kind, monkeypatch):
    if kind not in UNCLEAR:  # they must do without a full decode of ours
        monkeypatch.setattr(opening.Video, "frame_times", None)
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
    monkeypatch.setattr(opening.Video, "frame_times", None)  # no need to look at all
    clip = frames(video, at(*middles(24)), whole)
    assert_are(np.delete(clip, 5, axis=0), reference)
    np.testing.assert_array_equal(clip[5], clip[4])


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


def test_damaged_data_is_a_named_error(video):
    damaged = bytearray(video)
    start = video.index(b"mdat") + 40
    damaged[start : start + 3000] = bytes(3000)
    with pytest.raises(UndecodableClip):
        decode(bytes(damaged), at(*np.arange(0, 1.6, 0.04)), whole)


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
