"""UCF101's official lists, made up and real."""

import pytest

from sparse_tube_vit import prepare
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import annotations
from sparse_tube_vit.datasets.builders.ucf101 import Ucf101


@pytest.fixture
def lists(tmp_path):
    """Two classes of one clip each in train and test, in class folders."""
    (tmp_path / "classInd.txt").write_text("1 Zumba\n2 Archery\n")
    (tmp_path / "trainlist01.txt").write_text(
        "Zumba/v_Zumba_g08_c01.avi 1\r\nArchery/v_Archery_g08_c01.avi 2\r\n"
    )
    (tmp_path / "testlist01.txt").write_text(
        "Zumba/v_Zumba_g01_c01.avi\nArchery/v_Archery_g01_c01.avi\n"
    )
    for stem in ("v_Zumba_g08_c01", "v_Zumba_g01_c01", "v_Archery_g08_c01"):
        (tmp_path / "videos" / "Zumba").mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / "Zumba" / f"{stem}.mp4").write_bytes(stem.encode())
    (tmp_path / "videos" / "v_Archery_g01_c01.avi").write_bytes(b"flat")
    return tmp_path


def read(lists):
    return Ucf101.read(lists / "videos", lists)


def test_labels_follow_classind_and_clips_are_found_by_stem(lists):
    listing = read(lists)
    assert listing.class_names == ("Zumba", "Archery")
    clips = {
        split: [(x.id, x.label, x.source.name) for x in examples]
        for split, examples in listing.splits.items()
    }
    assert clips["train"] == [
        ("v_Zumba_g08_c01", "Zumba", "v_Zumba_g08_c01.mp4"),
        ("v_Archery_g08_c01", "Archery", "v_Archery_g08_c01.mp4"),
    ]
    assert clips["test"][1] == (
        "v_Archery_g01_c01",
        "Archery",
        "v_Archery_g01_c01.avi",
    )
    assert listing.left_out == ()


def test_missing_clips_and_other_classes_are_left_out_and_said(lists):
    with open(lists / "trainlist01.txt", "a") as file:
        file.write("Zumba/v_Zumba_g09_c01.avi 1\nYoYo/v_YoYo_g08_c01.avi 3\n")
    listing = read(lists)
    assert len(listing.splits["train"]) == 2
    left_out = {row.id: row.status for row in listing.left_out}
    assert "no such video" in left_out["v_Zumba_g09_c01"]
    assert left_out["v_YoYo_g08_c01"] == "class YoYo is not in classInd.txt"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Zumba/v_Zumba_g02_c01.avi 2", "trainlist01.txt:3 gives Zumba the label 2"),
        ("v_Zumba_g08_c02.avi 1", "trainlist01.txt:3: expected"),
        ("Zumba/v_Zumba_g08_c02.avi one", "trainlist01.txt:3: 'one' is no label"),
    ],
)
def test_contradictory_lists(lists, line, message):
    with open(lists / "trainlist01.txt", "a") as file:
        file.write(line)
    with pytest.raises(annotations.BadAnnotations, match=message):
        read(lists)


def test_a_list_that_is_not_there(lists):
    with pytest.raises(annotations.BadAnnotations, match="trainlist02.txt is missing"):
        Ucf101.read(lists / "videos", lists, split=2)


def test_a_class_that_is_there_twice(lists):
    (lists / "classInd.txt").write_text("1 Zumba\n1 Archery\n")
    with pytest.raises(
        annotations.BadAnnotations, match="classInd.txt:2: class 1 Archery"
    ):
        read(lists)


def test_no_videos_at_all(lists):
    with pytest.raises(annotations.MissingVideos, match="none of the 4 listed clips"):
        Ucf101.read(lists / "nowhere", lists)


def test_two_files_for_one_clip(lists):
    (lists / "videos" / "v_Zumba_g08_c01.avi").write_bytes(b"another")
    with pytest.raises(annotations.MissingVideos, match="v_Zumba_g08_c01 could be"):
        read(lists)


def test_ten_real_classes(real_data, tmp_path, capsys):
    ucf10 = real_data / "ucf10"
    arguments = ["ucf101", "--videos", str(ucf10 / "videos")]
    arguments += ["--annotations", str(ucf10), "--data_dir", str(tmp_path)]
    prepare.main(arguments)
    out = capsys.readouterr().out
    assert "train: 528 examples of 10 classes" in out
    assert "test: 212 examples of 10 classes" in out
    assert "left out" not in out
    train = reading.open_split("ucf101/split1", "train", tmp_path)
    test = reading.open_split("ucf101/split1", "test", tmp_path)
    assert (len(train), len(test)) == (528, 212)
    assert train.class_names[:2] == ("BodyWeightSquats", "HandstandPushups")
    groups = []
    for split in (train, test):
        examples = [split[i] for i in range(len(split))]
        for example in examples:
            label = split.class_names[example["label"]]
            assert example["id"].lower().startswith(f"v_{label}_g".lower())
            file = ucf10 / "videos" / label / f"{example['id']}.mp4"
            assert example["video"] == file.read_bytes()
        groups.append({example["id"].rpartition("_")[0] for example in examples})
    assert not groups[0] & groups[1]
