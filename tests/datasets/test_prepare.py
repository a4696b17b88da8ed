"""The command line: what it prints, refuses, and leaves alone."""

import subprocess
import sys

import pytest

from sparse_tube_vit import prepare
from tests.datasets import official


@pytest.fixture
def images(tmp_path):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/1.txt"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(official.encode_image(len(name)))
    return str(tmp_path / "images")


def run(*arguments):
    return prepare.main(list(arguments))


def test_says_what_was_written_and_left_out(images, tmp_path, capsys):
    arguments = ("image_folder", "--name", "pets", "--images", images)
    arguments += ("--data_dir", str(tmp_path / "data"))
    arguments += ("--workers", "1")
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    directory = tmp_path / "data" / "image_folder" / "pets" / "1.0.0"
    assert f"image_folder/pets: written to {directory} in" in out
    assert "train: 3 examples of 2 classes, 1 to 2 a class" in out
    assert "left out: 1\n    dog/1.txt: .txt is not a known image suffix" in out
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert run(*arguments) == 0
    assert f"already in {directory}" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ucf101"], "BadArguments: ucf101 needs --videos, --annotations"),
        (["image_folder", "--images", "x"], "image_folder needs --name"),
        (["moving_shapes", "--videos", "x"], "moving_shapes has no use for --videos"),
        (["video_folder", "--name", "a/b", "--videos", "x"], "--name 'a/b'"),
        (["video_folder", "--name", "a", "--videos", "no/such"], "NoClassFolders: no/"),
    ],
)
def test_bad_input_is_one_line_and_a_nonzero_exit(tmp_path, capsys, arguments, message):
    assert run(*arguments, "--data_dir", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_as_a_program(tmp_path):
    program = [sys.executable, "-m", "sparse_tube_vit.prepare", "ucf101"]
    program += ["--videos", "a", "--annotations", "b", "--data_dir", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("BadAnnotations: b/classInd.txt is missing")
    assert "Traceback" not in done.stderr
