"""ImageNet's folders: the official order, and the validation images side by side."""

import numpy as np
import pytest

from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import imagenet, moving_shapes
from sparse_tube_vit.datasets.builders.builder import ListedExample
from tests.datasets.builders import official

TENCH, GOLDFISH, TISSUE = "n01440764", "n01443537", "n15075141"  # 0, 1 and 999


def write_images(root, *names):
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    images = {n: moving_shapes.encode_jpeg(frames + 9 * i) for i, n in enumerate(names)}
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image)
    return images


def test_prepared_and_read_back(tmp_path, capsys):
    train = (f"train/{TISSUE}/{TISSUE}_1.JPEG", f"train/{GOLDFISH}/{GOLDFISH}_2.JPEG")
    val = "val/ILSVRC2012_val_00000001.JPEG"  # whose class is n01751748, the 65th
    images = write_images(tmp_path / "images", *train, val)
    (tmp_path / "images" / "train" / "words.txt").write_text("no image")
    source = ("--images", tmp_path / "images")
    out = official.prepared(capsys, tmp_path, "imagenet2012", *source)
    assert "imagenet2012: written to" in out
    assert "train: 2 examples of 1000 classes, 0 to 1 a class" in out
    assert "note: 998 of the 1000 classes have no image in train" in out
    assert "left out: 1\n    train/words.txt: .txt is not a known image suffix" in out
    assert official.examples(tmp_path, "imagenet2012", "train") == {
        train[0]: (TISSUE, images[train[0]]),
        train[1]: (GOLDFISH, images[train[1]]),
    }
    data = tmp_path / "data"
    split = reading.open_split("imagenet2012", "train", data, kind="image")
    labels = {e["id"].split("/")[1]: e["label"] for e in split}
    assert labels == {GOLDFISH: 1, TISSUE: 999}
    assert len(split.class_names) == 1000 and split.class_names[0] == TENCH
    (example,) = reading.open_split("imagenet2012", "validation", data)
    assert example == {"id": val, "label": 65, "image": images[val]}


def test_validation_in_class_folders(tmp_path):
    names = (f"validation/{TENCH}/a.jpg", f"validation/{GOLDFISH}/b.png")
    write_images(tmp_path, *names)
    splits = imagenet.ImageNet2012.read(tmp_path).splits
    assert [(x.id, x.label) for x in splits["validation"]] == [
        (names[0], TENCH),
        (names[1], GOLDFISH),
    ]
    assert list(splits) == ["validation"]


def test_class_folders_alone_are_the_training_split(tmp_path):
    write_images(tmp_path, f"{TENCH}/a.jpg")
    splits = imagenet.ImageNet2012.read(tmp_path).splits
    example = ListedExample(f"{TENCH}/a.jpg", TENCH, tmp_path / TENCH / "a.jpg")
    assert splits == {"train": [example]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no images in"),
        (("train/n00000001/a.jpg",), "train/n00000001/a.jpg is not in a folder of one"),
        (("train/ILSVRC2012_val_00000001.JPEG",), "is not in a folder of one"),
        (("val/ILSVRC2012_val_00050001.JPEG",), "is not in a folder of one"),
        ((f"val/{TENCH}/a.jpg", f"validation/{TENCH}/a.jpg"), "validation could be"),
    ],
)
def test_other_folders(tmp_path, names, message):
    write_images(tmp_path, *names)
    with pytest.raises(imagenet.NoImageNetFolder, match=message):
        imagenet.ImageNet2012.read(tmp_path)


def test_links_to_class_folders_and_links_that_lead_nowhere(tmp_path):
    write_images(tmp_path, f"disk/{TENCH}/a.jpg", f"images/train/{GOLDFISH}/b.jpg")
    (tmp_path / "images/train" / TENCH).symlink_to(tmp_path / "disk" / TENCH)
    (tmp_path / "images/train" / TISSUE).symlink_to("nowhere")
    listing = imagenet.ImageNet2012.read(tmp_path / "images")
    assert [x.label for x in listing.splits["train"]] == [TENCH, GOLDFISH]
    assert [(row.split, row.id) for row in listing.left_out] == [
        ("train", f"train/{TISSUE}")
    ]
