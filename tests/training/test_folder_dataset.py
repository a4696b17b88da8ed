"""Folders of clips as data sets: their splits, digests, and what is wrong with some."""

import pytest

from sparse_tube_vit.checkpoints.run import OtherRun
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders.folders import NoClassFolders, TooFewExamples
from sparse_tube_vit.datasets.preparing.write import NothingDecodes
from sparse_tube_vit.storage import UnreachableStorage
from sparse_tube_vit.training import folder_dataset
from tests.datasets.builders import official
from tests.training.clips import CLIPS, config_of


def test_a_folder_is_prepared_once_and_again_when_it_changes(clips, tmp_path):
    def prepare():
        return folder_dataset.prepare_folder(config_of(clips, tmp_path / "data"))

    first = prepare()
    (info,) = (tmp_path / "data" / first.dataset).glob("*/dataset_info.json")
    before = info.stat().st_mtime_ns
    (clips / "notes.txt").write_text("no clip")
    assert prepare() == first and info.stat().st_mtime_ns == before
    (clips / CLIPS[0]).write_bytes(official.encode(200))
    assert prepare().dataset != first.dataset


def test_a_folder_that_has_changed_is_not_prepared_for_a_run_that_goes_on(
    clips, tmp_path, monkeypatch
):
    config = config_of(clips, tmp_path / "data")
    first = folder_dataset.prepare_folder(config)
    assert folder_dataset.prepare_folder(config, begun=[first.dataset]) == first
    (clips / CLIPS[0]).write_bytes(official.encode(200))
    monkeypatch.setattr(
        folder_dataset.prepare, "prepare", lambda *_, **__: pytest.fail("prepared")
    )
    message = f"now, but the run began with {first.dataset}: files, labels or splits"
    with pytest.raises(OtherRun, match=message):
        folder_dataset.prepare_folder(config, begun=[first.dataset])


def test_the_same_files_in_a_folder_of_another_name_are_the_same(clips, tmp_path):
    first = folder_dataset.prepare_folder(config_of(clips, tmp_path / "data"))
    again = clips.rename(clips.parent / "moved")
    (again / ".DS_Store").touch()
    elsewhere = config_of(again, tmp_path / "elsewhere")
    assert folder_dataset.prepare_folder(elsewhere, begun=[first.dataset]) == first
    here, there = (
        reading.open_split(first.dataset, "train", tmp_path / directory).fingerprint()
        for directory in ("data", "elsewhere")
    )
    assert here == there


def test_prepared_data_in_the_folder_of_classes_is_refused(clips, tmp_path):
    (tmp_path / "link").symlink_to(clips)
    for data_dir in (clips, clips / "data", tmp_path / "link" / "data"):
        with pytest.raises(NoClassFolders, match="set --config.data_dir to a folder"):
            folder_dataset.prepare_folder(config_of(clips, data_dir))
        assert {path.name for path in clips.iterdir()} == {"Kür & pas", "walk the dog"}


@pytest.mark.parametrize(
    "url, error, message",
    [
        ("https://x/clips", NoClassFolders, "data.folder is .* https:// is not read"),
        ("hf://datasets/x", NoClassFolders, "hf:// is not read: download it"),
        ("az://x/clips", UnreachableStorage, "az://x/clips cannot be read: .*adlfs"),
    ],
)
def test_folders_that_cannot_be_reached(tmp_path, url, error, message):
    with pytest.raises(error, match=message):
        folder_dataset.prepare_folder(config_of(url, tmp_path))


def test_many_files_are_prepared_by_processes(clips, tmp_path, monkeypatch):
    given = []
    prepare = folder_dataset.prepare.prepare

    def told(builder, workers):
        given.append(workers)
        return prepare(builder, workers=0)

    monkeypatch.setattr(folder_dataset.prepare, "prepare", told)
    for name in ("few", "many"):
        folder_dataset.prepare_folder(config_of(clips, tmp_path / name))
        monkeypatch.setattr(folder_dataset, "_MANY", len(CLIPS))
    assert given == [0, None]


@pytest.mark.parametrize("test", ["test", "val"])
def test_splits_that_a_folder_has_are_kept(tmp_path, test):
    names = [f"{s}/{c}/{i}.mp4" for s in ("train", test) for c in "ab" for i in "12"]
    official.write_clips(tmp_path / "clips", *names, f"{test}/b/3.mp4")
    data = folder_dataset.prepare_folder(config_of(tmp_path / "clips", tmp_path))
    assert data.test == test
    assert len(reading.open_split(data.dataset, "train", tmp_path)) == 4
    assert len(reading.open_split(data.dataset, test, tmp_path)) == 5


def test_splits_of_a_list(clips, tmp_path):
    lines = [f"{name},{'test' if '/0' in name else 'train'}" for name in CLIPS]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    argument = f"--config.data.split_list={tmp_path / 'list.csv'}"
    config = config_of(clips, tmp_path, "", argument)
    data = folder_dataset.prepare_folder(config)
    test = reading.open_split(data.dataset, data.test, tmp_path)
    assert {example["id"] for example in test} == {CLIPS[0], CLIPS[4]}


@pytest.mark.parametrize(
    "names, damaged, error, message",
    [
        (("a/1.mp4", "a/2.mp4"), (), TooFewExamples, "clips has one class, 'a'"),
        (("a/1.mp4", "b/2.mp4", "b/3.mp4"), (), TooFewExamples, "'a' has one file"),
        (
            ("train/a/1.mp4", "train/b/2.mp4", "test/b/3.mp4"),
            (),
            TooFewExamples,
            "clips: class 'a' has no video in test. Add videos",
        ),
        (
            ("a/1.mp4", "a/2.mp4", "b/3.mp4", "b/4.mp4"),
            ("a/1.mp4",),
            TooFewExamples,
            r"'a' has no video in t.*Remove what does not decode \(a/1.mp4\). Add",
        ),
        (CLIPS, CLIPS, NothingDecodes, "none of the 8 examples decodes"),
        (
            ("train/a/1.mp4", "train/b/2.mp4", "tset/b/3.mp4"),
            (),
            reading.UnknownSplit,
            "has the splits train, tset.*train and one of test.*held out.$",
        ),
        (
            [f"whole/{name}" for name in CLIPS],
            (),
            reading.UnknownSplit,
            "the splits whole.*classes in whole: --config.data.folder=.*/clips/whole$",
        ),
        (
            [f"my clips/{name}" for name in CLIPS],
            (),
            NoClassFolders,
            "'my clips' cannot name a split: .*; classes are .*clips/<class>/<file>$",
        ),
        (
            ("sport/a/1.mp4", "sport/b/1.mp4", "dance/c/1.mp4"),
            (),
            reading.UnknownSplit,
            "splits dance, sport.*groups of them, put .*/clips/<class>/<file>$",
        ),
        (
            ("Training/a/1.mp4", "Training/b/1.mp4", "Testing/a/2.mp4"),
            (),
            reading.UnknownSplit,
            "splits T.*, T.* It takes train and one of test.* rename them.$",
        ),
        (
            ("a/1.mp4", "a/more/2.mp4", "b/1.mp4"),
            (),
            NoClassFolders,
            "clips/b holds no class folders, though .*/a/more is a folder in a folder",
        ),
    ],
)
def test_folders_that_cannot_be_learnt_from(tmp_path, names, damaged, error, message):
    official.write_clips(tmp_path / "clips", *names)
    for i, name in enumerate(damaged):
        (tmp_path / "clips" / name).write_bytes(b"damaged" * i)
    with pytest.raises(error, match=message):
        folder_dataset.prepare_folder(config_of(tmp_path / "clips", tmp_path))
    assert damaged or not (tmp_path / "video_folder").exists()
