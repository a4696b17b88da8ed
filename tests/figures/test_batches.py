"""Pages of a batch hold every frame, pixel by pixel; the command line writes them."""

import numpy as np
import pytest

from sparse_tube_vit.figures.__main__ import main
from sparse_tube_vit.figures.batches import batch_grids
from sparse_tube_vit.training.inspection import StepExample
from tests.datasets.preparing.test_verification import FILES
from tests.datasets.written import write_folder


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def coloured(n, t, side):
    """Clips whose frames are of one colour each, and of unlike ones; no grey."""
    numbers = np.arange(n * t).reshape(n, t)
    colours = np.stack([numbers, 255 - numbers, 0 * numbers + 7], axis=-1)
    assert n * t <= 256
    videos = np.broadcast_to(colours[:, :, None, None], (n, t, side, side, 3))
    return videos.astype(np.uint8)


@pytest.mark.parametrize(
    ("n", "t", "side", "shown"),
    [
        (3, 4, 64, 64),
        (6, 40, 96, 96),  # several lines of frames, several pages
        (60, 1, 16, 64),  # enlarged; several side by side
        (2, 3, 224, 112),  # halved
    ],
)
def test_every_frame_is_on_a_page(n, t, side, shown):
    videos = coloured(n, t, side)
    examples = [
        StepExample(v, f"class {i}", (f"id {i}",)) for i, v in enumerate(videos)
    ]
    pages = batch_grids(examples)
    assert (len(pages) > 1) == (n == 6)
    red, green, blue = np.concatenate([pixels(p).reshape(-1, 3) for p in pages]).T
    areas = np.bincount(red[blue == 7][red[blue == 7] == 255 - green[blue == 7]])
    np.testing.assert_array_equal(areas, [shown**2] * (n * t))
    said = [text.get_text() for page in pages for text in page.texts]
    assert said == [f"class {i}\nid {i}" for i in range(n)]


def test_frames_are_shown_pixel_by_pixel_in_order():
    video = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
    (page,) = batch_grids([StepExample(video, "class", ("id",))], columns=3)
    page = pixels(page)
    places = []
    for frame in video:
        rows, columns = np.nonzero((page == frame[0, 0]).all(axis=-1))
        (place,) = (
            (y, x)
            for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
            if np.array_equal(page[y : y + 64, x : x + 64], frame)
        )
        places.append(place)
    (top, left) = places[0]
    assert places == [(top + 66 * (i // 3), left + 66 * (i % 3)) for i in range(5)]


def test_examples_without_weight_are_marked():
    video = np.zeros((2, 64, 64, 3), np.uint8)
    good, bad = (
        StepExample(video, "a", ("b",)),
        StepExample(video, "a", ("c",), "It is broken."),
    )
    (page,) = batch_grids([good, bad])
    first, second = page.texts
    assert "weight 0" not in first.get_text()
    assert second.get_text().endswith("weight 0: It is\nbroken.")
    assert first.get_color() != second.get_color()


CONFIG = """
from sparse_tube_vit.config import default_config, stream
def get_config():
    config = default_config()
    config.clip.update(frames=2, fps=16.0, size=16)
    config.total_steps = 20_000
    clips = dict(kind="video", dataset="video_folder/clips", head="h")
    config.streams.one = stream(**clips, batch_size=3)
    config.streams.two = stream(**clips, batch_size=2, mixup=0.3)
    return config
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    (root / "config.py").write_text(CONFIG)
    write_folder(root / "data", FILES)
    return root


def run_batch(root, *arguments):
    data_dir = f"--config.data_dir={root / 'data'}"
    main(["batch", f"--config={root / 'config.py'}", data_dir, *arguments])


def test_batches_from_the_command_line(prepared, tmp_path, capsys):
    capsys.readouterr()
    run_batch(prepared, "--out", str(tmp_path / "a"))
    paths = [tmp_path / "a" / f"{name}_step1_1.png" for name in ("one", "two")]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    first = [path.read_bytes() for path in paths]
    assert all(picture.startswith(b"\x89PNG") for picture in first)
    run_batch(prepared, "--out", str(tmp_path / "b"), "--step", "2")
    assert (tmp_path / "b" / "one_step2_1.png").read_bytes() != first[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "0"], "--step: '0' is not a whole number of at least 1"),
        (["--config.clip.frames=0"], "clip.frames is 0"),
        (["--config.streams.two.dataset=none"], "none is not prepared"),
        (["--out", "/dev/null/out"], "UnwritableOutput: --out: "),
        (["--workdir=x"], "Unknown command line flag 'workdir'"),
    ],
)
def test_bad_arguments(prepared, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run_batch(prepared, "--out", str(tmp_path / "out"), *arguments)
    assert end.value.code not in (None, 0)
    text = end.value.code if isinstance(end.value.code, str) else ""
    assert message in text + capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))
