"""Results of evaluations, with the protocol that they were measured by."""

import abc
import dataclasses
import functools
import json

import numpy as np
from etils import epath

from sparse_tube_vit import figures
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.evaluation.metrics import average_precision, top_k
from sparse_tube_vit.storage import write_whole


class NoLabels(TubeViTError, ValueError):
    """A multi-label split of which no example has a label."""


@dataclasses.dataclass(frozen=True)
class Result(abc.ABC):
    """What was measured, and the protocol that it was measured by.

    Attributes:
      protocol: data set, split, views, frames, rate, size and checkpoint step.
      class_names: of the head.
      labels: of every video or image of the split: (N,), or multi-hot (N, C).
      scores: (N, C) probabilities, averaged over views; all zero where undecodable.
      undecodable: ids of those that could not be decoded; they count as wrong.
      distinct_views: of every video or image (N,): how many of its views show other
        frames or another part of them; 0 where undecodable.
    """

    protocol: dict
    class_names: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    undecodable: tuple[str, ...]
    distinct_views: np.ndarray

    @property
    def views(self) -> dict[str, float | None]:
        """Of the decodable: mean distinct views, and how many have fewer than asked."""
        p, distinct = self.protocol, self.distinct_views[self.distinct_views > 0]
        asked = p.get("temporal_views", 1) * p.get("spatial_views", 1)
        return {
            "mean_distinct_views": float(distinct.mean()) if distinct.size else None,
            "videos_with_fewer_views": int((distinct < asked).sum()),
        }

    @abc.abstractmethod
    def metrics(self) -> dict[str, float]:
        """The figures by name, the one that counts first."""

    @abc.abstractmethod
    def per_class(self) -> dict[str, dict]:
        """Figure and number of examples of every class, undecodable ones as wrong."""

    @abc.abstractmethod
    def headline(self) -> str:
        """The figures in words, up to "of" so many examples."""

    def scalars(self) -> dict[str, float]:
        """The figures, named for the run's log."""
        name = self.protocol["evaluation"]
        return {f"evaluation/{name}/{key}": x for key, x in self.metrics().items()}

    def to_json(self) -> dict:
        """Protocol, figures, and figures per class, as JSON types."""
        return self.protocol | {
            "summary": str(self),
            **self.metrics(),
            "distinct": len(self.labels),
            **(self.views if self.protocol["kind"] == "video" else {}),
            "undecodable": list(self.undecodable),
            "per_class": self.per_class(),
        }

    def save(self, directory) -> epath.Path:
        """Writes NAME_stepN[_TxS][_Ntokens].json, whose path it returns."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        p = self.protocol
        name = f"{p['evaluation']}_step{p['step']}"
        if p["kind"] == "video":
            name += f"_{p['temporal_views']}x{p['spatial_views']}"
        if p["stride_scale"] != 1:
            name += f"_{p['tokens']}tokens"
        path, text = directory / f"{name}.json", json.dumps(self.to_json(), indent=1)
        write_whole(path, f"{text}\n".encode())
        return path

    def __str__(self):
        p = self.protocol
        clip = f"{p['size']}x{p['size']}"
        if p["kind"] == "video":
            clip = (
                f"{p['temporal_views']}x{p['spatial_views']} views of {p['frames']} "
                f"frames at {p['fps']:g} fps{self._repeated_views()}, {clip}"
            )
        return (
            f"{p['evaluation']}: {self.headline()} of {len(self.labels)} {p['kind']}s "
            f"of {p['dataset']} {p['split']} ({len(self.undecodable)} undecodable); "
            f"{clip}, {p['tokens']} tokens; step {p['step']}"
        )

    def _repeated_views(self):
        mean, fewer = self.views.values()
        if mean is None or not fewer:
            return " (all distinct)"
        return f" ({mean:.2f} distinct on average, {fewer} videos have fewer)"


@dataclasses.dataclass(frozen=True)
class Accuracy(Result):
    """Top-1, and Top-5 of more than five classes, where every example has one label."""

    def top(self, k: int) -> float:
        """Share of all examples whose label is among the k highest scores."""
        return float((top_k(self.labels, self.scores, k) & self._decoded).mean())

    @property
    def _decoded(self):
        return self.scores.sum(axis=1) > 0

    def metrics(self):
        ks = (1, 5) if len(self.class_names) > 5 else (1,)
        return {f"top{k}": self.top(k) for k in ks}

    def headline(self):
        return ", ".join(
            f"Top-{name.removeprefix('top')} {share:.1%}"
            for name, share in self.metrics().items()
        )

    def confusion(self) -> np.ndarray:
        """(C, C) counts: row the label, column the prediction; decodable ones alone."""
        c = len(self.class_names)
        counts = np.zeros((c, c), np.int64)
        decoded = self._decoded
        np.add.at(counts, (self.labels[decoded], self.scores[decoded].argmax(1)), 1)
        return counts

    def per_class(self):
        right = np.diag(self.confusion())
        total = np.bincount(self.labels, minlength=len(self.class_names))
        return {
            name: {"top1": float(r / n) if n else None, "count": int(n)}
            for name, r, n in zip(self.class_names, right, total, strict=True)
        }

    def to_json(self):
        return super().to_json() | {"confusion": self.confusion().tolist()}

    def save(self, directory):
        """Writes a picture of the confusion beside the JSON file."""
        path = super().save(directory)
        figure = figures.confusion(self.confusion(), self.class_names, str(self))
        figures.save(figure, path.with_name(f"{path.stem}_confusion.png"))
        return path


@dataclasses.dataclass(frozen=True)
class MeanAveragePrecision(Result):
    """mAP, where examples have any number of labels.

    The mean is over the classes that some example is of.

    Raises:
      NoLabels: there is no such class.
    """

    def __post_init__(self):
        if not self.labels.any():
            p = self.protocol
            raise NoLabels(
                f"{p['evaluation']}: none of the {len(self.labels)} examples of "
                f"{p['dataset']} {p['split']} has a label; there is nothing to find."
            )

    @functools.cached_property
    def _average_precisions(self):
        return average_precision(self.labels, self.scores)

    def metrics(self):
        return {"mAP": float(np.nanmean(self._average_precisions))}

    def headline(self):
        counted = np.count_nonzero(self.labels.any(axis=0))
        return (
            f"mAP {self.metrics()['mAP']:.1%} over {counted} of "
            f"{len(self.class_names)} classes,"
        )

    def per_class(self):
        counts = self.labels.sum(axis=0)
        columns = (self.class_names, self._average_precisions, counts)
        return {
            name: {"average_precision": float(ap) if n else None, "count": int(n)}
            for name, ap, n in zip(*columns, strict=True)
        }
