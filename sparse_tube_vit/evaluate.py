"""Measures accuracy, or mAP of several labels, over temporal x spatial views.

python -m sparse_tube_vit.evaluate --workdir DIR [--step N] [--views 4x3] [...]
"""

import abc
import argparse
import dataclasses
import functools
import json
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit import checkpoints, datasets, figures, hosts
from sparse_tube_vit.config import ConfigDict, from_json, head_loss, validate
from sparse_tube_vit.datasets.classes import check_classes, check_loss
from sparse_tube_vit.errors import TubeViTError, reported
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.input.views import parse_views
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.metrics import average_precision, top_k
from sparse_tube_vit.model import TubeViT
from sparse_tube_vit.output import write_whole
from sparse_tube_vit.scoring import make_scores
from sparse_tube_vit.training import sharding
from sparse_tube_vit.tubes import count_tokens
from sparse_tube_vit.variants import make_model


class UnknownEvaluation(TubeViTError, KeyError):
    """The run's config has no evaluation of that name."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


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


@dataclasses.dataclass
class Evaluation:
    """One evaluation of a config, with its data opened and checked.

    Raises:
      ClassNamesDiffer: the data set's classes are not those of the head.
      LossDoesNotFit: it is multi-label, the head's loss is not.
    """

    name: str
    config: ConfigDict
    class_names: tuple[str, ...]

    def __post_init__(self):
        self.source = self.config.evaluations[self.name]
        self.split = datasets.open_split(
            self.source.dataset,
            self.source.split,
            self.config.data_dir,
            self.source.kind,
        )
        check_classes(self.source.head, self.class_names, self.split)
        self.loss = head_loss(self.config, self.source.head)
        check_loss(f"evaluations.{self.name}", self.loss, self.split)
        self._scores = None

    def run(
        self,
        model: TubeViT,
        params,
        mesh,
        step: int,
        before_batch: Callable = lambda: None,
    ) -> Result:
        """Scores every example once; every host gets the whole result.

        Args:
          model, params: that are evaluated.
          mesh: of all devices.
          step: of the checkpoint, for the result.
          before_batch: called before each; what it raises ends the evaluation.
        """
        source, clip = self.source, self.config.clip
        sharding.check_batch(source.batch_size, mesh, f"evaluations.{self.name}")
        model = model.restride(source.stride_scale)
        frames = clip.frames if source.kind == "video" else 1
        if self._scores is None:
            self._scores = jax.jit(
                make_scores(model, source.head, self.loss),
                out_shardings=NamedSharding(mesh, P()),
            )
            self._gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))

        n = len(self.split)
        labels = np.zeros((n, *self.split.label_shape), np.int64)
        scores = np.zeros((n, len(self.class_names)), np.float32)
        distinct_views = np.zeros(n, np.int64)
        seen = np.zeros(n, bool)
        undecodable = []
        batches = pipeline.evaluation_batches(
            self.split,
            source,
            clip,
            self.config.loader,
            *sharding.batch_share(mesh),
        )
        for batch in batches:
            before_batch()
            for name, problem in zip(batch["id"], batch["problem"], strict=True):
                if problem:
                    log.warning("%s: %s does not decode: %s", self.name, name, problem)
            kept = ("video", "label", "weight", "index", "distinct_views")
            arrays = {k: batch[k] for k in kept}
            arrays = sharding.to_devices(arrays, mesh)
            with jax.set_mesh(mesh):
                probabilities = self._scores(params, arrays.pop("video"))
            rest = {k: np.asarray(v) for k, v in self._gather(arrays).items()}
            real = rest["index"] >= 0
            index = rest["index"][real]
            labels[index], seen[index] = rest["label"][real], True
            distinct_views[index] = rest["distinct_views"][real]
            weight = rest["weight"][real]
            scores[index] = np.asarray(probabilities)[real] * weight[:, None]
            undecodable += [self.split[i]["id"] for i in index[weight == 0]]
        assert seen.all(), "the pipeline left examples out"

        protocol = {
            "evaluation": self.name,
            **{k: v for k, v in source.items() if k != "batch_size"},
            "tokens": count_tokens(model.tubes, (frames, clip.size, clip.size)),
            "frames": frames,
            "fps": clip.fps,
            "size": clip.size,
            "step": step,
        }
        if source.kind == "image":
            del protocol["temporal_views"], protocol["spatial_views"], protocol["fps"]
        measured = MeanAveragePrecision if self.split.multi_label else Accuracy
        return measured(
            protocol,
            self.class_names,
            labels,
            scores,
            tuple(undecodable),
            distinct_views,
        )


def prepare(config: ConfigDict, class_names: dict) -> list[Evaluation]:
    """All evaluations of a config, their data sets opened and their classes checked."""
    return [
        Evaluation(name, config, tuple(class_names[source.head]))
        for name, source in config.evaluations.items()
    ]


def evaluate(config: ConfigDict, workdir, step: int, names=None) -> list[Result]:
    """Evaluates the checkpoint of a step, as the config's evaluations say.

    Raises:
      InvalidConfig, NoCheckpoint, UnknownEvaluation, and the errors of data sets and
        input.
    """
    validate(config)
    directory = epath.Path(workdir) / "checkpoints"
    class_names = checkpoints.read_run(directory, step)["class_names"]
    unknown = set(names or ()) - set(config.evaluations)
    if unknown:
        raise UnknownEvaluation(
            f"The run has no evaluation {', '.join(sorted(unknown))}; it has "
            f"{', '.join(config.evaluations) or 'none'}."
        )
    model = make_model(config, {h: len(c) for h, c in class_names.items()})
    params = checkpoints.read_params(directory, step)
    mesh = sharding.make_mesh(config)
    whole = NamedSharding(mesh, P())
    params = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(whole, x, x.shape), params
    )
    evaluations = [
        evaluation
        for evaluation in prepare(config, class_names)
        if not names or evaluation.name in names
    ]
    hosts.check_same(
        checkpoints.describe_run(config, class_names)
        | {"step": step, "evaluations": {e.name: len(e.split) for e in evaluations}}
    )
    return [evaluation.run(model, params, mesh, step) for evaluation in evaluations]


def main():
    parser = argparse.ArgumentParser(
        prog="python -m sparse_tube_vit.evaluate",
        description="Evaluates a checkpoint; config and classes are read from it.",
    )
    parser.add_argument("--workdir", required=True, help="of the training run")
    parser.add_argument(
        "--step", type=int, help="of the checkpoint; default: the latest"
    )
    parser.add_argument("--only", nargs="+", help="names of evaluations; default: all")
    parser.add_argument(
        "--views", type=parse_views, help="temporal x spatial views of videos, as 4x3"
    )
    parser.add_argument(
        "--stride_scale",
        type=float,
        help="of the tubes' strides: below 1 for more tokens than in training",
    )
    parser.add_argument("--batch_size", type=int, help="videos or images at a time")
    parser.add_argument("--data_dir", help="of the prepared data sets")
    parser.add_argument("--out", help="default: WORKDIR/evaluations")
    args = parser.parse_args()
    to_stderr()
    with reported(), hosts.connected():
        step = args.step
        if step is None:
            step = checkpoints.latest_step(args.workdir)
        run = checkpoints.read_run(epath.Path(args.workdir) / "checkpoints", step)
        config = from_json(run["config"])
        # Parameters are not split here: devices of any kind and number will do.
        slices = sharding.count_slices(jax.devices())
        config.mesh.update(data=-1, fsdp=1, tensor=1, slices=slices)
        config.model.attention = "auto"
        if args.data_dir:
            config.data_dir = args.data_dir
        for source in config.evaluations.values():
            if args.batch_size is not None:
                source.batch_size = args.batch_size
            if args.stride_scale is not None:
                source.stride_scale = args.stride_scale
            if args.views and source.kind == "video":
                source.temporal_views, source.spatial_views = args.views
        for result in evaluate(config, args.workdir, step, args.only):
            if jax.process_index() == 0:
                print(result)
                out = epath.Path(args.out or epath.Path(args.workdir) / "evaluations")
                print(f"  written to {result.save(out)}")


if __name__ == "__main__":
    main()
