"""Data sets as they lie on disk, made by TFDS's own writer, with a manifest or none."""

import dataclasses
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from sparse_tube_vit.datasets import manifest
from sparse_tube_vit.datasets.builders import moving_shapes

SMALL = {kind: {"train": 48, "test": 24} for kind in ("images", "videos")}


class Folder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Encoded files by "split/class/name"; subclasses say which."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="clips")]
    url_infos = None
    kind: str
    files: dict[str, bytes]

    def _info(self):
        classes = sorted({name.split("/")[1] for name in self.files})
        features = {
            "id": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=classes),
            self.kind: tfds.features.Tensor(shape=(), dtype=np.object_),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        splits = dict.fromkeys(name.split("/")[0] for name in self.files)
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split):
        for name, encoded in self.files.items():
            if name.startswith(f"{split}/"):
                label = name.split("/")[1]
                yield name, {"id": name, "label": label, self.kind: encoded}


def write_folder(data_dir, files: dict[str, bytes], kind="video") -> pathlib.Path:
    """Writes files by "split/class/name" as `video_folder/clips`, or image_folder.

    The manifest says that all of them are fine, and that another was left out. Returns
    the directory.
    """
    fields = {"name": f"{kind}_folder", "kind": kind, "files": files}
    builder = type("Folder", (Folder,), fields, skip_registration=True)(
        data_dir=data_dir
    )
    builder.download_and_prepare(file_format="array_record")
    rows = [manifest.Row("train", "train/cat/9.mp4", status="no such video")]
    for name, encoded in files.items():
        split, label, _ = name.split("/")
        row = manifest.Row.of(split, name, label, encoded, kind)
        rows.append(dataclasses.replace(row, status="ok"))
    directory = pathlib.Path(builder.data_dir)
    manifest.write(directory / "manifest.csv", rows)
    return directory


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Other(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As TFDS's own builders are: an Image feature, a file name, no id."""

    VERSION = tfds.core.Version("2.0.0")
    url_infos = None
    label = "b"
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
        "file_name": tfds.features.Text(),
    }

    def _info(self):
        features = tfds.features.FeaturesDict(self.features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        values = {"label": self.label, "file_name": "n01.jpg", "frames": b""}
        values |= dict.fromkeys(("image", "mask", "video"), self.picture)
        yield 0, {name: values[name] for name in self.features}


def picture(path):
    path.write_bytes(moving_shapes.encode_jpeg(np.zeros((1, 8, 8, 3), np.uint8)))
    return path
