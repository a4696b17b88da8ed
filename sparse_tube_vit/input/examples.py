"""What is seen of a file: the views of an evaluation, and of a prediction alike.

Imports neither jax nor what trains: a model that is loaded reads its clips here.
"""

import dataclasses
import math

import numpy as np

from sparse_tube_vit.config import ConfigDict, evaluation
from sparse_tube_vit.video import sampling
from sparse_tube_vit.video.decode import UndecodableClip, decode

#: What views are spread over, as an evaluation names their numbers.
AXES = ("temporal_views", "spatial_views")


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


@dataclasses.dataclass(frozen=True)
class TrainingExample(Example):
    """A random clip, randomly cropped, perhaps flipped, recoloured and distorted."""

    crop_area: tuple[float, float] = (0.3, 1.0)
    flip: bool = True
    color_jitter: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 10.0

    @classmethod
    def of(cls, clip: ConfigDict, stream: ConfigDict, **options):
        """With the clip of the config and the augmentation of one of its streams."""
        return super().of(
            clip,
            stream,
            crop_area=tuple(stream.crop_area),
            flip=stream.flip,
            color_jitter=stream.color_jitter,
            randaugment_layers=stream.randaugment_layers,
            randaugment_magnitude=stream.randaugment_magnitude,
            **options,
        )

    def read(self, encoded, rng):
        # Here: a loaded model reads its evaluation's examples without OpenCV.
        from sparse_tube_vit.input import augment, randaugment

        clip, _ = self.sample(encoded, rng)
        if self.flip:
            clip = augment.flip(rng, clip)
        if self.color_jitter:
            clip = augment.jitter_color(rng, clip, self.color_jitter)
        layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
        clip = randaugment.rand_augment(rng, clip, layers, magnitude)
        return {"video": np.ascontiguousarray(clip)}

    def sample(self, encoded: bytes, rng: np.random.Generator):
        """Decodes a random clip at a random crop, as `decode.decode` returns it."""

        def times(duration):
            start = sampling.random_start(rng, self.frames, self.fps, duration)
            return sampling.clip_times(start, self.frames, self.fps, duration)

        def crop(height, width):
            return sampling.random_crop(rng, height, width, self.size, self.crop_area)

        return decode(encoded, times, crop, self.timeout_seconds)
