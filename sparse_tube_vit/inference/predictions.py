"""Predictions for files and folders."""

import dataclasses
from collections.abc import Iterator, Sequence

from sparse_tube_vit.inference import files
from sparse_tube_vit.inference.loaded import TrainedTubeViT


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most probable classes of a file, or why there are none.

    Attributes:
        file: The path of the file.
        kind: "image" or "video"; "" if the file cannot be read.
        head: The head whose classes these are; "" if the file cannot be read.
        classes: [(class name, probability), ...], the most probable first.
        problem: Why there are no classes; "" if there are.
    """

    file: str
    kind: str = ""
    head: str = ""
    classes: tuple[tuple[str, float], ...] = ()
    problem: str = ""


def predict(
    tubevit: TrainedTubeViT,
    paths: Sequence[str],
    head: str | None = None,
    top: int = 5,
    views: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> Iterator[Prediction]:
    """Yields the most probable classes of files, in order, as they are computed.

    Args:
        tubevit: A loaded model.
        paths: Files, as of `files.expand`.
        head: As for `TrainedTubeViT.predict`.
        top: As for `TrainedTubeViT.predict`.
        views: (temporal, spatial) views of videos; None: as in the head's evaluation.
        batch_size: Files per batch, each with all its views; None: 4, or the number of
            files if that is smaller.

    Raises:
        UnknownHead: The model has no such head.
    """
    if head is not None:
        tubevit.choose_head("", head)

    def read(path):
        kind, video = tubevit.read(path, head, views)
        return (kind, tubevit.choose_head(kind, head)), video

    def scores(group, videos):
        return tubevit.scores(videos, group[1])

    def prediction(computed):
        if computed.problem:
            return Prediction(computed.path, problem=computed.problem)
        kind, chosen = computed.group
        best = tuple(tubevit.best(computed.result, chosen, top))
        return Prediction(computed.path, kind, chosen, best)

    return map(prediction, files.compute(paths, read, scores, batch_size))
