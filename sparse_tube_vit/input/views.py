"""What is seen of a file: the views of an evaluation, and of a prediction alike.

Imports neither jax nor what trains: a model that is loaded reads its clips here.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import re

import numpy as np
from etils import epath

from sparse_tube_vit.config import ConfigDict, evaluation
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.input import sampling
from sparse_tube_vit.input.decode import UndecodableClip, decode, opened

#: What views are spread over, as an evaluation names their numbers.
AXES = ("temporal_views", "spatial_views")


class UnreadableFile(TubeViTError, OSError):
    """A file of a clip or an image that is not there or cannot be read."""


@dataclasses.dataclass(frozen=True)
class Example:
    """Turns a record into a training or evaluation example; grain's random map.

    An example is {"video": uint8 (T, H, W, 3) or in evaluation (V, T, H, W, 3),
    "label": int32, "weight": float32, "index": int32, "id": str, "problem": str}, in
    evaluation also {"distinct_views": int32}. The label is a class, or multi-hot (C,)
    where the data set is multi-label. An example that cannot be decoded is black, has
    weight 0, and says why in `problem`.
    """

    kind: str
    frames: int
    fps: float
    size: int
    timeout_seconds: float = math.inf

    @classmethod
    def of(cls, clip: ConfigDict, source: ConfigDict, **options):
        """With the clip of the config and its frames 1 if the source is of images."""
        frames = clip.frames if source.kind == "video" else 1
        return cls(source.kind, frames, clip.fps, clip.size, **options)

    def __call__(self, record, rng):
        example = self.blank | {
            "label": np.asarray(record["label"], np.int32),
            "id": record["id"],
        }
        try:
            return (
                example | self.read(record[self.kind], rng) | {"weight": np.float32(1)}
            )
        except UndecodableClip as error:
            return example | {"problem": str(error)}

    @property
    def blank(self):
        """What an example has before it is read, of weight 0."""
        return {
            "video": np.zeros(self.shape, np.uint8),
            "weight": np.float32(0),
            "id": "",
            "problem": "",
        }

    @property
    def shape(self):
        return (self.frames, self.size, self.size, 3)


@dataclasses.dataclass(frozen=True)
class EvaluationExample(Example):
    """All views of a video: clips spread over its time, crops along its longer side."""

    temporal_views: int = 1
    spatial_views: int = 1

    @classmethod
    def of(cls, clip: ConfigDict, source: ConfigDict, **options):
        """With the views of an evaluation; one of a stream, and one of an image."""
        views = AXES if source.kind == "video" else ()
        given = {key: source[key] for key in views if key in source}
        return super().of(clip, source, **given | options)

    def read(self, encoded, rng):
        del rng

        def times(duration):
            clip = (self.frames, self.fps, duration)
            starts = sampling.spread_starts(self.temporal_views, *clip)
            return np.concatenate([sampling.clip_times(s, *clip) for s in starts])

        def crop(height, width):
            return sampling.whole_picture(height, width, self.size)

        clip, shown = decode(encoded, times, crop, self.timeout_seconds)
        crops = sampling.spread_crops(clip, self.spatial_views, self.size)
        # Views differ by the frames that they show, and by their place in the picture.
        in_time = np.unique(shown.reshape(self.temporal_views, -1), axis=0)
        in_space = {*sampling.crop_starts(*clip.shape[1:3], self.spatial_views)}
        return {
            "video": crops.reshape(self.shape),
            "distinct_views": np.int32(len(in_time) * len(in_space)),
        }

    @property
    def blank(self):
        return super().blank | {"distinct_views": np.int32(0)}

    @property
    def shape(self):
        return (self.temporal_views * self.spatial_views, *super().shape)


def parse_views(text: str) -> tuple[int, int]:
    """(temporal, spatial) of a command line's "4x3"."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form TxS, two numbers of at least 1, as 4x3"
        )
    temporal, spatial = text.split("x")
    return int(temporal), int(spatial)


@contextlib.contextmanager
def naming(path):
    """Names the file in what is raised because of what it holds."""
    try:
        yield
    except (UnreadableFile, UndecodableClip) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def read_file(path) -> bytes:
    """A file of a clip or an image, local or gs://.

    Raises:
      UnreadableFile: it is not there, or may not be read.
    """
    try:
        return epath.Path(path).read_bytes()
    except (OSError, ImportError) as error:  # gs:// needs a package of its own
        why = getattr(error, "strerror", None) or error
        raise UnreadableFile(f"{why}.") from error


def kind_of(encoded: bytes) -> str:
    """ "image" if a file has one frame, else "video".

    Raises:
      UndecodableClip: it has no picture.
    """
    with opened(encoded) as video:
        return "video" if len(video.packets) > 1 else "image"


def unlabelled(kind: str, temporal_views: int = 1, spatial_views: int = 1):
    """An evaluation's views, of files that are in no data set."""
    return evaluation(
        kind=kind,
        dataset="",
        head="",
        batch_size=1,
        temporal_views=temporal_views,
        spatial_views=spatial_views,
    )


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
