"""Clips and images from files, sampled and cropped as in evaluation."""

import contextlib
import os
from pathlib import Path

import numpy as np

from sparse_tube_vit.checkpoints.stored import DEMO
from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.input.examples import EvaluationExample, unlabelled
from sparse_tube_vit.storage import UnreadableFile, read_file
from sparse_tube_vit.video.limits import UndecodableClip


def example_clips() -> list[Path]:
    """Returns the files of two clips that come with the package, for the model "demo".

    They are of the test split of moving_shapes, each named by its class.
    """
    return sorted(DEMO.glob("*.mp4"))


def read_clip(
    path, config: ConfigDict, views: tuple[int, int] | None = None
) -> np.ndarray:
    """Reads a clip of a video.

    Args:
        path: A file in any container, local or gs://.
        config: The model's config; its section `clip` gives frames, rate and size,
            `loader` the limits.
        views: (temporal, spatial): clips spread over the video's time, crops along its
            longer side. None: the middle of both.

    Returns:
        uint8 (T, H, W, 3); with views (V, T, H, W, 3), the crops of a clip together.

    Raises:
        UnreadableFile: The file is not there, or may not be read.
        UndecodableClip: It has no clip.
    """
    clips = _read(path, config, unlabelled("video", *(views or ())))
    return clips if views else clips[0]


def read_image(path, config: ConfigDict) -> np.ndarray:
    """Reads an image, or a video's first frame: its middle, uint8 (H, W, 3).

    Arguments and errors are those of `read_clip`.
    """
    return _read(path, config, unlabelled("image"))[0, 0]


def _read(path, config, source):
    with naming(path):
        example = EvaluationExample.of(config.clip, config.loader, source)
        return example.read(read_file(path), None)["video"]


@contextlib.contextmanager
def naming(path):
    """Puts the file's name before messages of UnreadableFile and UndecodableClip."""
    try:
        yield
    except (UnreadableFile, UndecodableClip) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error
