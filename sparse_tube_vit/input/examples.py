"""Maps from records to examples: random clips of training, views of evaluation.

Inference samples its clips here too: this module imports no jax, and nothing that only
training needs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sparse_tube_vit.config import VIEWS, ConfigDict, evaluation, input_size
from sparse_tube_vit.datasets.times import ACTIONS, SPAN
from sparse_tube_vit.video import sampling
from sparse_tube_vit.video.decode import decode, decode_clips
from sparse_tube_vit.video.limits import LIMITS, Limits, UndecodableClip


@dataclasses.dataclass(frozen=True)
class ExampleMap:
    """A map from records to examples, one of grain's random maps.

    An example is {"video": uint8 (T, H, W, 3) or in evaluation (V, T, H, W, 3),
    "label": int32, "weight": float32, "id": str, "problem": str}, in evaluation also
    {"distinct_views": int32}. The label is a class, or multi-hot (C,)
    in a multi-label data set. An example that does not decode is black, has weight 0
    and the reason in `problem`.

    Attributes:
        kind: "video" or "image", the key of the encoded file in a record. Of an image,
            the first picture is read.
        frames: T.
        fps: Frames a second of a clip.
        size: H and W in pixels.
        limits: Limits beyond which a file counts as undecodable.
    """

    kind: str
    frames: int
    fps: float
    size: int
    limits: Limits = LIMITS

    @classmethod
    def of(cls, clip: ConfigDict, loader: ConfigDict, source: ConfigDict, **options):
        """Returns the map for a stream or an evaluation; images have one frame.

        Args:
            clip: `clip` of the config.
            loader: `loader` of the config, which has the limits.
            source: The stream or the evaluation.
            options: More attributes.
        """
        frames, size, _ = input_size(clip, source.kind)
        limits = Limits.of(loader)
        return cls(source.kind, frames, clip.fps, size, limits, **options)

    def __call__(self, record, rng):
        example = self.blank | {
            "label": np.asarray(record["label"], np.int32),
            "id": record["id"],
        }
        try:
            return example | self.read_record(record, rng) | {"weight": np.float32(1)}
        except UndecodableClip as error:
            return example | {"problem": str(error)}

    def read_record(self, record, rng):
        """Returns what `read` does for a record's file, within its span."""
        return self.read(record[self.kind], rng, **self.options(record))

    def options(self, record) -> dict:
        """Returns the arguments of `read` that follow from a record's times."""
        return {"span": record[SPAN]} if SPAN in record else {}

    @property
    def blank(self):
        """The black example of weight 0, without a label."""
        return {
            "video": np.zeros(self.shape, np.uint8),
            "weight": np.float32(0),
            "id": "",
            "problem": "",
        }

    @property
    def shape(self):
        """Shape of "video"."""
        return (self.frames, self.size, self.size, 3)


@dataclasses.dataclass(frozen=True)
class EvaluationExample(ExampleMap):
    """All views: clips spread evenly in time, crops along the longer side."""

    temporal_views: int = 1
    spatial_views: int = 1

    @classmethod
    def of(cls, clip: ConfigDict, loader: ConfigDict, source: ConfigDict, **options):
        """Returns the map with an evaluation's views; streams and images have one."""
        views = VIEWS[:2] if source.kind == "video" else ()
        given = {key: source[key] for key in views if key in source}
        return super().of(clip, loader, source, **given | options)

    def read(self, encoded, rng, span=None):
        """Decodes a file to {"video": uint8 (V, T, H, W, 3), "distinct_views": int32}.

        Args:
            encoded: Encoded file.
            rng: Not used: views are not random.
            span: Start and end in seconds of the part that is used; None: all of it.

        Raises:
            UndecodableClip: The file does not decode.
        """
        del rng
        times = sampling.within(self._times, span)
        clip, shown = decode(encoded, times, self._crop, self.limits, self.kind)
        # Views of a short or square video may show the same frames and pixels.
        in_time = np.unique(shown.reshape(self.temporal_views, -1), axis=0)
        in_space = {*sampling.crop_starts(*clip.shape[1:3], self.spatial_views)}
        return {
            "video": self._views(clip),
            "distinct_views": np.int32(len(in_time) * len(in_space)),
        }

    def read_spans(
        self,
        encoded: bytes,
        spans: Callable[[float], Sequence[tuple[float, float]]],
        kind: str | None = None,
    ) -> Iterator[tuple[tuple[float, float], np.ndarray]]:
        """Yields the views of parts of a video, each as `read` gives it for that span.

        The video is decoded once.

        Args:
            encoded: Encoded file.
            spans: Function of the video's duration that returns start and end of each
                part, in order, all in seconds.
            kind: As for `decode.decode_clips`.

        Yields:
            (start, end), and uint8 (V, T, H, W, 3).

        Raises:
            UndecodableClip: As `decode.decode_clips`.
        """

        def clips(duration):
            return [
                (span, sampling.within(self._times, span)(duration))
                for span in spans(duration)
            ]

        for span, clip in decode_clips(encoded, clips, self._crop, self.limits, kind):
            yield span, self._views(clip)

    def _times(self, duration):
        clip = (self.frames, self.fps, duration)
        starts = sampling.spread_starts(self.temporal_views, *clip)
        return np.concatenate([sampling.clip_times(s, *clip) for s in starts])

    def _crop(self, height, width):
        return sampling.whole_picture(height, width, self.size)

    def _views(self, clip):
        crops = sampling.spread_crops(clip, self.spatial_views, self.size)
        return crops.reshape(self.shape)

    @property
    def blank(self):
        return super().blank | {"distinct_views": np.int32(0)}

    @property
    def shape(self):
        return (self.temporal_views * self.spatial_views, *super().shape)


def unlabelled(kind: str, temporal_views: int = 1, spatial_views: int = 1):
    """Returns the config of an evaluation of files that are in no data set."""
    return evaluation(
        kind=kind,
        dataset="",
        head="",
        batch_size=1,
        temporal_views=temporal_views,
        spatial_views=spatial_views,
    )


@dataclasses.dataclass(frozen=True)
class TrainingExample(ExampleMap):
    """A random clip with a random crop, optionally augmented.

    Attributes:
        crop_area: Least and greatest area of the crop, as a fraction of the picture.
        flip: Whether clips are mirrored left to right with probability 1/2.
        color_jitter: Strength for `augment.jitter_color`; 0 is off.
        randaugment_layers: Number of RandAugment operations; 0 is off.
        randaugment_magnitude: Magnitude of RandAugment, 0 to 10.
        labels: "video", or "clip" for the labels of the actions that the clip shows.
    """

    crop_area: tuple[float, float] = (0.3, 1.0)
    flip: bool = True
    color_jitter: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 10.0
    labels: str = "video"

    @classmethod
    def of(cls, clip: ConfigDict, loader: ConfigDict, stream: ConfigDict, **options):
        """Returns the map with the crops and the augmentation of a stream."""
        return super().of(
            clip,
            loader,
            stream,
            crop_area=tuple(stream.crop_area),
            flip=stream.flip,
            color_jitter=stream.color_jitter,
            randaugment_layers=stream.randaugment_layers,
            randaugment_magnitude=stream.randaugment_magnitude,
            labels=stream.labels,
            **options,
        )

    def options(self, record):
        options = super().options(record)
        if self.labels == "clip":
            options["actions"] = record[ACTIONS]
            options["classes"] = len(record["label"])
        return options

    def read(self, encoded, rng, span=None, actions=None, classes=0):
        """Decodes and augments a file to {"video": uint8 (T, H, W, 3)}.

        Args:
            encoded: Encoded file.
            rng: Source of the random numbers.
            span: Start and end in seconds of the part that is used; None: all of it.
            actions: Class, start and end of the video's actions (n, 3), if the result
                is to have the "label" int32 (C,) of those that the clip shows.
            classes: C.

        Raises:
            UndecodableClip: The file does not decode.
        """
        clip, times = self.sample(encoded, rng, span)
        example = {"video": np.ascontiguousarray(self.augment(clip, rng))}
        if actions is not None:
            label, start, end = actions.T
            shown = (start <= times.max()) & (times.min() <= end)
            example["label"] = np.zeros(classes, np.int32)
            example["label"][label[shown].astype(int)] = 1
        return example

    def sample(self, encoded: bytes, rng: np.random.Generator, span=None):
        """Decodes a random clip at a random crop; returns it as `decode.decode`."""

        def times(duration):
            start = sampling.random_start(rng, self.frames, self.fps, duration)
            return sampling.clip_times(start, self.frames, self.fps, duration)

        def crop(height, width):
            return sampling.random_crop(rng, height, width, self.size, self.crop_area)

        times = sampling.within(times, span)
        return decode(encoded, times, crop, self.limits, self.kind)

    def augment(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Flips, jitters and distorts a clip (T, H, W, 3) uint8, all frames alike."""
        # Imported here: inference samples its views without OpenCV.
        from sparse_tube_vit.input import augment, randaugment

        if self.flip:
            clip = augment.flip(rng, clip)
        if self.color_jitter:
            clip = augment.jitter_color(rng, clip, self.color_jitter)
        layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
        return randaugment.rand_augment(rng, clip, layers, magnitude)
