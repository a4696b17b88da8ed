"""Conversion to upright RGB: crops, orientation, shapes of pixels, colours."""

import fractions
import io
import itertools
import struct

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from sparse_tube_vit.video.conversion import Crop, Orientation
from sparse_tube_vit.video.decode import decode
from sparse_tube_vit.video.limits import UndecodableClip
from sparse_tube_vit.video.transcode import Transcode
from tests.video.written import (
    SIZE,
    assert_are,
    at,
    frames,
    full_decode,
    middles,
    moving,
    whole,
    write_video,
)


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
