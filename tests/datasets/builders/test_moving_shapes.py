"""The embedded data set: what is drawn, how it moves, what is encoded."""

import collections
import io

import av
import numpy as np
import pytest

from sparse_tube_vit.datasets.builders import moving_shapes as ms


def decode(encoded: bytes) -> np.ndarray:
    with av.open(io.BytesIO(encoded)) as container:
        return np.stack(
            [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        )


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi),
        ("square", (2 * 0.85) ** 2),
        ("triangle", 3 * np.sqrt(3) / 4),
        ("star", 5 * 0.4 * np.sin(np.pi / 5)),
        ("cross", 2 * 1.9 * 0.6 - 0.6**2),
        ("ring", np.pi * (1 - 0.58**2)),
    ],
)
def test_shapes_have_the_area_geometry_gives_them(shape, area):
    n = 600
    points = (np.arange(n) + 0.5) / n * 2.4 - 1.2
    inside = ms.INSIDE[shape](points[:, None], points[None, :])
    np.testing.assert_allclose(inside.mean() * 2.4**2, area, rtol=0.01)


@pytest.mark.parametrize("shape", ["triangle", "star"])
def test_corners_point_up(shape):
    assert ms.INSIDE[shape](np.float32(-0.9), np.float32(0))
    assert not ms.INSIDE[shape](np.float32(0.9), np.float32(0))


def test_class_names():
    assert ms.CLASS_NAMES["images"][0] == "circle"
    assert ms.CLASS_NAMES["videos"][:3] == ("circle left", "circle right", "circle up")
    assert len(set(ms.CLASS_NAMES["videos"])) == 24


@pytest.mark.parametrize("kind", ["images", "videos", "crowds"])
def test_classes_are_balanced(kind):
    for count in ms.COUNTS[kind].values():
        assert count % len(ms.CLASS_NAMES[kind]) == 0


def test_an_example_is_a_function_of_its_split_and_number_alone():
    label, frames = ms.render("videos", "train", 7)
    ms.render("videos", "train", 8)
    again, frames_again = ms.render("videos", "train", 7)
    assert label == again == "square down"  # number 7 of 6 shapes x 4 motions
    np.testing.assert_array_equal(frames, frames_again)
    assert ms.encode_mp4(frames) == ms.encode_mp4(frames_again)
    others = [("videos", "test", 7), ("images", "train", 7), ("videos", "train", 31)]
    for other in others:
        assert np.mean(ms.render(*other)[1][0] != frames[0]) > 0.5


def test_the_encoder_gives_the_same_bytes_whatever_lies_in_memory():
    _, frames = ms.render("videos", "train", 5)
    files, clutter = set(), []
    for i in range(30):
        clutter = [*clutter[-9:], bytearray(np.random.default_rng(i).bytes(7919 * i))]
        files.add(ms.encode_mp4(frames))
    assert len(files) == 1


def test_drawing_wraps_around_the_edges():
    rng = np.random.default_rng(0)
    masks = rng.random((1, 40, 40)) < 0.5
    white = np.ones((1, 3), np.float32)

    def draw(y, x):
        frames = np.zeros((1, ms.SIZE, ms.SIZE, 3), np.float32)
        ms._draw(frames, masks, white, np.array([[y, x]]))
        return frames[0]

    centred = draw(101, 103)
    area = masks.sum() / ms.FINE**2
    for down, right in [(0, 0), (40, 0), (0, -50), (33, 39), (64, 128)]:
        moved = draw(101 + down * ms.FINE, 103 + right * ms.FINE)
        np.testing.assert_array_equal(moved, np.roll(centred, (down, right), (0, 1)))
        np.testing.assert_allclose(moved[..., 0].sum(), area, rtol=1e-5)


def test_drawing_agrees_with_painting_the_fine_grid():
    rng = np.random.default_rng(1)
    masks = rng.integers(0, 3, (24, 24))
    masks = np.stack([masks == 1, masks == 2])
    colours = rng.random((2, 3)).astype(np.float32)
    ground = rng.random((3, ms.SIZE, ms.SIZE, 3)).astype(np.float32)
    path = np.array([[5, 250], [6, 251], [130, 17]])
    frames = ground.copy()
    ms._draw(frames, masks, colours, path)
    for t, (top, left) in enumerate(path):
        fine = ground[t].repeat(ms.FINE, 0).repeat(ms.FINE, 1)
        for k, y, x in np.argwhere(masks):
            fine[(top + y) % 256, (left + x) % 256] = colours[k]
        expected = fine.reshape(64, ms.FINE, 64, ms.FINE, 3).mean((1, 3))
        np.testing.assert_allclose(frames[t], expected, atol=1e-5)


@pytest.mark.parametrize("motion", [(0, 0), *ms.MOTIONS.values()])
def test_a_frame_has_the_same_distribution_of_positions_under_every_motion(motion):
    rng = np.random.default_rng(0)
    n, bins = 3200, 4
    seconds = np.arange(ms.FRAMES) / ms.FPS
    corners = []
    for _ in range(n):
        velocity = rng.uniform(12, 28) * np.array(motion)
        corners.append(ms._path(rng, velocity, seconds) % (ms.SIZE * ms.FINE))
    for t in (0, 20, 39):
        y, x = np.array(corners)[:, t].T * bins // (ms.SIZE * ms.FINE)
        counts = np.bincount(y * bins + x, minlength=bins**2)
        expected = n / bins**2
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def displacement(frames: np.ndarray, lag: int = 8) -> np.ndarray:
    """The (y, x) pixels that what changes most moves in `lag` frames.

    What rests cancels in the change over `lag` frames. The change is then found again,
    `lag` frames later, at the peak of the circular cross-correlation of the two.
    """
    change = frames[lag:].astype(float) - frames[:-lag]
    spectrum = np.fft.fft2(change, axes=(1, 2))
    product = (spectrum[lag:] * spectrum[:-lag].conj()).sum((0, 3))
    correlation = np.fft.ifft2(product).real
    peak = np.array(np.unravel_index(correlation.argmax(), correlation.shape))
    return (peak + 32) % 64 - 32


def test_what_moves_in_the_decoded_frames_moves_as_labelled():
    axis_and_sign = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}
    seen = collections.Counter()
    for i in range(48):
        label, frames = ms.render("videos", "train", i)
        moved = displacement(decode(ms.encode_mp4(frames)))
        axis, sign = axis_and_sign[label.split()[1]]
        # 12 to 28 pixels a second for 8/16 of a second.
        assert 5 <= sign * moved[axis] <= 15, (i, label, moved)
        assert abs(moved[1 - axis]) <= 1, (i, label, moved)
        seen[label] += 1
    assert set(seen.values()) == {2} and set(seen) == set(ms.CLASS_NAMES["videos"])


def test_a_crowd_has_one_to_three_shapes_each_with_its_own_motion():
    sizes = collections.Counter()
    for i in range(24):
        labels, frames = ms.render("crowds", "train", i)
        assert labels[0] == ms.MOVING[i]
        shapes, motions = zip(*(label.split() for label in labels), strict=True)
        assert len(set(shapes)) == len(set(motions)) == len(labels)
        assert set(labels) <= set(ms.MOVING)
        sizes[len(labels)] += 1
        again, frames_again = ms.render("crowds", "train", i)
        assert again == labels and np.array_equal(frames_again, frames)
    assert set(sizes) == {1, 2, 3}


def test_every_shape_of_a_crowd_is_drawn_and_moves_as_labelled(monkeypatch):
    drawn = []
    shape, path = ms._shape, ms._path
    monkeypatch.setattr(
        ms, "_shape", lambda rng, name: drawn.append([name]) or shape(rng, name)
    )

    def noted_path(rng, velocity, seconds):
        if drawn and len(drawn[-1]) == 1:  # of a shape, not of clutter
            drawn[-1].append(velocity)
        return path(rng, velocity, seconds)

    monkeypatch.setattr(ms, "_path", noted_path)
    for i in range(12):
        drawn.clear()
        labels, _ = ms.render("crowds", "test", i)
        moved = {
            f"{name} {motion}"
            for name, velocity in drawn
            for motion, direction in ms.MOTIONS.items()
            if np.dot(velocity, direction) >= 12
        }
        assert moved == set(labels)


def test_a_video_is_forty_frames_of_h264_with_key_frames():
    _, frames = ms.render("videos", "test", 3)
    with av.open(io.BytesIO(ms.encode_mp4(frames))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height) == (64, 64)
        assert stream.average_rate == 16
        assert stream.frames == 40
        decoded = list(container.decode(stream))
    assert [float(frame.time) for frame in decoded] == [i / 16 for i in range(40)]
    assert [i for i, frame in enumerate(decoded) if frame.key_frame] == [0, 16, 32]
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
    assert np.abs(pictures.astype(int) - frames).mean() < 8


def test_an_image_is_a_jpeg_of_what_was_drawn():
    label, frames = ms.render("images", "train", 9)
    encoded = ms.encode_jpeg(frames)
    assert label == "star"
    assert encoded[:2] == b"\xff\xd8" and encoded[-2:] == b"\xff\xd9"
    decoded = decode(encoded)
    assert decoded.shape == frames.shape == (1, 64, 64, 3)
    assert np.abs(decoded.astype(int) - frames).mean() < 8
