"""Charades' CSV files: several actions a video, or none."""

import dataclasses

import numpy as np
import pytest

from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import annotations
from sparse_tube_vit.datasets.builders.charades import Charades
from sparse_tube_vit.input import pipeline
from tests.datasets.builders import official

HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions"
HEADER += ",actions,length"
# In an order that is not that of the alphabet.
CLASSES = "c000 Holding some clothes\nc001 Putting clothes somewhere\nc002 Awakening\n"


def row(name, actions):
    script = '"A person walks in, holds clothes; ""nice"".\nThen leaves."'
    return f"{name},HR43,Kitchen,6,7,Yes,{script},clothes;door,Text.,{actions},24.83"


ROWS = {
    "train": [
        row("46GP8", "c002 11.90 21.20;c000 0.00 12.60;c002 22.00 24.00"),
        row("N11GT", "c001 0.00 15.00"),
        row("0IH69", ""),
        row("GONE1", "c001 0.00 15.00"),
    ],
    "test": [row("YSKX3", "c001 0.00 29.00;c000 0.00 29.00"), row("EMPTY", "")],
}


@pytest.fixture
def release(tmp_path):
    (tmp_path / "Charades_v1_classes.txt").write_text(CLASSES)
    for split, rows in ROWS.items():
        text = "\n".join([HEADER, *rows, ""])
        (tmp_path / f"Charades_v1_{split}.csv").write_text(text)
    return tmp_path


def read(root):
    return Charades.read(root / "videos", root)


def test_prepared_and_read_back(release, capsys):
    names = ("46GP8.mp4", "N11GT.mp4", "0IH69.mp4", "test/YSKX3.avi", "EMPTY.mp4")
    clips = list(official.write_clips(release / "videos", *names).values())
    source = ("--videos", release / "videos", "--annotations", release)
    out = official.prepared(capsys, release, "charades", *source)
    assert f"charades: written to {release / 'data' / 'charades' / '1.0.0'} in" in out
    assert "train: 2 examples of 3 classes, 1 to 1 a class" in out
    assert "note: 3 of the 157 official classes" in out
    assert "left out: 3" in out
    # Lines as an editor counts them: a script may hold a line break.
    assert f"0IH69: no action in {release}/Charades_v1_train.csv:7" in out
    assert f"EMPTY: no action in {release}/Charades_v1_test.csv:5" in out
    assert "GONE1: listed in" in out
    assert official.examples(release, "charades", "train") == {
        "46GP8": ({"Holding some clothes", "Awakening"}, clips[0]),
        "N11GT": ({"Putting clothes somewhere"}, clips[1]),
    }
    both = {"Holding some clothes", "Putting clothes somewhere"}
    assert official.examples(release, "charades", "test") == {"YSKX3": (both, clips[3])}
    split = reading.open_split("charades", "test", release / "data", kind="video")
    assert split.class_names == tuple(x[5:] for x in CLASSES.splitlines())
    assert split.multi_label and split[0]["label"].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("train.csv", row("AAAAA", "c003 0.00 1.00"), r"csv:11: c003 not in .*classes"),
        ("train.csv", row("AAAAA", "c000 0.00"), "csv:11: expected `class start end`"),
        ("train.csv", row("AAAAA", "c000 0 x"), "csv:11: expected `class start end`"),
        ("train.csv", "AAAAA,HR43", "csv:10: not one field"),
        ("train.csv", row("", "c000 0.00 1.00"), "csv:11: no id"),
        ("classes.txt", "c1 Opening a door", "classes.txt:4: expected `c000 name`"),
        ("classes.txt", "c003 Awakening", "classes.txt:4: class c003 Awakening is the"),
        (
            "classes.txt",
            "\n".join(f"c{i} Doing {i}" for i in range(300, 455)),
            "classes.txt: 158 classes; the data set has 157",
        ),
    ],
)
def test_contradictory_annotations(release, name, line, message):
    official.write_clips(release / "videos", "46GP8.mp4")
    with open(release / f"Charades_v1_{name}", "a") as file:
        file.write(line)
    with pytest.raises(annotations.BadAnnotations, match=message):
        read(release)


def test_a_file_or_a_column_that_is_not_there(release):
    (release / "Charades_v1_test.csv").write_text("id,length\n")
    with pytest.raises(annotations.BadAnnotations, match="csv:1: no column actions"):
        read(release)
    (release / "Charades_v1_test.csv").unlink()
    with pytest.raises(annotations.BadAnnotations, match="Charades_v1_test.csv is mis"):
        read(release)


def test_of_a_video_that_is_listed_twice_the_first_counts(release, capsys):
    official.write_clips(release / "videos", "46GP8.mp4", "N11GT.mp4", "YSKX3.mp4")
    again = [row("46GP8", ROWS["train"][0].split(",")[-2])]
    again += [row("N11GT", "c000 0.00 1.00")]
    with open(release / "Charades_v1_test.csv", "a") as file:
        file.write("\n".join(again))
    listing = read(release)
    assert [e.id for e in listing.splits["train"]] == ["46GP8", "N11GT"]
    assert [e.id for e in listing.splits["test"]] == ["YSKX3"]
    reasons = {row.id: row.status for row in listing.left_out}
    train, test = (release / f"Charades_v1_{x}.csv" for x in ("train", "test"))
    assert reasons["46GP8"] == (f"listed again in {test}:7; {train}:3 counts")
    assert f"csv:9 with other labels; {train}:5 counts" in reasons["N11GT"]
    source = ("--videos", release / "videos", "--annotations", release)
    assert "N11GT: listed again in" in official.prepared(
        capsys, release, "charades", *source
    )


def test_times_of_actions_are_stored(release, capsys):
    official.write_clips(release / "videos", "46GP8.mp4", "N11GT.mp4", "YSKX3.mp4")
    source = ("--videos", release / "videos", "--annotations", release)
    official.prepared(capsys, release, "charades", *source)
    split = reading.open_split("charades", "train", release / "data")
    assert split.timed
    actions = {e["id"]: e["action_seconds"] for e in split}
    expected = [[2, 11.9, 21.2], [0, 0, 12.6], [2, 22, 24]]
    np.testing.assert_array_equal(actions["46GP8"], np.array(expected, np.float32))
    assert actions["N11GT"].tolist() == [[1, 0, 15]]
    # Data sets that were prepared before are read, but cannot label clips.
    crowds = dataclasses.replace(split, timed=False)
    config = default_config()
    options = {"dataset": "charades", "head": "c", "batch_size": 1, "loss": "sigmoid"}
    with pytest.raises(reading.UnsupportedDataset, match="video.labels is 'clip', but"):
        pipeline.training_batches(
            crowds,
            "video",
            stream(kind="video", labels="clip", **options),
            config.clip,
            config.loader,
            seed=0,
        )
