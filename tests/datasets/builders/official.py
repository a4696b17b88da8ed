"""What the tests of official annotation files share: real clips, and both ways out."""

import functools
import pathlib

import numpy as np

from sparse_tube_vit import prepare
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import moving_shapes


@functools.cache
def encode(brightness: int) -> bytes:
    """A clip of two frames, told from others by its brightness."""
    return moving_shapes.encode_mp4(np.full((2, 16, 16, 3), brightness, np.uint8))


def encode_image(brightness: int) -> bytes:
    """A picture told from others by its brightness."""
    return moving_shapes.encode_jpeg(np.full((1, 16, 16, 3), brightness, np.uint8))


def write_clips(videos: pathlib.Path, *names: str) -> dict[str, bytes]:
    """Writes a clip to each path below `videos`; returns them."""
    clips = {name: encode(10 * (i + 1)) for i, name in enumerate(names)}
    for name, clip in clips.items():
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(clip)
    return clips


def prepared(capsys, root: pathlib.Path, dataset: str, *arguments) -> str:
    """Prepares into root/data on the command line; returns what it printed."""
    arguments = [dataset, *map(str, arguments), "--data_dir", str(root / "data")]
    arguments += ["--workers", "0"]
    prepare.main(arguments)
    return capsys.readouterr().out


def examples(root: pathlib.Path, dataset: str, split: str) -> dict:
    """Reads a split back: the label and the file of every id.

    Labels are class names, a set of them in a multi-label data set.
    """
    opened = reading.open_split(dataset, split, root / "data")
    names = opened.class_names
    return {
        e["id"]: (
            {names[i] for i in np.flatnonzero(e["label"])}
            if opened.multi_label
            else names[e["label"]],
            e[opened.kind],
        )
        for e in opened
    }
