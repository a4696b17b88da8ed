"""Data of the small tasks: clips forwards and backwards."""

import av
import numpy as np
import pytest

from sparse_tube_vit.datasets.builders.moving_shapes import encode_mp4, render
from sparse_tube_vit.datasets.reading import DatasetNotPrepared
from sparse_tube_vit.reproduction import data
from sparse_tube_vit.reproduction.runs import Results, Run
from sparse_tube_vit.reproduction.tables import TABLES

IMAGES = "image_folder/tiny_imagenet"
TABLE_5 = {"5": TABLES["5"].rows}


def frames_of(path):
    with av.open(str(path)) as video:
        return np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])


def write_ucf101(folder):
    """Writes a data set of two classes with a clip to train and one to test on."""
    names = ("Archery", "Bowling")
    for i, name in enumerate(names):
        for group in (1, 2):
            clip = folder / "videos" / name / f"v_{name}_g0{group}_c01.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            _, frames = render("videos", "train", 2 * i + group)
            clip.write_bytes(encode_mp4(frames))
    lists = {
        "classInd.txt": [f"{i} {name}" for i, name in enumerate(names, 1)],
        "trainlist01.txt": [
            f"{name}/v_{name}_g01_c01.mp4 {i}" for i, name in enumerate(names, 1)
        ],
        "testlist01.txt": [f"{name}/v_{name}_g02_c01.mp4" for name in names],
    }
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines))


def missing(task, rows, data_dir):
    """What the error names."""
    with pytest.raises(DatasetNotPrepared) as error:
        data.check_data(task, rows, Results(data_dir), str(data_dir))
    return str(error.value).partition(" not prepared in ")[0]


def test_results_of_other_data_are_kept_apart(tmp_path):
    write_ucf101(tmp_path / "ucf101")
    data_dir = str(tmp_path / "data")
    data.prepare_data(data_dir, str(tmp_path / "ucf101"), None, 0)
    results, row = Results(tmp_path), TABLES["5"].row("videos_alone")
    rows = {"5": [row]}
    for examples in (2, 212):
        found = {"video": {"top1": 0.5, "examples": examples}}
        done = Run.of("5", row, "ucf101", 0)
        results.add(done, {"evaluations": found, "minutes": 1.0})
        if examples == 2:
            data.check_data("ucf101", rows, results, data_dir)
            continue
        with pytest.raises(data.OtherData, match="of 212 examples of ucf101.* has 2"):
            data.check_data("ucf101", rows, results, data_dir)


def test_results_of_other_weights_are_kept_apart(tmp_path):
    results, row = Results(tmp_path), TABLES["finetuning"].row("last_4")
    task, rows = "ucf101_finetuning", {"finetuning": [row]}
    result = {"evaluations": {}, "minutes": 1.0, "weights": "small"}
    results.add(Run("finetuning", row, task, 0), result)
    with pytest.raises(data.OtherData, match="from small; --weights is hf://x/small"):
        data.check_weights(task, rows, results, "hf://x/small")
    data.check_weights(task, rows, results, "weights/small")
    data.check_weights("moving_shapes", TABLE_5, results, "hf://x/small")


def test_a_clip_is_written_in_both_directions(tmp_path):
    write_ucf101(tmp_path / "ucf101")
    for _ in range(2):  # the second time nothing is left to do
        data.prepare_data(str(tmp_path / "data"), str(tmp_path / "ucf101"), None, 0)
    assert missing("ucf101", TABLE_5, tmp_path / "data") == IMAGES
    folder = tmp_path / "data" / "ucf101_directions"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mp4"))
    assert names == sorted(
        f"{split}/{name}_{direction}/v_{name}_g0{group}_c01.mp4"
        for split, group in (("train", 1), ("test", 2))
        for name in ("Archery", "Bowling")
        for direction in ("forwards", "backwards")
    )
    clip = "v_Bowling_g02_c01.mp4"
    source = frames_of(tmp_path / "ucf101" / "videos" / "Bowling" / clip)
    forwards = frames_of(folder / "test" / "Bowling_forwards" / clip)
    backwards = frames_of(folder / "test" / "Bowling_backwards" / clip)
    assert len(source) == len(forwards) == len(backwards) > 8
    for found, expected in ((forwards, source), (backwards, source[::-1])):
        error = np.abs(found.astype(int) - expected).mean()
        assert error < 3
        assert np.abs(found[::-1].astype(int) - expected).mean() > 2 * error


def test_what_is_missing_is_named(tmp_path):
    data.check_data("moving_shapes", TABLE_5, Results(tmp_path), str(tmp_path))
    assert missing("ucf101", TABLE_5, tmp_path) == f"{IMAGES} and ucf101/split1"
    directions = missing("ucf101_directions", TABLE_5, tmp_path)
    assert directions == f"{IMAGES} and video_folder/ucf101_directions"
    alone = {"finetuning": [TABLES["finetuning"].row("last_4")]}
    assert missing("ucf101_finetuning", alone, tmp_path) == "ucf101/split1"
    created = {"6": [TABLES["6"].row("head")]}  # from a small model, trained jointly
    assert IMAGES in missing("ucf101_image_vit", created, tmp_path)
