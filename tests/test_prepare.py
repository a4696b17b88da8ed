"""The command line: what it prints, refuses, and leaves alone."""

import os
import subprocess
import sys
from typing import ClassVar

import pytest

from sparse_tube_vit import prepare as command
from sparse_tube_vit.datasets import catalog, reading
from sparse_tube_vit.datasets.builders.folders import VideoFolder
from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.datasets.preparing import beam, prepare
from sparse_tube_vit.datasets.preparing import plan as planning
from sparse_tube_vit.datasets.preparing.progress import Progress
from sparse_tube_vit.video.transcode import Transcode
from tests.datasets.builders import official


@pytest.fixture
def images(tmp_path):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/1.txt"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(official.encode_image(len(name)))
    return str(tmp_path / "images")


def run(*arguments):
    command.main(list(arguments))


def ended(*arguments):
    """The exit code of a run that ends before its end."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    return end.value.code


def test_says_what_was_written_and_left_out(images, tmp_path, capsys):
    (tmp_path / "images" / "cat" / "3.jpg").write_bytes(b"damaged")
    arguments = ("image_folder", "--name", "pets", "--images", images)
    arguments += ("--data_dir", str(tmp_path / "data"), "--workers", "0")
    run(*arguments)
    printed = capsys.readouterr()
    directory = tmp_path / "data" / "image_folder" / "pets" / "1.0.0"
    assert printed.err == "image_folder/pets: 4 images\n"
    first, *lines = printed.out.splitlines()
    assert first.startswith(f"image_folder/pets: written to {directory} in")
    assert lines == [
        "       train",
        "  cat      2",
        "  dog      1",
        "  train: 3 examples of 2 classes, 1 to 2 a class",
        "  left out: 2",
        "    cat/3.jpg: FFmpeg cannot decode it: Invalid data found when processing"
        " input.",
        "    dog/1.txt: .txt is not a known image suffix",
    ]
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    run(*arguments)
    assert f"already in {directory}" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in directory.iterdir()}


class Mini(VideoFolder):
    """A builder that this package does not have."""

    name = "mini"
    given: ClassVar[list] = []

    @classmethod
    def read(cls, **options):
        cls.given.append(options)
        return super().read(options["videos"])


def test_a_builder_reads_all_its_options(tmp_path, monkeypatch):
    monkeypatch.setitem(catalog.BUILDERS, "mini", f"{__name__}:Mini")
    options = ("name", "videos", "annotations"), ("split", "transcode")
    monkeypatch.setitem(catalog.OPTIONS, "mini", options)
    official.write_clips(tmp_path / "clips", "train/cat/1.mp4")
    given = {"videos": str(tmp_path / "clips"), "annotations": "lists", "split": 2}
    arguments = ["mini", "--name", "a", "--data_dir", str(tmp_path), "--workers", "0"]
    run(*arguments, *(f"--{name}={value}" for name, value in given.items()))
    assert Mini.given == [given]
    assert len(reading.open_split("mini/a", "train", tmp_path)) == 1


def test_interrupted_and_gone_on_with(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(planning.SHARD_EXAMPLES, "video", 1)
    names = [f"{split}/cat/{i}.mp4" for split in ("train", "test") for i in range(2)]
    clips = official.write_clips(tmp_path / "clips", *names)
    arguments = ("video_folder", "--name", "cats", "--videos", str(tmp_path / "clips"))
    arguments += ("--data_dir", str(tmp_path), "--transcode", "crf=30")
    arguments += ("--workers", "0")
    steps = []

    def interrupt(progress, more):
        steps.append(more)
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", interrupt)
    assert ended(*arguments) == 130
    assert capsys.readouterr().err.endswith("The same command continues from here.\n")
    monkeypatch.undo()
    run(*arguments)
    assert capsys.readouterr().err == (
        "video_folder/cats: 2 videos left; 2 of 4 shards are there already\n"
    )
    for split in ("train", "test"):
        for example in reading.open_split("video_folder/cats", split, tmp_path):
            transcoded = Transcode(crf=30)(clips[example["id"]])
            assert example["video"] == transcoded


def test_options_of_beam_and_a_pipeline_that_writes_nothing(
    images, tmp_path, monkeypatch, capsys
):
    given = []
    monkeypatch.setattr(
        beam, "write_shards", lambda plan, options: given.append((plan, options))
    )
    arguments = ("image_folder", "--name", "pets", "--images", images)
    arguments += ("--beam", "--runner=DirectRunner", "--data_dir", str(tmp_path))
    assert ended(*arguments) == 1
    assert "Unfinished: " in capsys.readouterr().err
    ((plan, options),) = given
    assert options == "--runner=DirectRunner"
    assert [len(shard.examples) for shard in planning.unfinished(plan)] == [3]


def test_names_that_are_not_in_utf_8_can_be_printed():
    name = b"\xff/1.mp4".decode(errors="surrogateescape")
    row = Row("train", name, status=f"{name} is a link")
    told = prepare._left_out([row], "there/manifest.csv")[1]
    unknown = "\N{REPLACEMENT CHARACTER}"
    assert told == f"    {unknown}/1.mp4: {unknown}/1.mp4 is a link"


def test_a_directory_whose_name_is_not_in_utf_8(images, tmp_path, capsys):
    directory = tmp_path / os.fsdecode(b"caf\xe9")
    os.rename(images, directory)
    arguments = ["image_folder", "--name", "x", "--images", str(directory)]
    arguments += ["--workers", "0", "--data_dir"]
    run(*arguments, str(tmp_path / "data"))
    assert "image_folder/x: written to" in capsys.readouterr().out
    assert ended(*arguments, str(directory / "data")) == 1
    error = capsys.readouterr().err
    assert "UnwritableOutput: " in error and "caf\\udce9/data" in error


def test_lists_of_what_was_left_out_are_cut(tmp_path):
    rows = [Row("train", str(i), status="damaged") for i in range(25)]
    lines = prepare._left_out([Row("train", "good"), *rows], "there/manifest.csv")
    assert lines[0] == "  left out: 25" and len(lines) == 22
    assert lines[-2:] == [
        "    19: damaged",
        "    and 5 more, all in there/manifest.csv",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ucf101"], "BadArguments: ucf101 needs --videos, --annotations"),
        (["image_folder", "--images", "x"], "image_folder needs --name"),
        (["moving_shapes", "--videos", "x"], "moving_shapes has no use for --videos"),
        (["video_folder", "--name", "a/b", "--videos", "x"], "--name 'a/b'"),
        (["moving_shapes", "--workers", "2", "--beam", ""], "give one of them"),
        (["moving_shapes", "--transcode", "crf=20"], "no use for --transcode"),
        (["imagenet2012", "--transcode", "crf=x"], "BadTranscode: --transcode crf=x: "),
        (["video_folder", "--name", "a", "--videos", "no/such"], "NoClassFolders: no/"),
    ],
)
def test_bad_input_is_one_line_and_a_nonzero_exit(tmp_path, capsys, arguments, message):
    assert ended(*arguments, "--data_dir", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_as_a_program(tmp_path):
    program = [sys.executable, "-m", "sparse_tube_vit.prepare", "ucf101"]
    program += ["--videos", "a", "--annotations", "b", "--data_dir", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("BadAnnotations: b/classInd.txt is missing")
    assert "Traceback" not in done.stderr
