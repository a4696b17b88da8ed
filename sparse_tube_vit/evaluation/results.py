"""Results of evaluations, with the protocol that they were measured by."""

import abc
import dataclasses
import functools
import json

import numpy as np
from etils import epath

from sparse_tube_vit.checkpoints.evaluations import tokens_in_words, views_in_words
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.evaluation.metrics import average_precision, top_k
from sparse_tube_vit.storage import write_whole, writing


class NoLabels(TubeViTError, ValueError):
    """A multi-label split of which no example has a label."""


@dataclasses.dataclass(frozen=True)
class Result(abc.ABC):
    """Scores of a data set, and the protocol that they were measured by.

    Attributes:
        protocol: Data set, split, views, frames, rate, size and checkpoint step.
        class_names: The class names of the head.
        labels: The labels of all examples of the split: (N,), or multi-hot (N, C).
        scores: Probabilities (N, C), combined over views; zero where undecodable.
        undecodable: The ids of undecodable examples, which count as wrong.
        distinct_views: (N,), how many of an example's views show other frames or
            another part of them; 0 where undecodable.
        decoded: (N,) bool, whether an example decodes.
    """

    protocol: dict
    class_names: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    undecodable: tuple[str, ...]
    distinct_views: np.ndarray
    decoded: np.ndarray

    @property
    def views(self) -> dict[str, float | None]:
        """Mean number of distinct views, and how many videos have fewer than asked.

        Undecodable videos do not count.
        """
        p, distinct = self.protocol, self.distinct_views[self.distinct_views > 0]
        asked = p.get("temporal_views", 1) * p.get("spatial_views", 1)
        return {
            "mean_distinct_views": float(distinct.mean()) if distinct.size else None,
            "videos_with_fewer_views": int((distinct < asked).sum()),
        }

    @abc.abstractmethod
    def metrics(self) -> dict[str, float]:
        """Returns the metrics by name, the main one first."""

    @abc.abstractmethod
    def per_class(self) -> dict[str, dict]:
        """Returns metric and number of examples of each class."""

    @abc.abstractmethod
    def headline(self) -> str:
        """Returns the metrics in words, up to "of" N examples."""

    def scalars(self) -> dict[str, float]:
        """Returns the metrics by their names in the run's log."""
        name = self.protocol["evaluation"]
        return {f"evaluation/{name}/{key}": x for key, x in self.metrics().items()}

    def to_json(self) -> dict:
        """Returns protocol, metrics, and metrics per class, as JSON types."""
        return self.protocol | {
            "summary": str(self),
            **self.metrics(),
            "examples": len(self.labels),
            **(self.views if self.protocol["kind"] == "video" else {}),
            "undecodable": list(self.undecodable),
            "per_class": self.per_class(),
        }

    def save(self, directory) -> epath.Path:
        """Writes NAME_stepN[_TxS[_max]][_Ntokens].json and returns its path."""
        directory = epath.Path(directory)
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        p = self.protocol
        name = f"{p['evaluation']}_step{p['step']}"
        if p["kind"] == "video":
            name += f"_{p['temporal_views']}x{p['spatial_views']}"
            name += "_max" if p["combine_views"] == "max" else ""
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
                f"{views_in_words(p)} views of {p['frames']} frames at {p['fps']:g} fps"
                f"{self._repeated_views()}, {clip}"
            )
        return (
            f"{p['evaluation']}: {self.headline()} of {len(self.labels)} {p['kind']}s "
            f"of {p['dataset']} {p['split']} ({len(self.undecodable)} undecodable); "
            f"{clip}, {tokens_in_words(p)}; step {p['step']}"
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
        """Returns the share of examples whose label is among the k highest scores."""
        return float((top_k(self.labels, self.scores, k) & self.decoded).mean())

    def metrics(self):
        ks = (1, 5) if len(self.class_names) > 5 else (1,)
        return {f"top{k}": self.top(k) for k in ks}

    def headline(self):
        return ", ".join(
            f"Top-{name.removeprefix('top')} {value:.1%}"
            for name, value in self.metrics().items()
        )

    def confusion(self) -> np.ndarray:
        """Returns counts (C, C) of decodable examples: labels by predictions."""
        c = len(self.class_names)
        counts = np.zeros((c, c), np.int64)
        labels, scores = self.labels[self.decoded], self.scores[self.decoded]
        np.add.at(counts, (labels, scores.argmax(1)), 1)
        return counts

    def per_class(self):
        correct = np.diag(self.confusion())
        total = np.bincount(self.labels, minlength=len(self.class_names))
        return {
            name: {"top1": float(k / n) if n else None, "count": int(n)}
            for name, k, n in zip(self.class_names, correct, total, strict=True)
        }

    def to_json(self):
        return super().to_json() | {"confusion": self.confusion().tolist()}


@dataclasses.dataclass(frozen=True)
class MeanAveragePrecision(Result):
    """mAP over the classes that occur, where examples have any number of labels.

    Raises:
        NoLabels: No example has a label.
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
        occurring = np.count_nonzero(self.labels.any(axis=0))
        return (
            f"mAP {self.metrics()['mAP']:.1%} over {occurring} of "
            f"{len(self.class_names)} classes,"
        )

    def per_class(self):
        counts = self.labels.sum(axis=0)
        columns = (self.class_names, self._average_precisions, counts)
        return {
            name: {"average_precision": float(ap) if n else None, "count": int(n)}
            for name, ap, n in zip(*columns, strict=True)
        }
