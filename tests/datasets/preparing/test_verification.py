"""Everything that can be wrong with a prepared data set is found and named."""

import dataclasses
import shutil

import numpy as np
import pytest

from sparse_tube_vit.datasets import manifest, reading
from sparse_tube_vit.datasets.builders import builder, moving_shapes
from sparse_tube_vit.datasets.builders.folders import VideoFolder
from sparse_tube_vit.datasets.preparing import verification, write
from sparse_tube_vit.datasets.preparing.verification import Problem
from tests.datasets.builders import official
from tests.datasets.written import Other, picture, write_folder

CLIPS = [
    f"{split}/{label}/{i}.mp4"
    for split, count in (("train", 3), ("test", 1))
    for label in ("ant", "bee", "cat")
    for i in range(count)
]


FILES = {name: official.encode(10 * (i + 1)) for i, name in enumerate(CLIPS)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    write_folder(data_dir, FILES)
    return data_dir


@pytest.fixture
def copied(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "data")
    return tmp_path / "data" / "video_folder" / "clips" / "1.0.0"


def verify(directory):
    data_dir, dataset = (
        directory.parents[2],
        directory.relative_to(directory.parents[2]),
    )
    return verification.verify(str(dataset.parent), data_dir)


def test_a_sound_data_set(sound):
    result = verification.verify("video_folder/clips", sound)
    assert (result.problems, result.errors) == ({}, 0)
    assert result.counts == [
        "3 classes, in sorted order",
        "train: 9 videos, 3 to 3 a class; 18 frames, 0.0 minutes",
        "test: 3 videos, 1 to 1 a class; 6 frames, 0.0 minutes",
        "manifest: 12 examples, 1 left out",
    ]
    for label, (split, index, row) in result.first_examples.items():
        assert split.split == "train"
        assert split[index]["id"] == row.id and f"/{label}/" in row.id
    assert set(result.first_examples) == {"ant", "bee", "cat"}


def test_worker_processes_find_the_same(sound):
    result = verification.verify("video_folder/clips", sound, workers=2)
    assert result == verification.verify("video_folder/clips", sound)


def edit(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


def lines_of(directory, *clips):
    """The rows of some clips in the manifest, as text."""
    lines = (directory / "manifest.csv").read_text().splitlines()
    return [next(line for line in lines if f",{clip}," in line) for clip in clips]


def change_a_byte(directory):
    split = reading.open_split("video_folder/clips", "train", directory.parents[2])
    names = [example["id"] for example in split]
    (path,) = directory.glob("*train*")
    data = bytearray(path.read_bytes())
    data[3000] ^= 1  # of the 9 records, which take less than the file
    path.write_bytes(data)
    (lost,) = (i for i in range(len(split)) if not readable(split, i))
    return {
        "UNREADABLE": [f"train record {lost}: RuntimeError"],
        "NO_RECORD": [f"train {names[lost]}"],
    }


def readable(split, index):
    try:
        return bool(dataclasses.replace(split)[index])  # with its files opened anew
    except RuntimeError:
        return False


def remove_a_shard(directory):
    (path,) = directory.glob("*test*")
    path.unlink()
    places = [f"test {clip}" for clip in CLIPS if clip.startswith("test")]
    return {
        "OTHER_COUNT": [path.name],
        "UNREADABLE": ["test record 0", "test record 1", "test record 2"],
        "NO_RECORD": places,
    }


def take_a_shard_of_another_length(directory):
    (train,), (test,) = directory.glob("*train*"), directory.glob("*test*")
    shutil.copy(train, test)
    return {
        "OTHER_COUNT": [f"{test.name}: 9 records, not 3"],
        # Whichever three come first.
        "NO_ROW": ["test train/"] * 3,
        "LEAK": ["train train/"] * 3,
        "NO_RECORD": [f"test {clip}" for clip in CLIPS if clip.startswith("test")],
    }


def swap_two_labels(directory):
    bee, cat = lines_of(directory, "train/bee/0.mp4", "test/cat/0.mp4")
    swapped = (bee, bee.replace(",bee,", ",cat,")), (cat, cat.replace(",cat,", ",bee,"))
    edit(directory / "manifest.csv", *swapped)
    return {
        "OTHER_LABEL": [
            "train train/bee/0.mp4: 'bee', not 'cat'",
            "test test/cat/0.mp4: 'cat', not 'bee'",
        ]
    }


def swap_two_classes(directory):
    edit(directory / "label.labels.txt", ("ant\nbee", "bee\nant"))
    return {
        "NOT_SORTED": ["label 0 is 'bee', label 1 is 'ant'"],
        "OTHER_ORDER": [
            "label 0 is 'bee'; its 4 examples are 'ant' there",
            "label 1 is 'ant'; its 4 examples are 'bee' there",
        ],
    }


def remove_a_row(directory):
    (line,) = lines_of(directory, "test/cat/0.mp4")
    edit(directory / "manifest.csv", (line + "\n", ""))
    return {"NO_ROW": ["test test/cat/0.mp4"]}


def leave_an_example_out(directory):
    (line,) = lines_of(directory, "test/cat/0.mp4")
    edit(directory / "manifest.csv", (line, line.removesuffix("ok") + "too dull"))
    return {"NO_ROW": ["test test/cat/0.mp4: left out there, too dull"]}


def list_another_file(directory):
    (line,) = lines_of(directory, "train/cat/2.mp4")
    digest = line.split(",")[2]
    edit(directory / "manifest.csv", (digest, "0" * 64))
    return {"OTHER_FILE": [f"train train/cat/2.mp4: SHA-256 {digest}, not 000"]}


def count_other_frames(directory):
    (line,) = lines_of(directory, "train/cat/2.mp4")
    assert ",16,2,0.125,cat,ok" in line
    edit(directory / "manifest.csv", (line, line.replace(",2,0.125,", ",3,0.1875,")))
    place = "train train/cat/2.mp4: decoded_frames 2, not 3; seconds 0.125, not 0.1875"
    return {"OTHER_FRAMES": [place]}


@pytest.mark.parametrize(
    "damage",
    [
        change_a_byte,
        remove_a_shard,
        take_a_shard_of_another_length,
        swap_two_labels,
        swap_two_classes,
        remove_a_row,
        leave_an_example_out,
        list_another_file,
        count_other_frames,
    ],
    ids=lambda damage: damage.__name__,
)
def test_what_is_wrong_is_found_and_nothing_else(copied, damage):
    expected = damage(copied)
    result = verify(copied)
    found = {problem.name: places for problem, places in result.problems.items()}
    assert found.keys() == expected.keys()
    for name, places in expected.items():
        assert len(found[name]) == len(places), name
        for place in places:
            assert any(place in other for other in found[name]), (name, found[name])
    assert result.errors == sum(map(len, expected.values())) - len(
        expected.get("LEAK", ())
    )
    for problem, places in result.problems.items():
        assert f"{problem.description} ({len(places)}). {problem.advice}" in str(result)
        assert all(place in str(result) for place in places)


def test_clips_that_do_not_decode_and_files_that_are_there_twice(tmp_path):
    change = {
        "train/cat/0.mp4": b"no video",
        "test/bee/0.mp4": FILES["train/ant/0.mp4"],
        "train/cat/1.mp4": FILES["train/cat/2.mp4"],
    }
    result = verify(write_folder(tmp_path, FILES | change))
    (undecodable,) = result.problems.pop(Problem.UNDECODABLE)
    assert undecodable.startswith("train train/cat/0.mp4: FFmpeg cannot decode it")
    (leak,) = result.problems.pop(Problem.LEAK)
    places = {"train train/ant/0.mp4 (ant)", "test test/bee/0.mp4 (bee)"}
    assert {*leak.split(" = ")} == places
    (duplicates,) = result.problems.pop(Problem.DUPLICATE)
    places = {f"train train/cat/{i}.mp4 (cat)" for i in (1, 2)}
    assert {*duplicates.split(" = ")} == places
    assert not result.problems
    # Not the one that does not decode.
    assert result.first_examples["cat"][2].id in ("train/cat/1.mp4", "train/cat/2.mp4")


def test_parts_of_one_video_are_no_duplicates(tmp_path):
    """As Kinetics has them, where a file is the whole video."""
    video = tmp_path / "video.mp4"
    frames = np.repeat(np.arange(0, 240, 6, np.uint8), 16 * 16 * 3)
    video.write_bytes(moving_shapes.encode_mp4(frames.reshape(40, 16, 16, 3)))
    ids = {"train": ("a", "b"), "test": ("c", "d")}
    spans = {"a": (0.0, 1.0), "b": (1.0, 2.0), "c": (1.0, 2.0), "d": (1.5, 2.5)}
    listing = builder.Listing(
        class_names=("x", "y"),
        splits={
            split: [
                builder.ListedExample(
                    name, "x", video, builder.Span(*spans[name], shared=True)
                )
                for name in names
            ]
            for split, names in ids.items()
        },
    )
    write.write_dataset(
        VideoFolder(config="parts", listing=listing, data_dir=tmp_path / "data")
    )
    result = verification.verify("video_folder/parts", tmp_path / "data")
    assert [*result.problems.pop(Problem.LEAK)] == ["train b (x) = test c (x)"]
    assert Problem.DUPLICATE not in result.problems


def test_a_data_set_of_tfds_has_no_manifest(tmp_path):
    builder = Other(data_dir=tmp_path)
    builder.picture = picture(tmp_path / "n01.jpg")
    builder.download_and_prepare(file_format="array_record")
    result = verification.verify("other", tmp_path)
    assert result.errors == 0
    assert list(result.problems) == [Problem.NO_EXAMPLE, Problem.NO_MANIFEST]
    assert result.problems[Problem.NO_EXAMPLE] == ["train: a"]
    assert result.counts[1] == "train: 1 images, 0 to 1 a class"


class Unlabelled(Other, skip_registration=True):
    """Two images of one id; only one has a label."""

    def _generate_examples(self):
        for i, label in enumerate((-1, "a")):
            yield i, {"label": label, "file_name": "n01.jpg", "image": self.picture}


def test_ids_that_are_there_twice_and_no_label(tmp_path):
    builder = Unlabelled(data_dir=tmp_path)
    builder.picture = picture(tmp_path / "n01.jpg")
    builder.download_and_prepare(file_format="array_record")
    result = verification.verify("unlabelled", tmp_path)
    assert result.problems[Problem.SAME_ID] == ["train n01.jpg: 2 times"]
    assert result.problems[Problem.NO_LABEL] == ["train: 1 examples"]
    assert result.errors == 1


def test_several_labels_an_example(tmp_path, monkeypatch):
    monkeypatch.setitem(moving_shapes.COUNTS, "crowds", {"train": 6})
    rows = []
    for i in range(6):
        labels, frames = moving_shapes.render("crowds", "train", i)
        clip, name = moving_shapes.encode_mp4(frames), f"crowds-train-{i:05d}"
        # In another order than the data set's: it is a set of labels.
        rows.append(manifest.Row.of("train", name, labels[::-1], clip, "video"))
    write.write_dataset(moving_shapes.MovingShapes(config="crowds", data_dir=tmp_path))
    split = reading.open_split("moving_shapes/crowds", "train", tmp_path)
    path = f"{split.directory}/manifest.csv"
    manifest.write(path, rows, multi_label=True)
    result = verification.verify("moving_shapes/crowds", tmp_path)
    assert result.problems.keys() == {Problem.NO_EXAMPLE}
    several = next(i for i, row in enumerate(rows) if len(row.label) > 1)
    rows[several] = dataclasses.replace(rows[several], label=rows[several].label[1:])
    manifest.write(path, rows, multi_label=True)
    result = verification.verify("moving_shapes/crowds", tmp_path)
    (place,) = result.problems[Problem.OTHER_LABEL]
    assert place.startswith(f"train {rows[several].id}: (")
