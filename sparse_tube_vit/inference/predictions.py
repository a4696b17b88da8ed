"""Predictions for files, folders and arrays."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparse_tube_vit.inference import files

if TYPE_CHECKING:  # which imports this module
    from sparse_tube_vit.inference.loaded import TrainedTubeViT


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most probable classes of an input or a window, or why there are none.

    Attributes:
        file: The path of the file; "input 3" for the array of that index.
        kind: "image" or "video"; "" if the file cannot be read.
        head: The head whose classes these are; "" if the file cannot be read.
        classes: [(class name, probability), ...], the most probable first.
        problem: Why there are no classes; "" if there are.
        begin: Start of the window in seconds; None if this is of the whole file.
        end: End of the window in seconds; None likewise.
        scores: Probabilities (C,) float32 of all classes of a window, in the order of
            the head's class names; None if this is of the whole file.
    """

    file: str
    kind: str = ""
    head: str = ""
    classes: tuple[tuple[str, float], ...] = ()
    problem: str = ""
    begin: float | None = None
    end: float | None = None
    scores: np.ndarray | None = dataclasses.field(
        default=None, repr=False, compare=False
    )


def predict(
    tubevit: "TrainedTubeViT",
    inputs: Sequence,
    head: str | None = None,
    top: int = 5,
    views: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> Iterator[Prediction]:
    """Yields the most probable classes of inputs, in order, as they are computed.

    Args:
        tubevit: A loaded model.
        inputs: Paths of files, or arrays as for `TrainedTubeViT.predict`.
        head: As for `TrainedTubeViT.predict`.
        top: As for `TrainedTubeViT.predict`.
        views: (temporal, spatial) views of videos; None: as in the head's evaluation.
        batch_size: Inputs per batch, each with all its views; None: 4, or the number of
            inputs if that is smaller.

    Raises:
        UnknownHead: The model has no such head.
    """

    def prediction(computed):
        if computed.problem:
            return Prediction(computed.path, problem=computed.problem)
        kind, chosen, *_ = computed.group
        return Prediction(computed.path, kind, chosen, tuple(computed.result))

    return map(prediction, classes(tubevit, inputs, head, top, views, batch_size))


def classes(
    tubevit: "TrainedTubeViT",
    inputs: Sequence,
    head: str | None = None,
    top: int = 5,
    views: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> Iterator[files.Computed]:
    """Yields the most probable classes of inputs, in order, as `predict`.

    The result of each is [(class name, probability), ...]; its group begins with its
    kind and its head.
    """
    if head is not None or not tubevit.class_names:
        tubevit.choose_head("", head)

    def read(item):
        kind, video = tubevit.views_of(item, head, views)
        # Inputs of one shape and dtype share a batch.
        chosen = tubevit.choose_head(kind, head)
        return (kind, chosen, video.shape, video.dtype.str), video

    def of_batch(group, videos):
        _, chosen, *_ = group
        scores = tubevit.scores(videos, chosen)
        return [tubevit.best(x, chosen, top) for x in scores]

    return files.compute(inputs, read, of_batch, batch_size)
