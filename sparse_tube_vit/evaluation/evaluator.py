"""Evaluates a model on data sets."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.checkpoints.run import describe_run
from sparse_tube_vit.checkpoints.stored import Location
from sparse_tube_vit.config import ConfigDict, head_loss, validate
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.classes import check_classes, check_loss
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.distributed import hosts, sharding
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.evaluation.results import Accuracy, MeanAveragePrecision, Result
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.log import log
from sparse_tube_vit.models.losses import make_scores
from sparse_tube_vit.models.tubes import count_tokens
from sparse_tube_vit.models.tubevit import TubeViT, make_model


class UnknownEvaluation(TubeViTError, KeyError):
    """The run's config has no evaluation of that name."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


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
        self.split = reading.open_split(
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


def evaluate(config: ConfigDict, source: Location, names=None) -> list[Result]:
    """Evaluates a stored model by the evaluations of a config.

    Args:
        config: The model's config, whose evaluations, mesh and data_dir may differ.
        source: The model. If it is not in a work directory, the protocol of every
            result names it under "model".
        names: Evaluations to run; None for all.

    Raises:
        InvalidConfig, UnknownEvaluation: The config or `names` is wrong.
        The errors of `stored`, data sets and input.
    """
    validate(config)
    class_names = source.read_description()["class_names"]
    unknown = set(names or ()) - set(config.evaluations)
    if unknown:
        raise UnknownEvaluation(
            f"The run has no evaluation {', '.join(sorted(unknown))}; it has "
            f"{', '.join(config.evaluations) or 'none'}."
        )
    model = make_model(config, {h: len(c) for h, c in class_names.items()})
    stored = source.read()
    mesh = sharding.make_mesh(config)
    whole = NamedSharding(mesh, P())
    params = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(whole, x, x.shape),
        stored.params,
    )
    prepare_embedded(config)
    evaluations = [
        evaluation
        for evaluation in prepare(config, class_names)
        if not names or evaluation.name in names
    ]
    hosts.check_same(
        describe_run(config, class_names)
        | {"step": stored.step}
        | {"evaluations": {e.name: len(e.split) for e in evaluations}}
    )
    results = [e.run(model, params, mesh, stored.step) for e in evaluations]
    if source.workdir is not None:
        return results
    # Results away from a run say of what they are.
    return [
        dataclasses.replace(r, protocol=r.protocol | {"model": stored.name})
        for r in results
    ]
