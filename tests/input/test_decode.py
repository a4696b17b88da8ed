import fractions
import io
import json

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from sparse_tube_vit.input.decode import Crop, UndecodableClip, decode

SIZE = (48, 64)


def write_video(frames, rate=25, container="mp4", codec="libx264", title=""):
    """An encoded file; near-lossless, so that frames can be told apart."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        options = {"crf": "1"} if codec == "libx264" else {"qmin": "1", "qmax": "2"}
        stream = out.add_stream(codec, rate=fractions.Fraction(rate), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = 8
        out.metadata["title"] = title
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()


def numbered(n):
    """Grey frames (n, 48, 64, 3) whose brightness tells their number."""
    return (
        np.repeat(np.arange(n), 48 * 64 * 3).reshape(n, *SIZE, 3).astype(np.uint8) * 5
    )


def numbers(clip):
    return (clip.mean(axis=(1, 2, 3)) / 5).round().astype(int).tolist()


def whole(height, width):
    return Crop(0, 0, height, width, height, width)


def at(*times):
    return lambda duration: np.array(times)


@pytest.fixture(scope="module")
def video():
    return write_video(numbered(40))


def test_duration_and_frames_on_show(video):
    seen = []

    def times(duration):
        seen.append(duration)
        return np.array([0, 0.039, 0.04, 0.5, 1.0, 1.5599, 99.0])

    clip = decode(video, times, whole)
    assert seen == [pytest.approx(40 / 25)]
    assert numbers(clip) == [0, 0, 1, 12, 25, 38, 39]
    assert clip.shape == (7, *SIZE, 3) and clip.dtype == np.uint8


def test_times_may_come_in_any_order_and_again(video):
    assert numbers(decode(video, at(1.0, 0.2, 1.0, 0.0), whole)) == [25, 5, 25, 0]


@pytest.mark.parametrize("first", range(0, 40, 3))
def test_starting_late_gives_the_pixels_of_decoding_from_the_beginning(video, first):
    times = [(i + 0.5) / 25 for i in range(first, 40)]
    late = decode(video, at(*times), whole)
    every = decode(video, at(*[(i + 0.5) / 25 for i in range(40)]), whole)
    np.testing.assert_array_equal(late, every[first:])


@pytest.mark.parametrize(
    "rate", ["30000/1001", "30", "12", "24000/1001"], ids=lambda r: r.replace("/", "_")
)
def test_every_frame_is_on_show_at_its_time(rate):
    video = write_video(numbered(30), rate)
    middles = [(i + 0.5) / float(fractions.Fraction(rate)) for i in range(30)]
    assert numbers(decode(video, at(*middles), whole)) == list(range(30))


@pytest.mark.parametrize(
    "container, codec",
    [("avi", "mpeg4"), ("matroska", "libx264"), ("mov", "mjpeg"), ("avi", "libx264")],
)
def test_other_containers_and_codecs(container, codec):
    video = write_video(numbered(20), 25, container, codec)
    times = [(i + 0.5) / 25 for i in range(5, 20)]
    assert numbers(decode(video, at(*times), whole)) == list(range(5, 20))


def test_crop_and_scale():
    picture = np.zeros((1, *SIZE, 3), np.uint8)
    picture[0, 8:24, 16:48] = (250, 40, 40)
    video = write_video(picture)
    clip = decode(video, at(0.0), lambda h, w: Crop(8, 16, 16, 32, 32, 32))
    assert clip.shape == (1, 32, 32, 3)
    inside = clip[0, 4:-4, 4:-4].reshape(-1, 3)
    np.testing.assert_allclose(inside, [(250, 40, 40)] * len(inside), atol=6)


@pytest.mark.parametrize("quarters", range(4))
def test_a_crop_on_a_turned_picture_is_the_crop_of_the_upright_one(quarters):
    stored = np.arange(6 * 9).reshape(6, 9)
    upright = np.rot90(stored, quarters)
    crop = Crop(1, 2, 3, 4, 3, 4)
    c = crop.on_rotated(quarters, *stored.shape)
    part = np.rot90(
        stored[c.top : c.top + c.height, c.left : c.left + c.width], quarters
    )
    np.testing.assert_array_equal(part, upright[1:4, 2:6])
    assert part.shape == (crop.out_height, crop.out_width)


def test_an_image_is_a_clip_of_one_frame():
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt = *SIZE, "rgb24"
    codec.time_base = fractions.Fraction(1, 25)
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    png = b"".join(map(bytes, codec.encode(frame) + codec.encode(None)))
    clip = decode(png, at(0.0), whole)
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
    assert numbers(decode(tagged, at(0.0), whole)) == [0]


def test_damage_anywhere_gives_a_clip_or_a_named_error():
    video = write_video(numbered(6))
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(300):
        damaged = bytearray(video)
        for place in rng.integers(0, len(video), 4):
            damaged[place] = rng.integers(256)
        try:
            assert decode(bytes(damaged), at(0.0, 0.1), whole).shape[0] == 2
        except UndecodableClip:
            errors += 1
    assert 0 < errors < 300


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_are_turned_upright(orientation):
    """As Pillow turns them by their EXIF orientation."""
    y, x = np.mgrid[:48, :64]
    picture = np.stack([4 * x, 5 * y, 0 * x], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    (ours,) = decode(file.getvalue(), at(0.0), whole)
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(int) - expected).mean() < 3


def test_real_clips_give_the_frames_that_a_full_decode_gives(real_data):
    """Every clip whose pictures are at most 800 pixels across, at three times."""
    clips = json.loads((real_data / "clips" / "manifest.json").read_text())
    checked = 0
    for entry in clips:
        if entry["frames_decoded"] is None or entry["width"] > 800:
            continue
        data = (real_data / "clips" / entry["file"]).read_bytes()
        with av.open(io.BytesIO(data)) as container:
            every = [f for f in container.decode(video=0)]
        assert len(every) == entry["frames_decoded"], entry["file"]
        shown = sorted(f.pts for f in every)
        tick = float(every[0].time_base)
        picks = [0, len(every) // 3, len(every) - 1]
        times = [(shown[i] - shown[0]) * tick + 1e-4 for i in picks]
        clip = decode(data, at(*times), whole)
        for i, ours in zip(picks, clip, strict=True):
            full = every[i].to_ndarray(format="rgb24")
            full = np.rot90(full, round(every[i].rotation / 90) % 4)
            # Colours of 10 bit clips may be rounded otherwise.
            error = np.abs(ours.astype(int) - full).mean()
            assert error < 4, (entry["file"], i, error)
        checked += 1
    assert checked > 20
