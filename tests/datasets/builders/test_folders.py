"""Class folders and split lists: what is taken, what is left out, what is refused."""

import hashlib
import os

import pytest
from etils import epath
from PIL import Image

from sparse_tube_vit.datasets.builders import builder, folders
from tests import bucket
from tests.datasets.builders import official


def fill(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def ids(listing):
    return {
        split: [(x.id, x.label) for x in examples]
        for split, examples in listing.splits.items()
    }


def test_class_folders_are_one_split_in_sorted_order(tmp_path):
    fill(tmp_path, "dog/b.mp4", "dog/a.AVI", "cat/c.webm")
    listing = folders.read_folder(tmp_path, "video")
    assert listing.class_names == ("cat", "dog")
    assert ids(listing) == {
        "train": [("cat/c.webm", "cat"), ("dog/a.AVI", "dog"), ("dog/b.mp4", "dog")]
    }
    assert listing.left_out == ()


def test_classes_are_the_union_over_split_folders(tmp_path):
    fill(tmp_path, "train/dog/1.jpg", "val/cat/2.png", "val/dog/3.jpeg")
    listing = folders.read_folder(tmp_path, "image")
    assert listing.class_names == ("cat", "dog")
    assert ids(listing) == {
        "train": [("train/dog/1.jpg", "dog")],
        "val": [("val/cat/2.png", "cat"), ("val/dog/3.jpeg", "dog")],
    }


def test_what_is_not_taken_is_reported(tmp_path):
    fill(tmp_path, "cat/1.jpg", "cat/1.txt", "cat/README", "words.txt")
    listing = folders.read_folder(tmp_path, "image")
    assert ids(listing) == {"train": [("cat/1.jpg", "cat")]}
    assert {row.id: row.status for row in listing.left_out} == {
        "cat/1.txt": ".txt is not a known image suffix",
        "cat/README": "no suffix",
        "words.txt": "not in a class folder",
    }


@pytest.mark.parametrize("names", [(), ("1.jpg",), ("train/1.jpg", "val/cat/2.jpg")])
def test_no_class_folders(tmp_path, names):
    with pytest.raises(folders.NoClassFolders, match="<class>/<file>"):
        folders.read_folder(fill(tmp_path, *names), "image")


def test_folders_in_class_folders_are_refused(tmp_path):
    with pytest.raises(folders.NoClassFolders, match="deep is a folder"):
        folders.read_folder(fill(tmp_path, "train/cat/deep/1.jpg"), "image")


@pytest.mark.parametrize("layout", ["", "train/"])
def test_a_class_folder_without_images(tmp_path, layout):
    fill(tmp_path, f"{layout}cat/1.jpg", f"{layout}dog/1.txt")
    message = r"dog holds no image \(of 1 entries, 1.txt: .txt is not a known image"
    with pytest.raises(folders.EmptyClassFolder, match=message):
        folders.read_folder(tmp_path, "image")


def test_a_class_folder_of_files_that_cannot_be_taken(tmp_path):
    fill(tmp_path, "cat/1.jpg", "dog/caf\udce9.jpg")
    (tmp_path / "dog/dead.jpg").symlink_to("nowhere")
    message = "of 2 entries, caf\udce9.jpg: its name is not in UTF-8; dead.jpg: a link"
    with pytest.raises(folders.EmptyClassFolder, match=message):
        folders.read_folder(tmp_path, "image")
    (tmp_path / "bird").mkdir()
    with pytest.raises(folders.EmptyClassFolder, match=r"bird holds no image \(empty"):
        folders.read_folder(tmp_path, "image")


def test_split_list(tmp_path):
    fill(tmp_path, "cat/1.mp4", "cat/2,5.mp4", "dog/3.mp4", "dog/4.txt", "dog/5.mp4")
    split_list = tmp_path / "splits.csv"
    split_list.write_text(
        "# path,split\ndog/3.mp4,val\ncat/1.mp4, train\n\n"
        "cat/2,5.mp4,val\ndog/4.txt,val"
    )
    listing = folders.read_folder(tmp_path, "video", split_list)
    assert listing.class_names == ("cat", "dog")
    assert ids(listing) == {
        "val": [("dog/3.mp4", "dog"), ("cat/2,5.mp4", "cat")],
        "train": [("cat/1.mp4", "cat")],
    }
    assert [(row.id, row.status) for row in listing.left_out] == [
        ("dog/4.txt", ".txt is not a known video suffix"),
        ("dog/5.mp4", "not in splits.csv"),
    ]


def test_a_split_list_beside_a_folder_that_cannot_be_listed(
    tmp_path, monkeypatch, caplog
):
    """As lost+found on a disk."""
    fill(tmp_path, "cat/1.mp4", "lost+found/2")
    (tmp_path / "list.csv").write_text("cat/1.mp4,train\n")
    scan = os.scandir

    def refuse(path):
        if "lost+found" in os.fspath(path):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = folders.read_folder(tmp_path, "video", tmp_path / "list.csv")
    assert ids(listing) == {"train": [("cat/1.mp4", "cat")]}
    assert "lost+found" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cat/2.mp4,train", "splits.csv:2: .*cat/2.mp4 does not exist"),
        ("cat/1.mp4,val", "splits.csv:2: cat/1.mp4 is listed twice"),
        ("cat/1.mp4", "splits.csv:2: expected"),
        ("1.mp4,train", "splits.csv:2: expected"),
        ("/clips/cat/1.mp4,train", "splits.csv:2: expected .*paths are those below"),
    ],
)
def test_bad_split_lists(tmp_path, line, message):
    fill(tmp_path, "cat/1.mp4", "1.mp4")
    (tmp_path / "splits.csv").write_text(f"cat/1.mp4,train\n{line}\n")
    with pytest.raises(folders.BadSplitList, match=message):
        folders.read_folder(tmp_path, "video", tmp_path / "splits.csv")


def test_split_names_that_tfds_cannot_read(tmp_path):
    with pytest.raises(folders.NoClassFolders, match="'my train' cannot name a split"):
        folders.read_folder(fill(tmp_path, "my train/cat/1.jpg"), "image")


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a ", " a"])
def test_class_names_that_tfds_cannot_keep(tmp_path, name):
    fill(tmp_path, f"{name}/1.jpg")
    with pytest.raises(folders.NoClassFolders, match="cannot name a class"):
        folders.read_folder(tmp_path, "image")


def test_links_that_lead_nowhere_are_left_out_and_listed(tmp_path):
    fill(tmp_path, "a/1.jpg")
    (tmp_path / "a/2.jpg").symlink_to("nowhere")
    (tmp_path / "b").symlink_to("no_folder")
    listing = folders.read_folder(tmp_path, "image")
    assert ids(listing) == {"train": [("a/1.jpg", "a")]}
    assert {row.id: row.status for row in listing.left_out} == {
        "a/2.jpg": "a link to nowhere, which is absent",
        "b": "a link to no_folder, which is absent",
    }
    (tmp_path / "list.csv").write_text("a/1.jpg,train\na/2.jpg,test\n")
    listing = folders.read_folder(tmp_path, "image", tmp_path / "list.csv")
    assert ids(listing) == {"train": [("a/1.jpg", "a")]}
    assert [row.id for row in listing.left_out] == ["a/2.jpg"]


def test_links_to_folders_are_classes_and_splits(tmp_path):
    fill(tmp_path, "elsewhere/cat/1.mp4", "elsewhere/dog/2.mp4")
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes/cat").symlink_to(tmp_path / "elsewhere/cat")
    (tmp_path / "classes/loop").symlink_to(".")
    listing = folders.read_folder(tmp_path / "classes", "video")
    assert ids(listing) == {"train": [("cat/1.mp4", "cat")]}
    assert [row.id for row in listing.left_out] == ["loop"]
    assert "a link back to" in listing.left_out[0].status
    (tmp_path / "splits").mkdir()
    for split in ("train", "test"):
        (tmp_path / "splits" / split).symlink_to(tmp_path / "elsewhere")
    files = [("{}/cat/1.mp4", "cat"), ("{}/dog/2.mp4", "dog")]
    assert ids(folders.read_folder(tmp_path / "splits", "video")) == {
        split: [(name.format(split), label) for name, label in files]
        for split in ("train", "test")
    }


def test_an_archive_of_macos(tmp_path):
    fill(tmp_path, "cat/1.mp4", "cat/._1.mp4", "__MACOSX/cat/._1.mp4", ".git/x/1.mp4")
    listing = folders.read_folder(tmp_path, "video")
    assert ids(listing) == {"train": [("cat/1.mp4", "cat")]}
    left_out = [row.id for row in listing.left_out]
    assert left_out == [".git", "__MACOSX", "cat/._1.mp4"]


def test_names_of_other_encodings(tmp_path):
    fill(tmp_path, "cat/1.mp4", os.fsdecode(b"cat/caf\xe9.mp4"))
    listing = folders.read_folder(tmp_path, "video")
    assert ids(listing) == {"train": [("cat/1.mp4", "cat")]}
    assert [row.status for row in listing.left_out] == ["its name is not in UTF-8"]
    fill(tmp_path, os.fsdecode(b"caf\xe9/1.mp4"))
    with pytest.raises(folders.NoClassFolders, match=r"'caf\\udce9' cannot .* UTF-8"):
        folders.read_folder(tmp_path, "video")


def test_split_lists_of_other_encodings(tmp_path):
    fill(tmp_path, "a/1.jpg")
    split_list = tmp_path / "list.csv"
    split_list.write_bytes(b"\xef\xbb\xbfa/1.jpg,test")  # as spreadsheets save it
    assert ids(folders.read_folder(tmp_path, "image", split_list)) == {
        "test": [("a/1.jpg", "a")]
    }
    split_list.write_bytes(b"a/\xff.jpg,test")
    with pytest.raises(folders.BadSplitList, match="not in UTF-8"):
        folders.read_folder(tmp_path, "image", split_list)


def listing_of(**files):
    """A listing of class folders, and as its digests hashes of what files hold."""
    examples = [
        builder.ListedExample(f"{label}/{i}.mp4", label, "")
        for label, held in files.items()
        for i, _ in enumerate(held)
    ]
    held = [content for contents in files.values() for content in contents]
    digests = {
        example.id: hashlib.sha256(str(content).encode()).hexdigest()
        for example, content in zip(examples, held, strict=True)
    }
    return builder.Listing(tuple(sorted(files)), {"train": examples}), digests


def sides(listing, digests):
    """What files hold, by class, of each split."""
    return {
        split: {(x.label, digests[x.id]) for x in examples}
        for split, examples in listing.splits.items()
    }


def test_a_share_of_every_class_is_held_out():
    listing, digests = listing_of(a=range(2000), b=range(2000, 2500))
    held_out = folders.hold_out(listing, 0.2, digests)
    assert sorted(sum(held_out.splits.values(), [])) == sorted(listing.splits["train"])
    labels = [example.label for example in held_out.splits["test"]]
    assert labels.count("a") == 400 and labels.count("b") == 100
    for count, expected in ((2, 1), (5, 1), (7, 1), (8, 2), (12, 2), (13, 3)):
        listing, digests = listing_of(a=range(count))
        splits = folders.hold_out(listing, 0.2, digests).splits
        assert len(splits["test"]) == expected


def test_files_stay_on_their_side_as_far_as_the_fraction_allows():
    before = sides(*holding_out(a=range(50), b=range(50, 90)))
    # Other names, another order, and a class beside them change nothing.
    after = sides(*holding_out(b=range(50, 90), a=range(49, -1, -1), c=range(9)))
    for split in ("train", "test"):
        assert before[split] <= after[split]
    # Of the files that were there, the first by digest are held out, however many.
    for more in (51, 60, 90, 200):
        after = sides(*holding_out(a=range(more), b=range(200, 209)))
        held = [digest in after["test"] for digest in in_order(a=range(50))]
        assert held == sorted(held, reverse=True) and any(held)


def in_order(**files):
    listing, digests = listing_of(**files)
    pairs = [(x.label, digests[x.id]) for x in listing.splits["train"]]
    return sorted(pairs, key=lambda pair: pair[1])


def holding_out(share=0.2, **files):
    listing, digests = listing_of(**files)
    return folders.hold_out(listing, share, digests), digests


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_every_class_has_both_splits_and_copies_are_in_one(share):
    found = sides(*holding_out(share, a=["x", "y", "x", "x"], b=range(9)))
    for split in ("train", "test"):
        assert {label for label, _ in found[split]} == {"a", "b"}
    assert not found["train"] & found["test"]


@pytest.mark.parametrize("files", [["x"], ["x", "x", "x"]])
def test_a_class_of_one_file_cannot_be_split(files):
    with pytest.raises(folders.TooFewExamples, match="class 'a' has .*a/0.mp4"):
        holding_out(a=files, b=range(9))


@pytest.mark.parametrize(
    "names, kind",
    [
        (("a/1.mp4", "a/1.jpg"), "video"),
        (("a/1.gif",), "video"),
        (("train/a/1.JPG", "train/a/2.gif"), "image"),
        (("a/1.ppm", "a/2.jfif", "b/1.pgm", "b/2.qoi"), "image"),
        (("a/1.asf", "a/2.y4m", "b/1.vob"), "video"),
        ((), "video"),
    ],
)
def test_whether_a_folder_is_of_images(tmp_path, names, kind):
    assert folders.folder_kind(fill(tmp_path, *names)) == kind
    if len(names) > 2:
        listing = folders.read_folder(tmp_path, kind)
        assert {example.id for example in listing.splits["train"]} == {*names}


def test_animated_gifs_with_a_cover_are_videos(tmp_path, caplog):
    caplog.set_level("INFO", "sparse_tube_vit")
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "green")]
    for i in range(3):
        folder = tmp_path / f"{i % 2}"
        folder.mkdir(exist_ok=True)
        frames[0].save(
            folder / f"{i}.gif", save_all=True, append_images=frames[1:], duration=100
        )
    frames[0].save(tmp_path / "0" / "cover.jpg")
    assert folders.folder_kind(tmp_path) == "video"
    assert "of videos: it holds GIFs (3, animated) and other images (1)" in caplog.text
    # As many images as GIFs are images, and so are GIFs of one frame.
    for i in range(2):
        frames[0].save(tmp_path / "1" / f"{i}.png")
    assert folders.folder_kind(tmp_path) == "image"
    for i in range(9):
        frames[0].save(tmp_path / "1" / f"still{i}.gif")
    for i in range(3):
        (tmp_path / f"{i % 2}" / f"{i}.gif").unlink()
    assert folders.folder_kind(tmp_path) == "image"
    assert "of images: it holds GIFs (9) and other images (3)" in caplog.text


@pytest.mark.slow
def test_a_split_list_of_a_bucket_takes_one_listing(tmp_path, monkeypatch):
    storage = bucket.use(monkeypatch)
    official.write_clips(tmp_path / "clips", "a/1.mp4", "b/1.mp4")
    storage.upload(tmp_path / "clips", "models", "clips")
    split_list = tmp_path / "splits.txt"
    split_list.write_text("a/1.mp4,train\nb/1.mp4,test\n")
    url = epath.Path("gs://models/clips")
    is_file = type(url).is_file

    def only_local(path):
        assert not str(path).startswith("gs://"), path
        return is_file(path)

    monkeypatch.setattr(type(url), "is_file", only_local)
    listing = folders.read_folder(url, "video", split_list)
    assert {s: len(e) for s, e in listing.splits.items()} == {"train": 1, "test": 1}
    digests = folders.digests(listing)
    data = (tmp_path / "clips" / "a/1.mp4").read_bytes()
    assert digests["a/1.mp4"] == hashlib.sha256(data).hexdigest()
    split_list.write_text("a/2.mp4,train\n")
    with pytest.raises(folders.BadSplitList, match="a/2.mp4 does not exist"):
        folders.read_folder(url, "video", split_list)
