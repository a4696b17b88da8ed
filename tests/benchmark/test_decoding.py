import re
import sys

import av
import numpy as np
import pytest

from sparse_tube_vit.benchmark import __main__ as command
from sparse_tube_vit.benchmark import decoding
from tests.video.written import moving, write_video

FRAMES = 40


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A key frame every 8 frames, others stored in another order than shown."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(write_video(moving(FRAMES), b_frames=2))
    return str(path)


@pytest.fixture(scope="module")
def every(path):
    with av.open(path) as container:
        frames = container.decode(video=0)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def test_the_command_names_every_decoder():
    assert [*decoding.DECODERS] == [*command.DECODERS]


def test_a_file(path):
    file = decoding.File.read(path)
    assert (file.frames, file.rate) == (FRAMES, 25)
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    keys = [(i, frame.pts) for i, frame in enumerate(frames) if frame.key_frame]
    assert sorted(file.keys) == keys and len(keys) >= 5


@pytest.mark.parametrize("start", [0, 7, 8, 21])
def test_every_decoder_gives_the_frames_asked_for(path, every, start):
    file, numbers = decoding.File.read(path), start + 3 * np.arange(6)
    for name in ("pyav", "opencv"):
        clip = decoding.DECODERS[name](file, numbers)
        errors = np.abs(clip[:, None].astype(int) - every).mean(axis=(2, 3, 4))
        assert errors.argmin(axis=1).tolist() == numbers.tolist(), name
        assert errors.min(axis=1).max() < 1, name


@pytest.mark.parametrize("start", [0, 7, 8, 21])
def test_the_limit_decodes_from_the_key_frame_to_the_last_frame(path, every, start):
    file = decoding.File.read(path)
    decoded = dict(decoding.frames_alone(file, np.array([start, start + 5])))
    first = max(number for number, _ in file.keys if number <= start)
    assert list(decoded) == list(range(first, start + 6))
    for i, frame in decoded.items():
        np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), every[i])


def run(*arguments):
    command.main(arguments)


def test_the_command_prints_a_row_each(path, capsys):
    run(
        *("decode", path, "--frames", "4", "--size", "32", "--runs", "2"),
        *("--randaugment", "2", "--beside", "pyav", "opencv"),
    )
    _, *rows = capsys.readouterr().out.splitlines()
    names = ["decoding alone", "ours", "ours, RandAugment", "pyav", "opencv"]
    for name, row in zip(names, rows, strict=True):
        assert row.strip().startswith(name)
        milliseconds, ratio = map(float, row.split()[-2:])
        assert milliseconds >= 0 and ratio > 0
    assert float(rows[0].split()[-1]) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--beside", "decord"], "UnusableDecoder: decord does not decode"),
        (["--start", "30"], "TooFewFrames: .*40 frames; 4 at stride 4 take 13"),
    ],
)
def test_named_errors(path, monkeypatch, capsys, arguments, message):
    monkeypatch.setitem(sys.modules, "decord", None)  # as if it were not installed
    with pytest.raises(SystemExit) as ended:
        run("decode", path, "--frames", "4", "--stride", "4", *arguments)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.match(message, error)


def test_a_file_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        run("decode", "nowhere.mp4")
    assert (
        "UnreadableFile: nowhere.mp4: No such file or directory."
        in capsys.readouterr().err
    )
