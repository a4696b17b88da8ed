"""What transcoding keeps: frames, their times, the picture; and what it refuses."""

import fractions
import io

import av
import cv2
import numpy as np
import pytest

from sparse_tube_vit.datasets.builders import moving_shapes
from sparse_tube_vit.video.conversion import Crop
from sparse_tube_vit.video.decode import decode
from sparse_tube_vit.video.limits import UndecodableClip
from sparse_tube_vit.video.transcode import BadTranscode, Transcode
from tests.video.written import moving, numbered, numbers, whole, write_video

# Clips of the shared folder that are done in a moment.
SMALL = (
    "decord",
    "non_zero",
    "first_keyframe",
    "rotated",
    "10bits",
    "444",
    "video.avi",
)


def frames(video):
    """(seconds after the first, picture (H, W, 3)) of every frame, as PyAV has them."""
    with av.open(io.BytesIO(video)) as container:
        rate = container.streams.video[0].average_rate
        decoded = list(container.decode(video=0))
        stores_times = container.format.name != "avi"
    return [
        (
            (frame.pts - decoded[0].pts) * frame.time_base
            if stores_times
            else i / rate,
            np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)),
        )
        for i, frame in enumerate(decoded)
    ]


def difference(video, transcoded):
    """Mean absolute difference of the pixels at half the size of the transcoded.

    Checks first that there are the same frames at the same times.
    """
    before, after = frames(video), frames(transcoded)
    assert [t for t, _ in after] == [t for t, _ in before]
    height, width = after[0][1].shape[:2]

    def half(picture):
        size = (width // 2, height // 2)
        return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(int)

    return np.mean(
        [
            np.abs(half(b) - half(a)).mean()
            for (_, b), (_, a) in zip(before, after, strict=True)
        ]
    )


def textured(n, height, width):
    """A pattern that moves over a colour that changes slowly, (n, height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    colour = np.stack([x / width, y / height, 1 - x / width], -1) * 60
    pattern = [60 * np.sin((x + 2 * i) / 9) * np.cos(y / 7) for i in range(n)]
    return (np.stack(pattern)[..., None] + 90 + colour).astype(np.uint8)


def write(
    pictures, pts, time_base, turn=None, sound=False, pix_fmt="yuv420p", aspect=None
):
    """An mp4 file of pictures shown at `pts`."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = pix_fmt, time_base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        audio = out.add_stream("aac", rate=44100) if sound else None
        if turn:
            stream.set_display_rotation(*turn)
        for picture, t in zip(pictures, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = t, time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 4096), np.float32), "fltp", "mono"
            )
            silence.sample_rate = 44100
            out.mux([*audio.encode(silence), *audio.encode(None)])
    return file.getvalue()


def test_a_variable_frame_rate_keeps_its_times():
    base = fractions.Fraction(1, 90_000)
    pts = np.cumsum([9000, 3003, 3003, 45_000, 1, 899, 6006, 3003, 90_000]).tolist()
    video = write(textured(9, 80, 120), pts, base)
    assert difference(video, Transcode()(video)) < 3
    assert frames(video)[-1][0] == fractions.Fraction(pts[-1] - pts[0], 90_000)


@pytest.mark.parametrize("rate", ["30000/1001", "12", "45000/1499"])
@pytest.mark.parametrize("container", ["mp4", "avi", "matroska"])
def test_every_rate_and_container(rate, container):
    codec = "mpeg4" if container == "avi" else "libx264"
    video = write_video(numbered(20), rate, container, codec)
    assert difference(video, Transcode()(video)) < 1.5


@pytest.mark.parametrize(
    "kind",
    [
        {"codec": "libx265", "pix_fmt": "yuv420p10le", "container": "matroska"},
        {"codec": "libsvtav1"},
        {"codec": "libvpx", "container": "webm"},  # with frames that none sees
        {"codec": "mpeg1video", "container": "mpeg", "b_frames": 2},
        {"codec": "libx264", "container": "avi", "b_frames": 2},
    ],
    ids=lambda kind: kind["codec"],
)
def test_every_kind_has_the_frames_that_decoding_gives(kind):
    video = write_video(moving(30), 25, **kind)

    def clip(video):
        clip, times = decode(video, lambda _: (np.arange(30) + 0.5) / 25, whole)
        return clip.astype(int), times

    (before, times), (after, times_after) = clip(video), clip(Transcode(crf=5)(video))
    np.testing.assert_array_equal(times_after, times)
    assert np.abs(before - after).mean((1, 2, 3)).max() < 6


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_upright_and_scaled(rotation, mirrored):
    turn = (rotation, mirrored)
    video = write(textured(3, 96, 160), range(3), fractions.Fraction(1, 25), turn)
    transcoded = Transcode(short_side=48, crf=10)(video)
    with av.open(io.BytesIO(transcoded)) as container:
        (stream,) = container.streams
        size = (stream.height, stream.width)
        frame = next(container.decode(stream))
        assert frame.side_data.get("DISPLAYMATRIX") is None
    assert size == ((80, 48) if rotation in (90, 270) else (48, 80))
    upright, _ = decode(video, lambda _: np.zeros(1), whole)
    ours = frames(transcoded)[0][1]
    expected = cv2.resize(upright[0], size[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(expected.astype(int) - ours).mean() < 3


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((101, 75), 256, (100, 74)),
        ((4, 4), 256, (4, 4)),
        ((131, 257), 64, (64, 124)),
        ((3, 9), 2, (2, 6)),
    ],
)
def test_sizes_are_even_and_never_larger(size, short_side, expected):
    pictures = textured(2, *size)
    video = write(pictures, (0, 1), fractions.Fraction(1, 25), pix_fmt="yuv444p")
    _, picture = frames(Transcode(short_side=short_side)(video))[0]
    assert picture.shape[:2] == expected


def test_key_frames_and_nothing_but_the_video():
    video = write(
        textured(50, 64, 64), range(50), fractions.Fraction(1, 25), sound=True
    )
    sizes = {}
    for crf in (18, 30):
        transcoded = Transcode(gop=8, crf=crf)(video)
        with av.open(io.BytesIO(transcoded)) as container:
            (stream,) = container.streams
            context = stream.codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            keys = [i for i, f in enumerate(container.decode(stream)) if f.key_frame]
        assert keys[0] == 0 and max(np.diff([*keys, 50])) <= 8
        sizes[crf] = len(transcoded)
    assert sizes[18] > 1.5 * sizes[30]


def test_full_range_and_rgb_keep_their_colours():
    pictures = textured(2, 48, 64)
    mjpeg = write_video(pictures, 25, "mov", "mjpeg", "yuvj420p")  # full range
    assert difference(mjpeg, Transcode(crf=5)(mjpeg)) < 3
    gif = io.BytesIO()
    with av.open(gif, "w", format="gif") as out:
        stream = out.add_stream("gif", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb8"
        for colour in ((200, 30, 30), (30, 30, 200)):
            picture = np.full((48, 64, 3), colour, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    assert difference(gif.getvalue(), Transcode(crf=5)(gif.getvalue())) < 3


def test_tags_of_colour_are_kept():
    """BT.709's matrix, BT.2020's primaries and the curve of sRGB, limited range."""
    tags = {"colorspace": 1, "color_primaries": 9, "color_trc": 13, "color_range": 1}
    video = write_video(textured(3, 48, 64), tags=tags)
    transcoded = Transcode(crf=1)(video)
    with av.open(io.BytesIO(transcoded)) as container:
        frame = next(container.decode(video=0))
    assert {name: getattr(frame, name) for name in tags} == tags
    before, after = (
        decode(data, lambda _: np.zeros(1), whole)[0] for data in (video, transcoded)
    )
    assert np.abs(before.astype(int) - after).mean() < 0.5


def test_the_same_bytes_whatever_lies_in_memory():
    video = moving_shapes.encode_mp4(moving_shapes.render("videos", "train", 5)[1])
    clutter, found = [], set()
    for i in range(30):
        clutter = [*clutter[-9:], bytearray(np.random.default_rng(i).bytes(7919 * i))]
        found.add(Transcode(crf=20)(video))
    assert len(found) == 1


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "text"])
def test_what_does_not_decode_wholly_is_refused(damage):
    video = write_video(textured(20, 48, 64), 25, "matroska")
    video = {
        "cut": video[:300],
        "zeros": video[:4000] + bytes(400) + video[4400:],
        "empty": b"",
        "text": b"no video" * 99,
    }[damage]
    with pytest.raises(UndecodableClip):
        Transcode()(video)


def test_a_picture_that_changes_size_is_refused():
    small, large = (write_video(textured(4, h, 64), 25, "mpegts") for h in (48, 80))
    with pytest.raises(UndecodableClip, match="size changes"):
        Transcode()(small + large)


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_real_clips(real_data, small):
    paths = [
        path
        for path in sorted((real_data / "clips").iterdir())
        if path.suffix != ".json"
        and "corrupted" not in path.name
        and any(part in path.name for part in SMALL) == small
    ]
    assert len(paths) >= 10
    for path in paths:
        video = path.read_bytes()
        # 10 bits to 8, of a pattern full of colour.
        limit = 4 if "10bits" in path.name else 1.5
        assert difference(video, Transcode(crf=5)(video)) < limit, path.name


def test_options():
    assert Transcode.parse("crf=20") == Transcode(short_side=256, gop=30, crf=20)
    options = Transcode(short_side=112, gop=8, crf=0)
    assert Transcode.parse(str(options)) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "'' is not one of short_side=N, gop=N, crf=N"),
        ("size=256", "'size=256' is not one of"),
        ("crf=20,crf=21", "'crf=21' is not one of .* at most once"),
        ("crf=52", "crf is a number from 0 to 51, not '52'"),
        ("gop=0", "gop is a number from 1 to 1000, not '0'"),
        ("short_side", "short_side is a number from 2 to 4096, not ''"),
        ("short_side=1e3", "not '1e3'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(BadTranscode, match=message):
        Transcode.parse(options)


@pytest.mark.parametrize("turn", [None, (90, False)])
@pytest.mark.parametrize("aspect", ["64/45", "1/2"])
def test_pixels_that_are_not_square_keep_their_shape(aspect, turn):
    aspect = fractions.Fraction(aspect)
    pictures = textured(3, 96, 120)
    base = fractions.Fraction(1, 25)
    video = write(pictures, range(3), base, turn, aspect=aspect)

    def square(height, width):
        return Crop(0, 0, height, width, 64, 64)

    for short_side in (256, 48):
        transcoded = Transcode(short_side, crf=5)(video)
        with av.open(io.BytesIO(transcoded)) as container:
            (stream,) = container.streams
            assert stream.sample_aspect_ratio == (1 / aspect if turn else aspect)
        (before,), (after,) = (
            decode(data, lambda _: np.zeros(1), square)[0]
            for data in (video, transcoded)
        )
        assert np.abs(before.astype(int) - after).mean() < 4


@pytest.mark.parametrize("aspect", [None, "1", "121/120"])
def test_square_pixels_are_not_marked(aspect):
    """Which would change every file that was transcoded before."""
    aspect = aspect and fractions.Fraction(aspect)
    base = fractions.Fraction(1, 25)
    video = write(textured(2, 96, 120), range(2), base, aspect=aspect)
    with av.open(io.BytesIO(Transcode()(video))) as container:
        assert not container.streams.video[0].sample_aspect_ratio


def test_a_gap_in_time_is_closed():
    pts = [0, 1, 2, 2000, 2001]
    video = write(textured(5, 64, 64), pts, fractions.Fraction(1, 25))
    times = [t for t, _ in frames(Transcode()(video))]
    assert times == [fractions.Fraction(i, 25) for i in range(5)]


def test_the_video_is_transcoded_and_not_its_cover(real_data):
    for name in ("cover_before_video", "tagged_plain", "tagged_sound"):
        path = real_data / "odd_inputs" / "videos" / f"{name}.mp4"
        if not path.exists():
            pytest.skip(f"{path} is absent")
        transcoded = frames(Transcode()(path.read_bytes()))
        assert len(transcoded) == 45 and transcoded[0][1].shape == (96, 128, 3)


@pytest.mark.parametrize(
    "kind",
    [
        {"codec": "libx264", "b_frames": 2},
        {"codec": "libvpx", "container": "webm"},
        {"codec": "libx264", "container": "avi", "b_frames": 2},
        {"codec": "mpeg1video", "container": "mpeg", "b_frames": 2},
    ],
    ids=lambda kind: f"{kind['codec']}-{kind.get('container', 'mp4')}",
)
@pytest.mark.parametrize(
    ("span", "first", "end"),
    [((0.4, 1), 10, 25), ((0.41, 1.01), 10, 26), ((1, 9), 25, 40), ((0, 0), 0, 1)],
)
def test_a_span_has_the_frames_that_it_displays(kind, span, first, end):
    video = write_video(numbered(40), 25, **kind)
    cut = Transcode(crf=5)(video, span)
    n = end - first
    clip, times = decode(cut, lambda _: (np.arange(n) + 0.5) / 25, whole)
    assert len(frames(cut)) == n and numbers(clip) == list(range(first, end))
    np.testing.assert_allclose(times, np.arange(n) / 25, atol=1e-3)


def test_a_span_of_all_changes_nothing():
    video = write_video(moving(12))
    assert Transcode()(video, (0, 12 / 25)) == Transcode()(video)
