"""Clips and images from files, sampled as in evaluation."""

import contextlib
import os

import numpy as np

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.input.examples import EvaluationExample, unlabelled
from sparse_tube_vit.storage import UnreadableFile, read_file
from sparse_tube_vit.video.decode import UndecodableClip, opened


@contextlib.contextmanager
def naming(path):
    """Names the file in what is raised because of what it holds."""
    try:
        yield
    except (UnreadableFile, UndecodableClip) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def kind_of(encoded: bytes) -> str:
    """ "image" if a file has one frame, else "video".

    Raises:
      UndecodableClip: it has no picture.
    """
    with opened(encoded) as video:
        return "video" if len(video.packets) > 1 else "image"


def read_clip(
    path, config: ConfigDict, views: tuple[int, int] | None = None
) -> np.ndarray:
    """A clip of a video, sampled and cropped as in evaluation.

    Args:
      path: of a file in any container, local or gs://.
      config: of the model; its section `clip` says what it reads.
      views: (temporal, spatial): clips spread over the video's time, crops along its
        longer side. None: the middle of both.

    Returns:
      uint8 (T, H, W, 3); with views (V, T, H, W, 3), the crops of a clip together.

    Raises:
      UnreadableFile, UndecodableClip: the file has no clip.
    """
    clips = _read(path, config, unlabelled("video", *(views or ())))
    return clips if views else clips[0]


def read_image(path, config: ConfigDict) -> np.ndarray:
    """An image's middle, or that of a video's first frame: uint8 (H, W, 3).

    Args and errors as for `read_clip`.
    """
    return _read(path, config, unlabelled("image"))[0, 0]


def _read(path, config, source):
    with naming(path):
        example = EvaluationExample.of(config.clip, source)
        return example.read(read_file(path), None)["video"]
