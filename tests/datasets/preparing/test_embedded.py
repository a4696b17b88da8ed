"""The embedded data set, made when a config first reads it."""

import collections
import multiprocessing
import os

import pytest
from absl import logging

from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import moving_shapes
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.log import log
from tests.datasets.written import SMALL


def test_moving_shapes_is_made_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setattr(moving_shapes, "COUNTS", SMALL)
    said = []
    monkeypatch.setattr(log, "info", lambda text, *args: said.append(text % args))
    monkeypatch.setattr(logging, "warning", lambda *args: pytest.fail(str(args)))
    for kind, feature in (("images", "image"), ("videos", "video")):
        prepare_embedded([f"moving_shapes/{kind}"], tmp_path)
        train = reading.open_split(f"moving_shapes/{kind}", "train", tmp_path)
        test = reading.open_split(f"moving_shapes/{kind}", "test", tmp_path)
        assert (len(train), len(test)) == (48, 24)
        classes = moving_shapes.CLASS_NAMES[kind]
        assert train.class_names == test.class_names == classes
        labels = collections.Counter(example["label"] for example in train)
        assert set(labels.values()) == {48 // len(classes)}
        example = train[5]
        index = int(example["id"].rpartition("-")[2])
        label, frames = moving_shapes.render(kind, "train", index)
        assert classes[example["label"]] == label
        encode = {"image": moving_shapes.encode_jpeg, "video": moving_shapes.encode_mp4}
        assert example[feature] == encode[feature](frames)
        (line,) = [line for line in said if line.startswith("Making")]
        assert line.startswith(f"Making moving_shapes/{kind} in {tmp_path}")
        said.clear()


def test_an_embedded_data_set_that_does_not_exist(tmp_path):
    with pytest.raises(reading.DatasetNotPrepared, match="moving_shapes/images, mov"):
        prepare_embedded(["moving_shapes/sounds"], tmp_path)


def open_at_once(barrier, data_dir, lengths):
    moving_shapes.COUNTS = SMALL
    barrier.wait()
    prepare_embedded(["moving_shapes/images"], data_dir)
    lengths.put(len(reading.open_split("moving_shapes/images", "train", data_dir)))


def test_two_processes_may_make_it_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, lengths = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=open_at_once, args=(barrier, tmp_path, lengths))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [lengths.get(timeout=5) for _ in processes] == [48, 48]
    made = os.listdir(tmp_path / "moving_shapes" / "images" / "1.0.0")
    assert "dataset_info.json" in made
    assert not [name for name in made if name.startswith("preparing")]
