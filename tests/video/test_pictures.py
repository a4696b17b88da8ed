"""Still pictures: their first picture, whatever else is in the file, as Pillow's."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from sparse_tube_vit.video import pictures
from sparse_tube_vit.video.decode import decode
from sparse_tube_vit.video.limits import UndecodableClip
from sparse_tube_vit.video.opening import SUFFIXES, kind_of
from tests.video.files import AFTER, OTHER, PICTURE, X, written
from tests.video.written import at, whole


def first(data, kind=None):
    """The picture (H, W, 3) that is read of a file."""
    clip, times = decode(data, at(0.0), whole, kind=kind)
    assert times == [0]
    return clip[0].astype(int)


def pillows(data):
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return np.asarray(upright.convert("RGB")).astype(int)


def assert_same(data, limit=3):
    ours, theirs = first(data), pillows(data)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < limit


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_what_follows_the_end_of_a_picture_changes_nothing(file_format, after):
    """As in motion photos, and photos with another picture or a gain map."""
    alone = written(PICTURE, file_format)
    data = alone + AFTER[after]
    assert kind_of(data) == "image"
    np.testing.assert_array_equal(first(data), first(alone))
    np.testing.assert_array_equal(first(data, "image"), first(alone))
    assert_same(data)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_bmp_of_few_colours_is_not_taken_for_another_format(mode):
    """FFmpeg's guess depends on the pixels: from its headers a BMP is told at once."""
    picture = Image.fromarray(PICTURE // 64 * 64).convert(mode)
    file = io.BytesIO()
    picture.save(file, "BMP")
    assert pictures.demuxer(file.getvalue()) == "bmp_pipe"
    assert_same(file.getvalue())
    assert pictures.demuxer(b"BM, a text of no headers") is None


def test_of_several_pictures_the_first_is_read():
    for file_format in ("MPO", "TIFF"):
        others = [Image.fromarray(OTHER)]
        data = written(PICTURE, file_format, save_all=True, append_images=others)
        assert kind_of(data) == "image"
        assert_same(data)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "AVIF"])
def test_an_animation_is_a_video_and_its_first_picture_an_image(file_format):
    others = [np.roll(PICTURE, 8 * i, axis=1) for i in range(1, 5)]
    options = {"save_all": True, "append_images": [*map(Image.fromarray, others)]}
    data = written(PICTURE, file_format, duration=100, **options)
    assert kind_of(data) == "video"
    durations = []

    def last(duration):
        durations.append(duration)
        return np.array([duration])

    (late,), _ = decode(data, last, whole)
    assert durations == [pytest.approx(0.5)]
    assert np.abs(late - others[-1].astype(int)).mean() < 8
    # Whatever time is asked for.
    (image,), times = decode(data, at(99.0), whole, kind="image")
    assert times == [0] and np.abs(image - pillows(data)).mean() < 3


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_with_a_colour_profile(file_format):
    """PyAV frees the name of a PNG's profile twice where it is asked for side data."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"icc_profile": profile, "quality": 95}
    data = written(PICTURE, file_format, **options)
    for _ in range(20):
        assert_same(data)
    turned = Image.Exif()
    turned[274] = 6
    data = written(PICTURE, file_format, exif=turned, **options)
    assert first(data).shape == (64, 48, 3)
    assert_same(data)


def test_an_animated_webp_is_named():
    others = [Image.fromarray(OTHER)]
    data = written(PICTURE, "WEBP", save_all=True, append_images=others)
    for read in (kind_of, first):
        with pytest.raises(UndecodableClip, match="animated WebP.* convert it"):
            read(data)
    transparent = Image.fromarray(np.dstack([PICTURE, 4 * X.astype(np.uint8)]))
    file = io.BytesIO()
    transparent.save(file, "WEBP", lossless=True)
    assert_same(file.getvalue())


def test_a_tag_that_ffmpeg_does_not_know_does_no_harm():
    tags = {274: 6, 296: 2, 700: b"<x/>", 34377: bytes(12), 65000: "of my own"}
    tags |= {270: "a description", 305: "a program", 33432: "a copyright"}
    for number, value in tags.items():
        data = written(PICTURE, "TIFF", tiffinfo={number: value}, compression="raw")
        np.testing.assert_array_equal(first(data), pillows(data))


@pytest.mark.parametrize("order", "<>")
def test_a_tiff_of_either_byte_order(order):
    """Grey, turned, and with a tag that FFmpeg does not know."""
    grey = PICTURE[..., 2]
    tags = {256: 64, 257: 48, 258: 8, 259: 1, 262: 1, 273: 8, 274: 8, 277: 1}
    tags |= {278: 48, 279: grey.size, 65000: 7}
    entries = [struct.pack(f"{order}HHIHH", n, 3, 1, v, 0) for n, v in tags.items()]
    name = b"II" if order == "<" else b"MM"
    header = struct.pack(f"{order}2sHI", name, 42, 8 + grey.size)
    directory = struct.pack(f"{order}H", len(tags)) + b"".join(entries) + bytes(4)
    data = header + grey.tobytes() + directory
    np.testing.assert_array_equal(first(data), pillows(data))
    np.testing.assert_array_equal(first(data)[..., 0], np.rot90(grey))


@pytest.mark.parametrize("tags", [{}, {274: 6, 65000: "of my own"}])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits"])
def test_a_damaged_tiff_is_an_error_and_not_black(compression, tags):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    noise[::2] = 9
    data = written(noise, "TIFF", compression=compression, tiffinfo=tags)
    np.testing.assert_array_equal(first(data), pillows(data))
    damaged = [data[: len(data) // 2], data[:12]]
    if compression != "raw":
        zeros = len(data) // 2
        damaged.append(data[:zeros] + bytes(300) + data[zeros + 300 :])
    for bad in damaged:
        with pytest.raises(UndecodableClip):
            first(bad)


def test_jpeg_in_tiff_is_an_error_and_not_black():
    data = written(PICTURE, "TIFF", compression="jpeg")
    with pytest.raises(UndecodableClip, match="JPEG inside.* convert it to PNG"):
        first(data)


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_damaged_metadata_does_no_harm_but_damaged_pixels_do(file_format):
    """Strict decoding refuses both."""
    data = written(PICTURE, file_format)
    garbage = np.random.default_rng(0).bytes(200)
    if file_format == "JPEG":
        kinds = [
            *(segment(0xE1, b"Exif\0\0" + garbage), segment(0xE2, garbage)),
            *(segment(0xED, garbage), segment(0xFE, b"")),
        ]
        start = 2
    else:
        chunks = [(b"eXIf", garbage), (b"iCCP", b"x\0\0" + garbage), (b"zzZz", b"")]
        kinds = [chunk(*c) for c in chunks]
        start = 33  # after the header
    for kind in kinds:
        odd = data[:start] + kind + data[start:]
        np.testing.assert_array_equal(first(odd), first(data))
        with pytest.raises(UndecodableClip):
            first(odd[: len(odd) * 2 // 3])


def chunk(name, body):
    crc = struct.pack(">I", 0xBAD)
    return struct.pack(">I", len(body)) + name + body + crc


def test_the_orientation_is_kept_where_metadata_is_refused():
    data = written(PICTURE, "TIFF", tiffinfo={274: 6, 65000: "of my own"})
    assert first(data).shape == (64, 48, 3)
    np.testing.assert_array_equal(first(data), np.rot90(PICTURE, -1))


# Of the shared folder: kinds, and what is refused with a part of the reason.
REFUSED = {
    "animated.webp": "animated WebP",
    "grid.heic": "in tiles",
    "jpeg_in.tif": "JPEG inside",
    "html.jpg": "Invalid data",
    "truncated.jpg": "Invalid data",
    "truncated.png": "Invalid data",
    "zero.jpg": "decode",
}


ANIMATED = {"animated.avif", "animated.gif", "animated.png", "transparent.gif"}


def test_odd_files_of_people(real_data):
    folder = real_data / "odd_inputs"
    if not folder.exists():
        pytest.skip(f"{folder} is absent")
    paths = sorted([*folder.glob("images/*"), *folder.glob("tiffs/*/*")])
    assert {*REFUSED, *ANIMATED} <= {path.name for path in paths}
    for path in paths:
        data = path.read_bytes()
        assert path.suffix in SUFFIXES["image"]
        if path.name in REFUSED:
            with pytest.raises(UndecodableClip, match=REFUSED[path.name]):
                first(data)
            continue
        assert kind_of(data) == ("video" if path.name in ANIMATED else "image")
        # What Pillow does not read, and what it converts to RGB otherwise.
        if path.suffix == ".heic" or path.name in ("gray16.png", "transparent.gif"):
            assert first(data).std() > 20
        else:
            assert_same(data)
