"""Boxes on frames are the windows that loops find; the animation plays all frames."""

import itertools

import numpy as np
import pytest
from PIL import Image

from sparse_tube_vit import Tube, figures
from sparse_tube_vit.figures.attention import spread_over_pixels
from sparse_tube_vit.figures.positions import similarity
from sparse_tube_vit.figures.tubes import frames_read

TUBES = (
    Tube((4, 6, 6), (8, 12, 12), (0, 2, 4), space_to_depth=(2, 2, 1)),
    Tube((1, 8, 8), (8, 8, 8)),
)
CLIP = (16, 24, 32)


def windows(tube, clip):
    """[first corners of a token's windows] of every token, by loops."""
    found = []
    for first in itertools.product(
        *(
            range(o, size - k + 1, s)
            for o, size, k, s in zip(
                tube.offset, clip, tube.kernel, tube.stride, strict=True
            )
        )
    ):
        steps = itertools.product(*map(range, tube.space_to_depth))
        stride = [s // f for s, f in zip(tube.stride, tube.space_to_depth, strict=True)]
        found.append(
            [
                tuple(a + b * c for a, b, c in zip(first, step, stride, strict=True))
                for step in steps
            ]
        )
    return found


def test_boxes_are_the_windows():
    clip = np.random.default_rng(0).integers(0, 255, (*CLIP, 3), np.uint8)
    figure = figures.tube_layout(clip, TUBES, columns=16)
    axes = np.array(figure.axes).reshape(2, 16)
    for tube, row in zip(TUBES, axes, strict=True):
        every = [start for token in windows(tube, CLIP) for start in token]
        for frame, ax in enumerate(row):
            (picture,), (boxes,) = ax.images, ax.collections
            np.testing.assert_array_equal(picture.get_array(), clip[frame])
            expected = {
                (x - 0.5, y - 0.5, x + tube.kernel[2] - 0.5, y + tube.kernel[1] - 0.5)
                for t, y, x in every
                if t <= frame < t + tube.kernel[0]
            }
            drawn = {
                tuple(path.vertices.min(0)) + tuple(path.vertices.max(0))
                for path in boxes.get_paths()
            }
            assert drawn == expected
            assert (picture.get_alpha() == 1) == bool(expected)


def test_an_image_shows_the_tubes_that_read_it():
    image = np.zeros((1, 24, 32, 3), np.uint8)
    (ax,) = figures.tube_layout(image, TUBES).axes
    assert len(ax.collections[0].get_paths()) == 3 * 4 and ax.get_ylabel() == "1x8x8"


@pytest.mark.parametrize("columns", [2, 5, 8])
def test_no_part_of_a_tube_that_reads_few_frames_is_missed(columns):
    tubes = (Tube((16, 4, 4), (16, 16, 16)), Tube((1, 8, 8), (32, 8, 8)))
    shown = frames_read((64, 16, 16), tubes, columns)
    assert {0, 32} <= set(shown) and len(shown) == columns == len(set(shown))


def test_an_animation_plays_every_frame(tmp_path):
    clip = np.zeros((*CLIP, 3), np.uint8)
    clip[:] = 10 * np.arange(16, dtype=np.uint8)[:, None, None, None]
    animation = figures.tube_animation(clip, TUBES[1:], fps=10.0)
    figures.save(animation, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 16 and gif.info["duration"] == 100
        assert gif.info["loop"] == 0  # for ever
        shown = []
        for frame in range(16):
            gif.seek(frame)
            pixels = np.asarray(gif.convert("L"))
            shown.append(int(pixels[int(0.45 * gif.height), int(0.45 * gif.width)]))
    # Frames 0 and 8 are read, the others pale.
    read = [shown[0], shown[8]]
    np.testing.assert_allclose(read, [0, 80], atol=4)
    pale = np.delete(255 - 0.35 * (255 - 10.0 * np.arange(16)), [0, 8])
    np.testing.assert_allclose(np.delete(shown, [0, 8]), pale, atol=6)


def test_weights_lie_on_the_pixels_that_tokens_read():
    rng = np.random.default_rng(0)
    tubes = (*TUBES, Tube((6, 8, 4), (3, 4, 8)))  # whose windows overlap
    tokens = [windows(tube, CLIP) for tube in tubes]
    shares = rng.random(sum(map(len, tokens)))
    maps = spread_over_pixels(shares, tubes, CLIP)
    of_token = iter(shares)
    for i, tube in enumerate(tubes):
        got = {}
        for starts, share in zip(tokens[i], of_token, strict=False):
            for start in starts:
                for step in itertools.product(*map(range, tube.kernel)):
                    place = tuple(a + b for a, b in zip(start, step, strict=True))
                    got.setdefault(place, []).append(share)
        expected = np.full(CLIP, np.nan)
        for place, some in got.items():
            if all(p < n for p, n in zip(place, CLIP, strict=True)):
                expected[place] = np.mean(some)
        np.testing.assert_allclose(maps[i], expected)


def test_attention_says_what_every_tube_gets():
    clip = np.zeros((*CLIP, 3), np.uint8)
    counts = [len(windows(tube, CLIP)) for tube in TUBES]
    shares = np.repeat([0.75 / counts[0], 0.25 / counts[1]], counts)
    figure = figures.attention(clip, TUBES, shares, "title")
    labels = [ax.get_ylabel() for ax in figure.axes if "even: " in ax.get_ylabel()]
    even = [f"{n / sum(counts):.0%}" for n in counts]
    assert labels == [
        f"4x6x6\n75% (even: {even[0]})",
        f"1x8x8\n25% (even: {even[1]})",
    ]


def test_attention_has_the_colors_of_its_bar():
    clip = np.random.default_rng(0).integers(0, 256, (*CLIP, 3), np.uint8)
    counts = [len(windows(tube, CLIP)) for tube in TUBES]
    shares = np.random.default_rng(1).dirichlet(np.ones(sum(counts)))
    figure = figures.attention(clip, TUBES, shares, "title")
    maps = [ax.images[-1] for ax in figure.axes if len(ax.images) == 2]
    drawn = figure.axes[-1].collections[-1]  # of the colour bar
    relative = [x.get_array().compressed() for x in maps]
    expected = [*spread_over_pixels(shares * sum(counts), TUBES, CLIP).values()]
    shown = frames_read(CLIP, TUBES, 8)
    expected = [x[t][~np.isnan(x[t])] for x in expected for t in shown]
    for got, wanted, image in zip(relative, expected, maps, strict=True):
        np.testing.assert_allclose(got, wanted)
        assert image.get_alpha() is None  # nothing shines through
        colors = image.to_rgba(wanted)
        np.testing.assert_array_equal(colors, drawn.to_rgba(wanted))
        assert (colors[:, 3] == 1).all()


def test_similarity_is_the_cosine_of_every_pair():
    x = np.random.default_rng(0).normal(size=(5, 7))
    x[3] = 0
    got = similarity(x)
    for i, j in itertools.product(range(5), range(5)):
        norm = np.sqrt((x[i] ** 2).sum() * (x[j] ** 2).sum())
        expected = sum(a * b for a, b in zip(x[i], x[j], strict=True)) / (norm or 1)
        assert got[i, j] == pytest.approx(expected, abs=1e-12)


def test_one_token_is_compared_with_all_at_their_places():
    n = [len(windows(tube, CLIP)) for tube in TUBES]
    x = np.random.default_rng(0).normal(size=(sum(n), 12))
    figure = figures.position_similarity(x, TUBES, CLIP)
    pairs, _, *maps = figure.axes
    np.testing.assert_allclose(pairs.images[0].get_array(), similarity(x))
    shown = [ax.images[0].get_array().ravel() for ax in maps if ax.images]
    # The middle of the first tube's 2 x 2 x 2 tokens is the last.
    assert n[0] == 8
    np.testing.assert_allclose(np.concatenate(shown), similarity(x)[7])
