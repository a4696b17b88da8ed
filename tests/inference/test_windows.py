"""Sliding windows: which there are, what each shows, and what a command tells."""

import csv
import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest

import sparse_tube_vit as stv
from sparse_tube_vit import predict
from sparse_tube_vit.inference import loaded
from sparse_tube_vit.inference.windows import InvalidWindow, spans
from sparse_tube_vit.models.tubevit import UnknownHead
from sparse_tube_vit.video import limits
from sparse_tube_vit.video.limits import UndecodableClip
from tests.video.written import SIZE, moving, write_video

RATE = 16  # frames a second of the demo's clips, of two seconds


@pytest.fixture(scope="module")
def tubevit():
    return stv.load("demo")


@pytest.fixture(scope="module")
def changing(tmp_path_factory):
    """A video of ten seconds: dark, then from second 5 on bright."""
    frames = np.full((10 * RATE, *SIZE, 3), 20, np.uint8)
    frames[5 * RATE :] = 230
    path = tmp_path_factory.mktemp("videos") / "changing.mp4"
    path.write_bytes(write_video(frames, RATE))
    return path


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A video whose picture changes its size after five seconds."""
    sizes = [np.full((5 * RATE, height, 64, 3), 90, np.uint8) for height in (48, 80)]
    path = tmp_path_factory.mktemp("broken") / "broken.ts"
    path.write_bytes(b"".join(write_video(x, RATE, "mpegts") for x in sizes))
    return path


@pytest.fixture
def brightness(tubevit, monkeypatch):
    """Scores: the first class is darkness, the second is light."""
    batches = []

    def scores(self, videos, head):
        batches.append(videos.shape)
        light = videos.mean(axis=(1, 2, 3, 4, 5)) / 255
        rest = np.zeros((len(videos), len(self.class_names[head]) - 2))
        columns = [(1 - light)[:, None], light[:, None], rest]
        return np.concatenate(columns, axis=1).astype(np.float32)

    monkeypatch.setattr(loaded.TrainedTubeViT, "scores", scores)
    return batches


@pytest.mark.parametrize(
    ("window", "stride", "duration", "expected"),
    [
        (4, 2, 8, [(0, 4), (2, 6), (4, 8)]),
        (4, 2, 9, [(0, 4), (2, 6), (4, 8), (5, 9)]),  # moved to end with the video
        (4, 4, 8.04, [(0, 4), (4, 8)]),  # less than a frame is left
        (4, 4, 8.5, [(0, 4), (4, 8), (4.5, 8.5)]),
        (4, 4, 7.96, [(0, 4), (3.96, 7.96)]),
        (4, 2, 3, [(0, 3)]),  # longer than the video
        (1, 5, 12, [(0, 1), (5, 6), (10, 11)]),  # gaps
        (1, 5, 10.5, [(0, 1), (5, 6), (9.5, 10.5)]),
        (1, 5, 10, [(0, 1), (5, 6)]),
        (0.01, 1, 0.04, [(0, 0.01)]),
    ],
)
def test_windows_cover_a_video(window, stride, duration, expected):
    found = spans(window, stride, duration, frame=1 / 16)
    assert np.allclose(found, expected), found


def test_each_window_is_predicted_as_the_part_cut_out(tubevit, tmp_path):
    frames = moving(96)
    lossless = {"codec": "ffv1", "container": "avi", "pix_fmt": "bgr0"}
    (tmp_path / "whole.avi").write_bytes(write_video(frames, RATE, **lossless))
    found = [*tubevit.windows(tmp_path / "whole.avi", 2.5, 1.5, top=99)]
    assert [(p.begin, p.end) for p in found] == [(0, 2.5), (1.5, 4), (3, 5.5), (3.5, 6)]
    for p in found:
        part = tmp_path / "part.avi"
        cut = frames[round(p.begin * RATE) : round(p.end * RATE)]
        part.write_bytes(write_video(cut, RATE, **lossless))
        expected = dict(tubevit.predict(part, top=99))
        assert len(p.classes) == len(expected) == len(p.scores)
        for name, probability in p.classes:
            np.testing.assert_allclose(probability, expected[name], rtol=1e-4)
        names = tubevit.class_names[p.head]
        assert dict(zip(names, p.scores, strict=True)) == dict(p.classes)
    alone = tubevit.predict(part, top=1)
    assert [*tubevit.windows(part, 99, top=1)][0].classes[0][0] == alone[0][0]


def test_the_limit_of_cpu_time_in_training_is_not_that_of_a_long_video(
    tubevit, changing, brightness, monkeypatch
):
    """By a clock that goes on by a second whenever it is looked at."""
    monkeypatch.setattr(limits.time, "thread_time", itertools.count().__next__)
    config = tubevit.config.copy_and_resolve_references()
    config.loader.decode_timeout_seconds = 3.0
    impatient = dataclasses.replace(tubevit, config=config)
    assert len([*impatient.windows(changing, 2)]) == 5
    assert impatient.predict(changing)


def test_a_video_that_changes_has_classes_that_change(tubevit, changing, brightness):
    found = [*tubevit.windows(changing, 2, 0.5, top=1, batch_size=3)]
    dark, light = tubevit.class_names["motions"][:2]
    assert len(found) == 17
    for p in found:
        expected = dark if (p.begin + p.end) / 2 <= 5 else light
        assert p.classes[0][0] == expected, p
        bright = np.clip((p.end - 5) / 2, 0, 1)
        np.testing.assert_allclose(p.scores[1], (20 + bright * 210) / 255, atol=0.02)
    assert {shape[0] for shape in brightness} == {3} and len(brightness) == 6


def test_each_window_has_the_views_that_are_asked_for(tubevit, changing, brightness):
    """Three of a window of four seconds: its halves and its middle."""
    found = [*tubevit.windows(changing, 4, views=(3, 1))]
    assert [p.begin for p in found] == [0, 4, 6]
    bright = np.array([0, (0.5 + 1 + 1) / 3, 1])
    expected = (20 + bright * 210) / 255
    np.testing.assert_allclose([p.scores[1] for p in found], expected, atol=0.02)
    assert {shape[1] for shape in brightness} == {3}


@pytest.mark.parametrize("options", [[], ["--window=4"]])
def test_the_command_reads_the_views_that_are_asked_for(changing, brightness, options):
    predict.main(["--model=demo", str(changing), "--views=2x3", *options])
    assert {shape[1] for shape in brightness} == {6}


def test_windows_come_before_the_video_ends(tubevit, changing, brightness):
    found = tubevit.windows(changing, 0.5, 0.1, batch_size=2)
    assert next(found).begin == 0 and len(brightness) == 1
    found.close()


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_what_is_no_window_is_named_at_once(tubevit, changing, seconds):
    with pytest.raises(InvalidWindow, match=f"A window of {seconds} seconds"):
        tubevit.windows(changing, seconds)
    with pytest.raises(InvalidWindow, match=f"A stride of {seconds} seconds"):
        tubevit.windows(changing, 2, seconds)
    with pytest.raises(InvalidWindow, match="at least 0.01"):
        tubevit.windows(changing, 2, 1e-5)
    with pytest.raises(UnknownHead):
        tubevit.windows(changing, 2, head="dogs")


def test_an_image_has_no_windows_and_a_video_of_one_frame_has_one(
    tubevit, brightness, tmp_path
):
    still, video = tmp_path / "still", tmp_path / "video.mp4"
    for path in (still, video):
        path.write_bytes(write_video(moving(1)))
    with pytest.raises(UndecodableClip, match="still: It is an image"):
        next(tubevit.windows(still, 2))
    (window,) = tubevit.windows(video, 2)
    assert window.begin == 0 and 0 < window.end < 2


def test_short_windows_loop_and_say_so(tubevit, changing, brightness, caplog):
    assert len([*tubevit.windows(changing, 0.5)]) == 20
    assert "0.5 s is shorter than the model's clips of 2 s" in caplog.text


def test_the_command_tells_of_windows_in_every_format(
    changing, brightness, tmp_path, capsys
):
    (tmp_path / "bad.mp4").write_text("no video")

    def run(*options):
        arguments = ["--model=demo", str(changing), str(tmp_path / "bad.mp4")]
        with pytest.raises(SystemExit) as end:
            predict.main([*arguments, "--window=4", "--stride=3", *options])
        assert end.value.code == 1
        printed = capsys.readouterr()
        assert "1 of 2 files have a problem, named above" in printed.err
        return printed.out

    *windows, bad = json.loads(run("--top=2", "--format=json"))
    assert [(w["begin"], w["end"]) for w in windows] == [(0, 4), (3, 7), (6, 10)]
    assert [len(w["classes"]) for w in windows] == [2, 2, 2]
    assert {w["file"] for w in windows} == {str(changing)}
    assert bad["file"].endswith("bad.mp4") and "FFmpeg" in bad["problem"]
    rows = [*csv.DictReader(io.StringIO(run("--top=1", "--format=csv")))]
    assert [(r["begin"], r["end"]) for r in rows[:3]] == [
        ("0.0", "4.0"),
        ("3.0", "7.0"),
        ("6.0", "10.0"),
    ]
    assert [r["class"] for r in rows[:3]] == [w["classes"][0]["name"] for w in windows]
    assert rows[3]["begin"] == "" and "FFmpeg" in rows[3]["problem"]
    head, *lines = run("--top=1").splitlines()
    assert head.split() == ["file", "begin", "end", "head", "probability", "class"]
    assert [line.split()[1:3] for line in lines[:3]] == [
        ["0.00", "4.00"],
        ["3.00", "7.00"],
        ["6.00", "10.00"],
    ]
    columns = [line.index("motions") for line in lines[:3]]
    assert {*columns} == {head.index("head")}


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_video_that_breaks_off_has_the_windows_before(
    tubevit, broken, brightness, batch_size
):
    """Whether the last of them fill a batch or not."""
    found = []
    with pytest.raises(UndecodableClip, match=r"broken.ts: Its size changes from \(48"):
        found.extend(tubevit.windows(broken, 2, 1, batch_size=batch_size))
    assert [(p.begin, p.end) for p in found] == [(0, 2), (1, 3), (2, 4), (3, 5)]


def test_the_command_goes_on_after_a_video_that_breaks_off(
    broken, changing, brightness, capsys
):
    arguments = ["--model=demo", str(broken), str(changing), "--format=json"]
    with pytest.raises(SystemExit) as end:
        predict.main([*arguments, "--window=4", "--stride=1", "--batch_size=3"])
    assert end.value.code == 1
    first, second, problem, *rest = json.loads(capsys.readouterr().out)
    assert [x["begin"] for x in (first, second)] == [0, 1]
    assert {x["file"] for x in (first, second, problem)} == {str(broken)}
    assert problem["problem"].startswith("Its size changes")
    assert [x["begin"] for x in rest] == [*range(7)]
    assert {x["file"] for x in rest} == {str(changing)}


def test_the_command_plots_one_video(changing, brightness, tmp_path, capsys):
    arguments = ["--model=demo", "--window=2", str(changing)]
    predict.main([*arguments, f"--plot={tmp_path / 'p.png'}"])
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    for wrong, problem in (
        ([*arguments, str(changing), "--plot=x.png"], "one video, not 2 files"),
        (["--model=demo", "--stride=2", str(changing)], "go with --window"),
        ([*arguments, "--stride=nan"], "'nan' is no number above 0"),
        ([*arguments, f"--plot={tmp_path}/none/p.png"], "UnwritableOutput"),
    ):
        with pytest.raises(SystemExit):
            predict.main(wrong)
        assert problem in capsys.readouterr().err
