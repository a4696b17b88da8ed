"""Writing with TFDS and reading back: bytes, processes, errors, no tensorflow."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags

from sparse_tube_vit import prepare
from sparse_tube_vit.config import default_config, evaluation, stream
from sparse_tube_vit.datasets import manifest, reading
from sparse_tube_vit.datasets.builders import moving_shapes
from sparse_tube_vit.datasets.preparing import plan, write
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.storage import UnreachableStorage
from tests.datasets.builders import official
from tests.datasets.written import Other, picture


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with image_folder/tiny and video_folder/tiny, and their files."""
    root = tmp_path_factory.mktemp("folders")
    files = {}
    encoders = {"image": official.encode_image, "video": official.encode}
    for kind, suffix in (("image", "jpg"), ("video", "mp4")):
        for split, count in (("train", 6), ("val", 2)):
            for label in ("wolf", "ant"):
                for i in range(count):
                    name = f"{split}/{label}/{i}.{suffix}"
                    path = root / kind / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    files[kind, name] = encoders[kind](8 * len(files) % 255)
                    path.write_bytes(files[kind, name])
        arguments = [f"{kind}_folder", "--name", "tiny", f"--{kind}s"]
        arguments += [str(root / kind), "--data_dir", str(root / "data")]
        arguments += ["--workers", "0"]
        prepare.main(arguments)
    return root / "data", files


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_bytes_are_the_files_bytes(prepared, kind):
    data_dir, files = prepared
    for name, count in (("train", 12), ("val", 4)):
        split = reading.open_split(f"{kind}_folder/tiny", name, data_dir)
        assert (split.kind, split.class_names) == (kind, ("ant", "wolf"))
        examples = [split[i] for i in range(len(split))]
        assert len({example["id"] for example in examples}) == len(split) == count
        for example in examples:
            assert set(example) == {"id", "label", kind}
            assert type(example["id"]) is str and type(example["label"]) is int
            assert split.class_names[example["label"]] in example["id"].split("/")
            assert example[kind] == files[kind, example["id"]]


def test_indices(prepared):
    split = reading.open_split("image_folder/tiny", "val", prepared[0])
    assert split[np.int64(1)] == split[1]
    for index in (4, -1):
        with pytest.raises(IndexError, match="image_folder/tiny val, which has 4"):
            split[index]
    assert len(list(split)) == 4


def test_how_to_get_what_fine_tuning_prepared(tmp_path):
    both = "If configs/finetune.py made it .* Else prepare it with: .* video_folder"
    with pytest.raises(reading.DatasetNotPrepared, match=both):
        reading.open_split("video_folder/dances-1a2b3c4d", "test", tmp_path)
    with pytest.raises(reading.DatasetNotPrepared, match=" Prepare it with: "):
        reading.open_split("video_folder/dances", "test", tmp_path)


class HttpError(Exception):
    """As gcsfs has it."""

    def __init__(self, code):
        self.code = code


@pytest.mark.parametrize(
    "error, named",
    [
        (OSError(5, "Input/output error"), UnreachableStorage),
        (RuntimeError("UNAVAILABLE: 503"), UnreachableStorage),
        # As array_record says it of 401, 403, 503 and 404.
        (
            RuntimeError('Permanent error, with a last message of {"code": 401}'),
            UnreachableStorage,
        ),
        (
            RuntimeError("Permanent error, with a last message of {}"),
            UnreachableStorage,
        ),
        (
            RuntimeError("Retry policy exhausted, with a last message of {}"),
            UnreachableStorage,
        ),
        (
            RuntimeError('Permanent error, with a last message of {"code": 404}'),
            reading.UnreadableRecord,
        ),
        (HttpError(503), UnreachableStorage),
        (HttpError("429"), UnreachableStorage),
        (HttpError(404), reading.UnreadableRecord),
        (RuntimeError("DATA_LOSS: bad checksum"), reading.UnreadableRecord),
        (FileNotFoundError(2, "No such file"), reading.UnreadableRecord),
    ],
)
def test_a_storage_that_fails_for_a_moment_is_no_damage(prepared, error, named):
    class Shard:
        def __getitem__(self, index):
            raise error

    split = reading.open_split("image_folder/tiny", "val", prepared[0])
    split.__dict__["_opened"] = dict.fromkeys(range(len(split.shards)), Shard())
    with pytest.raises(named, match="image_folder/tiny in .* val record 1"):
        split[1]


def test_slices_of_a_split(prepared):
    split = reading.open_split("image_folder/tiny", "train[:25%]", prepared[0])
    assert len(split) == 3 == len(list(split))
    with pytest.raises(reading.UnknownSplit, match=r"no examples in 'train\[:1%\]'"):
        reading.open_split("image_folder/tiny", "train[:1%]", prepared[0])


def test_what_was_begun_is_said_whatever_the_folders_name(tmp_path):
    unfinished = tmp_path / "data[0]" / "x" / "1.0.0" / "preparing.plan.jsonl"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    with pytest.raises(
        reading.DatasetNotPrepared, match="x is not prepared to the end"
    ):
        reading.open_split("x", "train", tmp_path / "data[0]")


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_pickled_split_reads_shards_and_nothing_else(prepared, tmp_path, kind):
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    split = reading.open_split(f"{kind}_folder/tiny", "train", tmp_path)
    first = split[0]  # has opened its files by now
    pickled = pickle.dumps(split)
    assert pickle.loads(pickled) == split
    # A pod's worker processes would all ask for the description at once.
    for path in (tmp_path / f"{kind}_folder/tiny/1.0.0").iterdir():
        if "array_record" not in path.name:
            path.unlink()
    assert pickle.loads(pickled)[0] == first


def test_in_grains_worker_processes(prepared):
    split = reading.open_split("video_folder/tiny", "train", prepared[0])
    flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags
    source = grain.MapDataset.source(split).to_iter_dataset()
    options = grain.MultiprocessingOptions(num_workers=2)
    read = list(source.mp_prefetch(options))
    assert sorted(e["id"] for e in read) == sorted(e["id"] for e in split)


def test_a_version_directory_and_the_highest_version(prepared, tmp_path):
    data_dir = prepared[0]
    split = reading.open_split("image_folder/tiny/1.0.0", "val", data_dir)
    assert len(split) == 4
    for version in ("9.0.0", "10.0.0", "incomplete.ABC_11.0.0"):
        (tmp_path / "x" / version).mkdir(parents=True)
        (tmp_path / "x" / version / "dataset_info.json").touch()
    assert reading.prepared_directory("x", tmp_path).name == "10.0.0"


@pytest.mark.parametrize(
    ("dataset", "command"),
    [
        (
            "ucf101/split2",
            "sparse-tube-vit prepare ucf101 --split 2 --videos DIR"
            " --annotations DIR --data_dir ",
        ),
        (
            "image_folder/mine",
            "sparse-tube-vit prepare image_folder --name mine --images DIR --data_dir ",
        ),
        ("cifar10", "Prepare cifar10 with TFDS"),
        (
            "imagenet2012",
            "sparse-tube-vit prepare imagenet2012 --images DIR --data_dir ",
        ),
        (
            "kinetics600",
            "sparse-tube-vit prepare kinetics600 --videos DIR"
            " --annotations DIR --data_dir ",
        ),
    ],
)
def test_not_prepared_says_where_and_how(tmp_path, dataset, command):
    # A directory without its dataset_info.json, as a broken copy leaves.
    (tmp_path / dataset / "1.0.0").mkdir(parents=True)
    with pytest.raises(reading.DatasetNotPrepared) as error:
        reading.open_split(dataset, "train", tmp_path)
    assert str(tmp_path / dataset) in str(error.value)
    assert command in str(error.value)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_data_set_that_tfds_cannot_open(prepared, tmp_path, file):
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "image_folder/tiny/1.0.0" / file).write_text("{")
    with pytest.raises(reading.UnsupportedDataset, match="TFDS cannot open"):
        reading.open_split("image_folder/tiny", "val", tmp_path)


def edited(prepared, tmp_path, file, edit):
    """A copy of image_folder/tiny with a file edited as JSON or as text."""
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "image_folder/tiny/1.0.0" / file
    if file.endswith(".json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(edit(content) or content))
    else:
        path.write_text(edit(path.read_text()))
    return tmp_path


def by_key(key):
    def edit(content):
        feature = content["featuresDict"]["features"]["image"]
        del feature["pythonClassName"]
        feature[key] = "payload.Image"

    return edit


def legacy(content):
    content = {"image": {"type": "payload.Image", "content": {}}}
    cls = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    return {"type": cls, "content": content}


def features_in_the_info(content):
    content["features"] = {"pythonClassName": "payload.Image"}


@pytest.mark.parametrize(
    ("file", "edit"),
    [
        ("features.json", by_key("pythonClassName")),
        ("features.json", by_key("python_class_name")),
        ("features.json", legacy),
        ("dataset_info.json", features_in_the_info),
    ],
)
def test_a_data_set_does_not_run_code(prepared, tmp_path, monkeypatch, file, edit):
    data_dir = edited(prepared, tmp_path, file, edit)
    (tmp_path / "payload.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    message = f"{file} has a feature of class payload.Image, .* foreign code"
    with pytest.raises(reading.UnsupportedDataset, match=message):
        reading.open_split("image_folder/tiny", "val", data_dir)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("ant", "has 1 class names, 1 different ones, but .* has 2 classes"),
        ("ant\nwolf\nbee", "has 3 class names, .* has 2 classes"),
        ("ant\nant", "has 2 class names, 1 different ones, but"),
        ("", "has 0 class names"),
        (None, "label.labels.txt is absent, which names the 2 classes"),
    ],
)
def test_class_names_that_are_lost(prepared, tmp_path, names, message):
    edited(prepared, tmp_path, "label.labels.txt", lambda _: names or "")
    if names is None:
        (tmp_path / "image_folder/tiny/1.0.0/label.labels.txt").unlink()
    with pytest.raises(reading.WrongClassNames, match=message):
        reading.open_split("image_folder/tiny", "val", tmp_path)


def damaged(prepared, tmp_path):
    """A copy of video_folder/tiny with one bit flipped, and the place of the bit."""
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    (path,) = (tmp_path / "video_folder/tiny/1.0.0").glob("*train*")
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    return reading.open_split("video_folder/tiny", "train", tmp_path), path


def test_a_damaged_record_is_named(prepared, tmp_path):
    split, path = damaged(prepared, tmp_path)
    errors = {}
    for index in range(len(split)):
        try:
            split[index]
        except reading.UnreadableRecord as error:
            errors[index] = str(pickle.loads(pickle.dumps(error)))
    ((index, message),) = errors.items()
    place = f"train record {index}, number {index} of {path.name}, cannot be read: "
    assert f"video_folder/tiny in {path.parent}: {place}" in message
    verify = f"sparse-tube-vit verify video_folder/tiny --data_dir {tmp_path}"
    assert message.endswith(verify)
    later = reading.open_split("video_folder/tiny", f"train[{index}:]", tmp_path)
    message = f"record 0, number {index} of {path.name}"
    with pytest.raises(reading.UnreadableRecord, match=message):
        later[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_ends_training_and_evaluation_by_name(
    prepared, tmp_path, workers
):
    split, path = damaged(prepared, tmp_path)
    config = default_config()
    config.loader.workers = workers
    config.clip.update(frames=2, size=16)
    options = {"kind": "video", "dataset": "", "head": "", "batch_size": 4}
    ends = pytest.raises(reading.UnreadableRecord, match=f"of {path.name}, cannot be")
    with ends:
        batches = pipeline.training_batches(
            split, "video", stream(**options), config.clip, config.loader, seed=0
        )
        for _ in range(3):
            next(batches)
    with ends:
        list(
            pipeline.evaluation_batches(
                split, "test", evaluation(**options), config.clip, config.loader
            )
        )


def test_digests_of_a_copy_and_of_what_differs(prepared, tmp_path):
    for number in range(2):
        shutil.copytree(prepared[0], tmp_path / str(number))
    first, second = (
        reading.open_split("video_folder/tiny", "train", tmp_path / str(number))
        for number in range(2)
    )
    assert first.digests() == second.digests()
    assert first.digests()["examples"] == 12
    listed = tmp_path / "1/video_folder/tiny/1.0.0/manifest.csv"
    rows = [*manifest.read(listed)]
    manifest.write(listed, [*rows, rows[0]])
    second = dataclasses.replace(second)  # a digest is read once
    differs = {k for k, v in second.digests().items() if v != first.digests()[k]}
    assert differs == {"digest"}
    assert second.fingerprint()["version"] == "1.0.0"
    val = reading.open_split("video_folder/tiny", "val", tmp_path / "0")
    assert val.digests()["records"] != first.digests()["records"]
    shard = next((tmp_path / "1/video_folder/tiny/1.0.0").glob("*train.array_record*"))
    shard.unlink()
    message = f"record 0, number 0 of {shard.name}, cannot be read: .*No such file"
    with pytest.raises(reading.UnreadableRecord, match=message):
        second.digests()


def test_digests_differ_where_any_two_of_many_shards_are_exchanged(
    tmp_path, monkeypatch
):
    """Of equal size: files of records are padded to 64 KiB."""
    monkeypatch.setitem(plan.SHARD_EXAMPLES, "image", 1)
    for i in range(140):
        path = tmp_path / f"images/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(official.encode_image(i))
    arguments = ["image_folder", "--name", "many", "--images", f"{tmp_path}/images"]
    prepare.main([*arguments, "--data_dir", f"{tmp_path}", "--workers", "0"])
    split = reading.open_split("image_folder/many", "train", tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    first = split.digests()
    assert len(os.listdir("/proc/self/fd")) < before + 10
    shards = sorted((tmp_path / "image_folder/many/1.0.0").glob("*.array_record*"))
    assert len(shards) == 140
    for one, other in ((1, 2), (67, 139)):
        contents = shards[one].read_bytes(), shards[other].read_bytes()
        assert len(contents[0]) == len(contents[1])
        shards[one].write_bytes(contents[1])
        shards[other].write_bytes(contents[0])
        exchanged = reading.open_split("image_folder/many", "train", tmp_path).digests()
        assert exchanged["digest"] == first["digest"]
        assert exchanged["records"] != first["records"]
        shards[one].write_bytes(contents[0])
        shards[other].write_bytes(contents[1])
    assert split.digests() == first


def test_a_label_that_is_no_class_is_named(tmp_path):
    """As TFDS stores examples of a test split without labels."""
    builder = Other(data_dir=tmp_path)
    builder.picture, builder.label = picture(tmp_path / "n01.jpg"), -1
    builder.download_and_prepare(file_format="array_record")
    split = reading.open_split("other", "train", tmp_path)
    assert split.read(0)["label"] == -1
    message = "record 0, number 0 of .* has the label -1, but the 2 classes"
    with pytest.raises(reading.UnreadableRecord, match=message):
        split[0]


def test_unknown_split_says_which_there_are(prepared):
    with pytest.raises(reading.UnknownSplit, match=r"no split 'test'.*train, val"):
        reading.open_split("image_folder/tiny", "test", prepared[0])


def test_data_sets_of_tfds_give_the_encoded_image(tmp_path):
    builder = Other(data_dir=tmp_path)
    builder.picture = picture(tmp_path / "n01.jpg")
    builder.download_and_prepare(file_format="array_record")
    split = reading.open_split("other", "train", tmp_path)
    encoded = builder.picture.read_bytes()
    assert split[0] == {"id": "n01.jpg", "label": 1, "image": encoded}


def test_no_picture_of_a_data_set_of_tfds_is_decoded(tmp_path, monkeypatch):
    features = Other.features | {"mask": tfds.features.Image(shape=(None, None, 3))}
    builder = type("Other", (Other,), {"features": features}, skip_registration=True)(
        data_dir=tmp_path
    )
    builder.picture = picture(tmp_path / "n01.jpg")
    builder.download_and_prepare(file_format="array_record")
    split = reading.open_split("other", "train", tmp_path)

    def decode(self, example):
        raise AssertionError(f"{self} is decoded")

    monkeypatch.setattr(tfds.features.Image, "decode_example_np", decode)
    assert split[0]["image"] == builder.picture.read_bytes()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": Other.features["image"]}, "a `label`"),
        ({"label": Other.features["label"]}, "an `image` are needed"),
    ],
)
def test_data_sets_without_label_or_image_are_refused(tmp_path, features, message):
    builder = type("Other", (Other,), {"features": features}, skip_registration=True)(
        data_dir=tmp_path
    )
    builder.picture = picture(tmp_path / "n01.jpg")
    builder.download_and_prepare(file_format="array_record")
    with pytest.raises(reading.UnsupportedDataset, match=message):
        reading.open_split("other", "train", tmp_path)


def test_labels_of_a_multi_label_data_set_are_multi_hot(tmp_path, monkeypatch):
    counts = moving_shapes.COUNTS | {"crowds": {"train": 24}}
    monkeypatch.setattr(moving_shapes, "COUNTS", counts)
    write.write_dataset(moving_shapes.MovingShapes(config="crowds", data_dir=tmp_path))
    split = reading.open_split("moving_shapes/crowds", "train", tmp_path)
    assert (split.kind, split.multi_label, split.label_shape) == ("video", True, (24,))
    for example in split:
        index = int(example["id"].rpartition("-")[2])
        labels, frames = moving_shapes.render("crowds", "train", index)
        assert example["video"] == moving_shapes.encode_mp4(frames)
        assert example["label"].dtype == np.uint8 and example["label"].max() == 1
        found = {split.class_names[i] for i in np.flatnonzero(example["label"])}
        assert found == set(labels)


WITHOUT_TENSORFLOW = """
import sys
from sparse_tube_vit.datasets import catalog, reading
from sparse_tube_vit.datasets.builders import annotations, folders
assert not {"tensorflow", "jax", "tensorflow_datasets"} & set(sys.modules), "import"
from sparse_tube_vit import prepare
from sparse_tube_vit.datasets.builders import moving_shapes
counts = {"images": {"train": 6}, "videos": {"train": 2}, "crowds": {"train": 2}}
moving_shapes.COUNTS = counts
prepare.main(["moving_shapes", "--data_dir", sys.argv[1], "--workers", "0"])
for name, kind in (("images", "image"), ("videos", "video"), ("crowds", "video")):
    split = reading.open_split(f"moving_shapes/{name}", "train", sys.argv[1])
    assert isinstance(split[0][kind], bytes)
for name in catalog.BUILDERS:
    catalog.builder_class(name)
catalog.builder_class("imagenet2012").read(sys.argv[2])
from sparse_tube_vit.input import augment, examples, randaugment
from sparse_tube_vit.video import decode, sampling, transcode
assert "tensorflow" not in sys.modules, "tensorflow"
assert "jax" not in sys.modules, "jax"
assert "apache_beam" not in sys.modules, "apache_beam"
"""


def test_neither_tensorflow_nor_jax_nor_beam_is_imported(tmp_path):
    image = tmp_path / "images" / "n01440764" / "1.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    script = [sys.executable, "-c", WITHOUT_TENSORFLOW]
    script += [str(tmp_path), str(tmp_path / "images")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
