"""Predictions for files and folders."""

import dataclasses
from collections.abc import Iterable

from sparse_tube_vit.inference import files, loaded


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model tells of a file.

    Attributes:
      file: its path.
      kind: "image" or "video"; "" where it cannot be read.
      head: whose classes they are; "" where it cannot be read.
      classes: [(class name, probability), ...], the most probable first.
      problem: why there are none; "" where there are.
    """

    file: str
    kind: str = ""
    head: str = ""
    classes: tuple[tuple[str, float], ...] = ()
    problem: str = ""


def predict(
    tubevit: loaded.TrainedTubeViT,
    paths: Iterable,
    head: str | None = None,
    top: int = 5,
    views: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> list[Prediction]:
    """Predicts files and folders of files, in order; bad ones have a problem.

    Args:
      tubevit: a loaded model.
      paths: of files and folders, local or gs://.
      head, top: as for `TrainedTubeViT.predict`.
      views: (temporal, spatial) of videos; None: those of the head's evaluation.
      batch_size: files at a time, each with all its views; None: 4, or as many as there
        are where they are fewer.

    Raises:
      NoFiles: a folder has none.
      UnknownHead: the model has no such head.
    """
    if head is not None:
        tubevit.choose_head("", head)
    paths = files.expand(paths)

    def read(path):
        kind, video = tubevit.read(path, head, views)
        return (kind, tubevit.choose_head(kind, head)), video

    def scores(group, videos):
        return tubevit.scores(videos, group[1])

    found, problems = files.compute(paths, read, scores, batch_size)
    predictions = []
    for number, path in enumerate(paths):
        if number in problems:
            predictions.append(Prediction(path, problem=problems[number]))
            continue
        (kind, chosen), of_file = found[number]
        best = tuple(tubevit.best(of_file, chosen, top))
        predictions.append(Prediction(path, kind, chosen, best))
    return predictions
