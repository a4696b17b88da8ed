"""Kinetics' CSV files: every way clips are named, what is left out, what is refused."""

import pathlib
import shutil

import numpy as np
import pytest

from sparse_tube_vit.datasets import manifest, reading
from sparse_tube_vit.datasets.builders import annotations, kinetics
from sparse_tube_vit.datasets.catalog import OFFICIAL_CLASSES
from sparse_tube_vit.datasets.preparing import verification
from sparse_tube_vit.video.decode import decode
from tests.datasets.builders import official
from tests.video import written

HEADER = "label,youtube_id,time_start,time_end,split"
LISTS = {
    "train.csv": (
        HEADER,
        '"zumba",-AbC_def123,10,20,train',
        "playing American football,twice-times,0,10,train",
        "playing American football,twice-times,5,15,train",
        "abseiling,gone_000001,3,13,train",
    ),
    "validate.csv": (HEADER, "abseiling,val_0000001,27,37,validate"),
    "test.csv": (HEADER, "zumba,test0000001,1,11,test"),
}
CLIPS = (
    "-AbC_def123.mp4",  # by id alone, flat
    "playing_american_football/twice-times_0_10.webm",
    "train/playing american football/twice-times_000005_000015.mkv",
    "val/abseiling/val_0000001_000027_000037.mp4",
    "test/test0000001.avi",
    "other/never-listed.mp4",
)


@pytest.fixture
def release(tmp_path):
    """Lists of three classes; train and validation do not come in sorted order."""
    for name, lines in LISTS.items():
        (tmp_path / name).write_bytes("\r\n".join([*lines, ""]).encode())
    return tmp_path


def read(root):
    return kinetics.Kinetics400.read(root / "videos", root)


def test_a_link_that_leads_nowhere_is_a_missing_clip(release):
    official.write_clips(release / "videos", *CLIPS)
    clip = release / "videos" / CLIPS[0]
    clip.rename(release / "elsewhere.mp4")
    clip.symlink_to(release / "elsewhere.mp4")
    assert len(read(release).splits["train"]) == 3
    (release / "elsewhere.mp4").unlink()
    listing = read(release)
    assert len(listing.splits["train"]) == 2
    row = listing.left_out[0]
    assert (row.id, row.label) == ("-AbC_def123_000010_000020", "zumba")
    assert row.status == f"{clip} is a link to {release}/elsewhere.mp4, which is absent"


@pytest.mark.parametrize("dataset", ["kinetics400", "kinetics600", "kinetics700"])
def test_prepared_and_read_back(release, capsys, dataset):
    clips = list(official.write_clips(release / "videos", *CLIPS).values())
    source = ("--videos", release / "videos", "--annotations", release)
    out = official.prepared(capsys, release, dataset, *source)
    directory = release / "data" / dataset / "1.0.0"
    assert f"{dataset}: written to {directory} in" in out
    assert "train: 3 examples of 3 classes, 0 to 2 a class" in out
    assert f"note: 3 of the {dataset[-3:]} official classes are in {release}" in out
    missing = f"gone_000001_000003_000013: listed in {release}/train.csv:5, but no such"
    assert f"left out: 1\n    {missing}" in out
    football = "playing American football"
    assert official.examples(release, dataset, "train") == {
        "-AbC_def123_000010_000020": ("zumba", clips[0]),
        "twice-times_000000_000010": (football, clips[1]),
        "twice-times_000005_000015": (football, clips[2]),
    }
    assert official.examples(release, dataset, "validation") == {
        "val_0000001_000027_000037": ("abseiling", clips[3])
    }
    assert official.examples(release, dataset, "test") == {
        "test0000001_000001_000011": ("zumba", clips[4])
    }
    split = reading.open_split(dataset, "train", release / "data", kind="video")
    assert split.class_names == ("abseiling", football, "zumba")


def test_all_classes_in_sorted_order_without_a_note(release, monkeypatch):
    rows = [f"class {i},id{i:09d},0,10,train" for i in reversed(range(400))]
    (release / "train.csv").write_text("\n".join([HEADER, *rows]))
    (release / "validate.csv").write_text(HEADER)
    (release / "test.csv").unlink()
    official.write_clips(release / "videos", "id000000007.mp4")
    listing = read(release)
    assert listing.class_names == tuple(sorted(f"class {i}" for i in range(400)))
    assert listing.notes == () and len(listing.left_out) == 399
    with pytest.raises(annotations.BadAnnotations, match="400 classes; .* has 3"):
        monkeypatch.setitem(OFFICIAL_CLASSES, "kinetics400", 3)
        read(release)


def test_a_test_list_without_labels_is_left_out_and_said(release):
    (release / "test.csv").unlink()
    (release / "kinetics700_2020_test.csv").write_text(
        "youtube_id,time_start,time_end,split\ntest0000001,1,11,test\n"
    )
    official.write_clips(release / "videos", *CLIPS)
    listing = read(release)
    assert set(listing.splits) == {"train", "validation"}
    assert "left out 1 clips of test that have no label" in listing.notes


def test_a_split_without_any_clip_is_left_out_and_said(release):
    official.write_clips(release / "videos", "-AbC_def123.mp4")
    listing = read(release)
    assert list(listing.splits) == ["train"]
    notes = " ".join(listing.notes)
    assert (
        "no split validation: none of its clips" in notes and "no split test" in notes
    )
    assert len(listing.left_out) == 5


def test_an_id_alone_is_that_of_a_whole_video_where_several_clips_are_of_it(
    release, capsys
):
    source = ("--videos", release / "videos", "--annotations", release)
    manifest_file = release / "data/kinetics400/1.0.0/manifest.csv"
    for fps, spans in (("5/2", [(0, 10), (5, 15)]), (5, [None, None])):
        video = written.write_video(written.numbered(50), fps)
        official.write_clips(release / "videos", "twice-times.mp4", "-AbC_def123.mp4")
        (release / "videos/twice-times.mp4").write_bytes(video)
        out = official.prepared(capsys, release, "kinetics400", *source)
        rows = {row.id: row for row in manifest.read(manifest_file)}
        names = ["twice-times_000000_000010", "twice-times_000005_000015"]
        assert [rows[name].span for name in names] == spans
        for name in names:
            assert (rows[name].status == "ok") == bool(spans[0])
            any_clip = f"{name}: It lasts 10.0 s, so it may be any clip of a video"
            assert (any_clip in out) == (not spans[0])
        shutil.rmtree(release / "data")
    official.write_clips(release / "videos", "twice-times_5_15.mp4")
    (*_, other) = read(release).splits["train"]
    assert other.source.name == "twice-times_5_15.mp4"


def test_no_clip_at_all(release):
    with pytest.raises(annotations.MissingVideos, match="none of the 6 listed clips"):
        read(release)


def test_two_files_for_one_clip(release):
    official.write_clips(
        release / "videos", "a/-AbC_def123.mp4", "-AbC_def123_000010_000020.mp4"
    )
    with pytest.raises(
        annotations.MissingVideos, match="-AbC_def123_.* could be .* or"
    ):
        read(release)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("train.csv", "abseiling,-AbC_def123,10,20,train", "csv:6: .*'zumba' in .*:2"),
        ("train.csv", ",new00000000,10,20,train", "train.csv:6: a clip .* without a"),
        ("train.csv", "zumba,new00000000,10,20,val", "train.csv:6: split 'val' in a"),
        ("train.csv", "zumba,new00000000,x,20,train", "train.csv:6: time_start 'x'"),
        ("train.csv", "zumba,new00000000,10,20", "train.csv:6: not one field"),
        ("train.csv", "zumba,n,10,20,train,more", "train.csv:6: not one field"),
        ("train.csv", 'zumba,"' + "x" * 200_000, "after line 5: field larger"),
        ("train.csv", "zumba,,10,20,train", "train.csv:6: no youtube_id"),
        ("test.csv", "yoga,new00000000,10,20,test", "test.csv:3: class 'yoga' is nei"),
        ("my_train.csv", HEADER, "the train list could be .*my_train.csv or .*train"),
        ("x.val.csv", HEADER, None),  # not a list of any split
    ],
)
def test_contradictory_lists(release, name, line, message):
    official.write_clips(release / "videos", *CLIPS)
    with open(release / name, "a") as file:
        file.write(line)
    if message is None:
        assert read(release).splits
        return
    with pytest.raises(annotations.BadAnnotations, match=message):
        read(release)


def test_a_column_or_a_list_that_is_not_there(release):
    (release / "validate.csv").write_text("label,youtube_id,start,time_end\n")
    with pytest.raises(annotations.BadAnnotations, match="validate.csv:1: no column t"):
        read(release)
    (release / "validate.csv").write_bytes(f"{HEADER}\n\xe9".encode("latin-1"))
    with pytest.raises(
        annotations.BadAnnotations, match="validate.csv is not in UTF-8"
    ):
        read(release)
    (release / "validate.csv").unlink()
    with pytest.raises(annotations.BadAnnotations, match="no validation list in"):
        read(release)


def test_links_to_class_folders(release):
    clip = "videos/zumba/-AbC_def123.mp4"
    official.write_clips(release, clip, "disk/val_0000001_000027_000037.mp4")
    (release / "videos/abseiling").symlink_to(release / "disk")
    splits = read(release).splits
    assert [x.source.relative_to(release).as_posix() for x in splits["train"]] == [clip]
    assert [x.label for x in splits["validation"]] == ["abseiling"]


def test_of_a_clip_that_is_listed_twice_the_first_counts(release):
    official.write_clips(release / "videos", *CLIPS)
    with open(release / "validate.csv", "a") as file:
        file.write("zumba,-AbC_def123,10,20,val")
    listing = read(release)
    assert {split: len(clips) for split, clips in listing.splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 1,
    }
    (again,) = (row for row in listing.left_out if row.id.startswith("-AbC"))
    assert again.split == "validation"
    train, validation = release / "train.csv", release / "validate.csv"
    assert again.status == f"listed again in {validation}:3; {train}:2 counts"


@pytest.mark.parametrize("separator", [",", "\t"])
def test_lists_of_kinetics_600_as_they_are_distributed(release, separator):
    for old, new in (("train", "train.txt"), ("validate", "val.txt")):
        text = (release / f"{old}.csv").read_text().replace(",", separator)
        (release / new).write_text(text)
        (release / f"{old}.csv").unlink()
    held_out = release / "kinetics600_holdout_test.csv"
    held_out.write_text("youtube_id,time_start,time_end\ntest0000001,1,11\n")
    (release / "._train.txt").write_bytes(b"\0\5\x16\7")  # as macOS adds it
    official.write_clips(release / "videos", *CLIPS)
    listing = read(release)
    assert {split: len(clips) for split, clips in listing.splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 1,
    }
    assert f"left out the clips of {held_out}: there is a list of test" in listing.notes
    (release / "test.csv").unlink()
    listing = read(release)
    assert set(listing.splits) == {"train", "validation"}
    assert "left out 1 clips of test that have no label" in listing.notes


def test_replacements_and_class_folders_of_links(release):
    """Kinetics-400 as unpacked, and after its arrange_by_classes.py."""
    videos = release / "videos"
    names = ("twice-times_000000_000010.mp4", "twice-times_000005_000015.mp4")
    flat = [f"train/{name}" for name in names]
    new = f"replacement/replacement_for_corrupted_k400/{names[1]}"
    validation = "val/val_0000001_000027_000037.mp4"
    official.write_clips(videos, *flat, new, validation)
    for name in (flat[0], new, validation):
        link = videos / "videos/any/some class" / pathlib.Path(name).name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(videos / name)
    listing = read(release)
    chosen = [e.source.relative_to(videos).as_posix() for e in listing.splits["train"]]
    assert chosen == [flat[0], new]
    (clip,) = listing.splits["validation"]
    assert clip.source == videos / validation
    assert "1 clips are those of a folder `replacement`" in listing.notes
    listing = kinetics.Kinetics400.read(videos / "videos", release)
    assert [len(clips) for clips in listing.splits.values()] == [2, 1]


def test_files_of_whole_videos_are_their_clips_alone(release, capsys):
    """Of a video of a minute, its seconds 10 to 20; others are clips already."""
    whole = written.write_video(written.numbered(50), "5/6")
    official.write_clips(release / "videos", CLIPS[0], CLIPS[3], CLIPS[4])
    (release / "videos" / CLIPS[0]).write_bytes(whole)
    source = ("--videos", release / "videos", "--annotations", release)
    out = official.prepared(capsys, release, "kinetics400", *source)
    assert "note: 1 files are longer than their clip" in out
    directory = release / "data/kinetics400/1.0.0"
    rows = {row.id: row for row in manifest.read(directory / "manifest.csv")}
    name = "-AbC_def123_000010_000020"
    assert (rows[name].span, rows[name].status) == ((10, 20), "ok")
    assert rows[name].seconds == 60
    others = [row for row in rows.values() if row.status == "ok" and row.id != name]
    assert len(others) == 2 and not any(row.span for row in others)
    (record,) = reading.open_split("kinetics400", "train", release / "data")
    assert record["clip_seconds"] == (10, 20) and record["video"] == whole
    (record,) = reading.open_split("kinetics400", "validation", release / "data")
    assert set(record) == {"id", "label", "video"}
    assert verification.verify("kinetics400", release / "data").errors == 0

    shutil.rmtree(release / "data")
    verification.open_once.cache_clear()
    source += ("--transcode", "crf=10")
    official.prepared(capsys, release, "kinetics400", *source)
    rows = {row.id: row for row in manifest.read(directory / "manifest.csv")}
    assert rows[name].span == (10, 20) and rows[name].seconds < 13
    (record,) = reading.open_split("kinetics400", "train", release / "data")
    assert set(record) == {"id", "label", "video"}
    clip, _ = decode(record["video"], lambda _: np.arange(9) * 1.2, written.whole)
    assert written.numbers(clip) == list(range(8, 17))
    assert verification.verify("kinetics400", release / "data").errors == 0


def test_a_file_that_is_neither_a_clip_nor_its_video(release, capsys):
    official.write_clips(release / "videos", *CLIPS)
    video = written.write_video(written.numbered(50), 2)
    (release / "videos/val/abseiling/val_0000001_000027_000037.mp4").unlink()
    (release / "videos/val_0000001.mp4").write_bytes(video)
    source = ("--videos", release / "videos", "--annotations", release)
    out = official.prepared(capsys, release, "kinetics400", *source)
    assert "val_0000001_000027_000037: It lasts 25.0 s, so it is neither the" in out
