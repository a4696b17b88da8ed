"""Data of the small tasks: clips forwards and backwards."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders.moving_shapes import encode_mp4, render
from sparse_tube_vit.datasets.builders.ucf101 import Ucf101
from sparse_tube_vit.datasets.reading import DatasetNotPrepared
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.reproduction import data, document
from sparse_tube_vit.reproduction.runs import Results, Run, name_of, plan
from sparse_tube_vit.reproduction.tables import TABLES, select
from sparse_tube_vit.video.transcode import Transcode

IMAGES = "image_folder/tiny_imagenet"


CLASSES = data.CLASSES


@pytest.fixture(autouse=True)
def _two_classes(monkeypatch):
    monkeypatch.setattr(data, "CLASSES", ("Archery", "Bowling"))


def frames_of(path):
    with av.open(path) as video:
        return np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])


def write_ucf101(folder):
    """Writes a data set of two classes with a clip to train and one to test on."""
    names = ("Archery", "Bowling")
    for i, name in enumerate(names):
        for group in (1, 2):
            clip = folder / "videos" / name / f"v_{name}_g0{group}_c01.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            _, frames = render("videos", "train", 2 * i + group)
            clip.write_bytes(encode_mp4(frames))
    lists = {
        "classInd.txt": [f"{i} {name}" for i, name in enumerate(names, 1)],
        "trainlist01.txt": [
            f"{name}/v_{name}_g01_c01.mp4 {i}" for i, name in enumerate(names, 1)
        ],
        "testlist01.txt": [f"{name}/v_{name}_g02_c01.mp4" for name in names],
    }
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines))


def runs_of(task, *names):
    """Runs of rows, those that they start from before them."""
    return plan(select(names), [task], 1, Results("nowhere"), Path("nowhere"))


def prepare(folder, *tasks):
    """Prepares what tasks read of the clips in a folder; returns where."""
    tables = {"ucf101_image_vit": "8", "ucf101_directions": "directions"}
    runs = [run for task in tasks for run in runs_of(task, tables.get(task, "5"))]
    data_dir = str(folder / "data")
    data.prepare_data(runs, data_dir, str(folder / "ucf101"), None, 0)
    return data_dir


def missing(task, name, data_dir):
    """What the error names that rows lack."""
    with pytest.raises(DatasetNotPrepared) as error:
        data.check_data(runs_of(task, name), Results("nowhere"), str(data_dir))
    return str(error.value).partition(" not prepared in ")[0]


def test_results_of_other_data_are_kept_apart(tmp_path):
    write_ucf101(tmp_path / "ucf101")
    data_dir = prepare(tmp_path, "ucf101")
    results, row = Results(tmp_path), TABLES["5"].row("videos_alone")
    runs = [Run.of("5", row, "ucf101", seed) for seed in (0, 1)]
    for examples in (2, 212):
        found = {"video": {"top1": 0.5, "tokens": 9, "examples": examples}}
        results.add(runs[0], {"evaluations": found, "minutes": 1.0})
        if examples == 2:
            data.check_data(runs[1:], results, data_dir)
            continue
        with pytest.raises(data.OtherData, match="of 212 examples of ucf101.* has 2"):
            data.check_data(runs[1:], results, data_dir)


def test_results_of_other_weights_are_kept_apart(tmp_path):
    results, row = Results(tmp_path), TABLES["finetuning"].row("last_4")
    runs = [Run("finetuning", row, "ucf101_finetuning", seed) for seed in (0, 1)]
    original, tuned, moved = (tmp_path / x for x in ("a/small", "b/small", "c/other"))
    for folder, content in ((original, "1"), (tuned, "2"), (moved, "1")):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(content)
    name = name_of(str(original))
    results.add(runs[0], {"evaluations": {}, "minutes": 1.0, "weights": name})
    said = f"from {name}; those of --weights are hf://x/small"
    with pytest.raises(data.OtherData, match=said):
        data.check_weights(runs[1:], results, "hf://x/small")
    data.check_weights(runs[1:], results, str(moved / "model.safetensors"))
    with pytest.raises(data.OtherData, match="those of --weights are small, SHA-256"):
        data.check_weights(runs[1:], results, str(tuned))
    data.check_weights(runs_of("moving_shapes", "5"), results, "hf://x/small")


def test_two_that_write_directions_do_not_meet(tmp_path):
    write_ucf101(tmp_path / "ucf101")
    listing = Ucf101.read(tmp_path / "ucf101" / "videos", str(tmp_path / "ucf101"))
    with ThreadPoolExecutor(4) as pool:
        for written in [
            pool.submit(data.write_directions, listing, tmp_path / "directions")
            for _ in range(4)
        ]:
            written.result()
    assert len([*(tmp_path / "directions").rglob("*.mp4")]) == 8
    assert not [*(tmp_path / "directions").rglob("*.part")]


def test_a_clip_is_written_in_both_directions(tmp_path):
    write_ucf101(tmp_path / "ucf101")
    for _ in range(2):  # the second time nothing is left to do
        prepare(tmp_path, "ucf101_directions")
    runs = runs_of("ucf101_directions", "directions")
    data.check_data(runs, Results(tmp_path), str(tmp_path / "data"))
    assert "ucf101/split1_small" in missing("ucf101", "5", tmp_path / "data")
    folder = tmp_path / "data" / "ucf101_directions"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mp4"))
    assert names == sorted(
        f"{split}/{name}_{direction}/v_{name}_g0{group}_c01.mp4"
        for split, group in (("train", 1), ("test", 2))
        for name in ("Archery", "Bowling")
        for direction in ("forwards", "backwards")
    )
    clip = "v_Bowling_g02_c01.mp4"
    source = frames_of(tmp_path / "ucf101" / "videos" / "Bowling" / clip)
    forwards = frames_of(folder / "test" / "Bowling_forwards" / clip)
    backwards = frames_of(folder / "test" / "Bowling_backwards" / clip)
    assert len(source) == len(forwards) == len(backwards) > 8
    for found, expected in ((forwards, source), (backwards, source[::-1])):
        error = np.abs(found.astype(int) - expected).mean()
        assert error < 3
        assert np.abs(found[::-1].astype(int) - expected).mean() > 2 * error


def test_a_clip_that_does_not_decode_is_named(tmp_path):
    write_ucf101(tmp_path / "ucf101")
    clip = tmp_path / "ucf101" / "videos" / "Bowling" / "v_Bowling_g01_c01.mp4"
    clip.write_bytes(clip.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"Bowling_g01_c01.mp4: .* Remove it from"):
        prepare(tmp_path, "ucf101_directions")


def test_small_clips_are_the_same_clips(tmp_path, monkeypatch):
    write_ucf101(tmp_path / "ucf101")
    monkeypatch.setattr(data, "SMALL_CLIPS", Transcode(short_side=32, gop=12, crf=18))
    prepare(tmp_path, "ucf101", "ucf101_directions", "ucf101_image_vit")
    source, small, directions = (
        reading.open_split(name, "test", tmp_path / "data")
        for name in (
            "ucf101/split1",
            "ucf101/split1_small",
            "video_folder/ucf101_directions_small",
        )
    )
    assert small.class_names == source.class_names
    assert len(directions) == 2 * len(source) == 2 * len(small) == 4
    for ours, theirs in zip(small, source, strict=True):
        assert (ours["id"], ours["label"]) == (theirs["id"], theirs["label"])
        found, whole = (frames_of(io.BytesIO(x["video"])) for x in (ours, theirs))
        assert found.shape[1:] == (32, 32, 3) and whole.shape[1:] == (64, 64, 3)
        grey = whole.reshape(len(found), 32, 2, 32, 2, 3).mean((2, 4, 5))
        # x264 smooths the noise of these clips, which makes the most of the error.
        error, other = (np.abs(x.mean(3) - grey).mean() for x in (found, found[::-1]))
        assert 4 * error < other
    for clip in directions:
        assert frames_of(io.BytesIO(clip["video"])).shape[1:] == (32, 32, 3)


def test_the_document_names_the_classes():
    text = " ".join(document.INTRODUCTION.split())
    assert f"{len(CLASSES)} classes of UCF101 ({', '.join(CLASSES)})" in text


def test_other_classes_are_not_taken(tmp_path, monkeypatch):
    write_ucf101(tmp_path / "ucf101")
    monkeypatch.setattr(data, "CLASSES", ("Archery", "Lunges"))
    with pytest.raises(DatasetError, match="lacks Lunges: results are of 2 classes"):
        prepare(tmp_path, "ucf101")
    monkeypatch.setattr(data, "CLASSES", ("Bowling",))
    data_dir = prepare(tmp_path, "ucf101")
    split = reading.open_split("ucf101/split1_small", "train", data_dir)
    assert len(split) == 1 and tuple(split.class_names) == ("Bowling",)


def test_what_is_missing_is_named(tmp_path):
    embedded = runs_of("moving_shapes", "5")
    data.check_data(embedded, Results(tmp_path), str(tmp_path))
    assert missing("ucf101", "5", tmp_path) == f"{IMAGES} and ucf101/split1_small"
    directions = missing("ucf101_directions", "directions", tmp_path)
    assert directions == "video_folder/ucf101_directions_small"
    alone = missing("ucf101_finetuning", "finetuning:last_4", tmp_path)
    assert alone == "ucf101/split1"
    # Created from a small model, which is trained jointly.
    assert IMAGES in missing("ucf101_image_vit", "6:head", tmp_path)
