"""Evaluates a model on data sets."""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.checkpoints.evaluations import tokens_in_words
from sparse_tube_vit.checkpoints.run import describe_run
from sparse_tube_vit.checkpoints.stored import Location
from sparse_tube_vit.config import VIEWS, ConfigDict, head_loss, validate
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.classes import check_classes
from sparse_tube_vit.distributed import cores, hosts, sharding
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.evaluation.results import (
    Accuracy,
    MeanAveragePrecision,
    Result,
)
from sparse_tube_vit.input import pipeline, workers
from sparse_tube_vit.input.examples import EvaluationExample
from sparse_tube_vit.log import log
from sparse_tube_vit.models.losses import check_loss
from sparse_tube_vit.models.scores import DIVERGED, NonFiniteScores, make_scores
from sparse_tube_vit.models.tubes import count_tokens
from sparse_tube_vit.models.tubevit import TubeViT, make_model


class UnknownEvaluation(TubeViTError, KeyError):
    """The run's config has no evaluation of that name."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


#: Bytes of decoded views that a host's share of an evaluation's batch may have.
SHARE_BYTES = 2**30


class Evaluator:
    """One evaluation of a config, with its data set opened and checked.

    Args:
        name: The name of the evaluation in `config.evaluations`.
        config: The config of the run.
        class_names: The class names of the evaluation's head.
        model: The model, with that head.
        mesh: The mesh over all devices.

    Raises:
        IndivisibleBatch: The mesh does not divide the batch.
        DatasetError: The named errors of `reading.open_split`.
        ClassNamesDiffer: The data set's classes are not those of the head.
        LossDoesNotFit: The data set is multi-label, the head's loss is not.
    """

    def __init__(
        self,
        name: str,
        config: ConfigDict,
        class_names: tuple[str, ...],
        model: TubeViT,
        mesh: Mesh,
    ):
        sharding.check_batch(
            config.evaluations[name].batch_size, mesh, f"evaluations.{name}"
        )
        self.name, self.clip, self.loader = name, config.clip, config.loader
        self.model, self.mesh = model, mesh
        self.source = source = config.evaluations[name]
        self.class_names = class_names
        self.split = reading.open_split(
            source.dataset, source.split, config.data_dir, source.kind
        )
        check_classes(source.head, class_names, self.split)
        self.loss = head_loss(config, source.head)
        where, split = f"evaluations.{name}", self.split
        check_loss(where, self.loss, split.name, split.multi_label)

    def run(
        self, params, step: int, before_batch: Callable[[], None] = lambda: None
    ) -> Result:
        """Scores every example once; every host gets the whole result.

        Args:
            params: The model's parameters, as global arrays.
            step: The step of the checkpoint, for the result.
            before_batch: Called before each batch; what it raises ends the evaluation.

        Raises:
            NonFiniteScores: The model's scores of an example are not finite.
        """
        scored, count, logged = [], 0, time.monotonic()
        with contextlib.closing(self._batches()) as batches:
            for batch in batches:
                before_batch()
                if time.monotonic() - logged > 10:
                    done = f"{count} of {len(self.split)} {self.source.kind}s"
                    log.info("%s: %s", self.name, done)
                    logged = time.monotonic()
                scored.append(self._score(params, batch, step))
                count += len(scored[-1]["index"])
        found = {key: np.concatenate([x[key] for x in scored]) for key in scored[0]}
        order = np.argsort(found["index"])
        found = {key: x[order] for key, x in found.items()}
        assert (found["index"] == np.arange(len(self.split))).all(), "one was left out"
        decoded = found["weight"] > 0
        result = MeanAveragePrecision if self.split.multi_label else Accuracy
        return result(
            self.protocol(step),
            self.class_names,
            found["label"].astype(np.int64),
            np.where(decoded[:, None], found["scores"], 0),
            tuple(self.split[i]["id"] for i in np.flatnonzero(~decoded)),
            found["distinct_views"].astype(np.int64),
            decoded,
        )

    def _batches(self):
        """Yields this host's share of every batch, in parts as for `to_devices`."""
        size, share = self._batch_size(), sharding.batch_share(self.mesh)
        if size < self.source.batch_size:
            what = f"{size} {self.source.kind}s at a time, for their views' memory"
            log.info("%s: %s", self.name, what)
        source = ConfigDict(dict(self.source, batch_size=size))
        loader = workers.evaluation_loader(
            self.split, source, self.clip, self.loader, cores.worker_cores(), share
        )
        with contextlib.closing(  # its workers, where this ends early
            pipeline.evaluation_batches(
                self.split, self.name, source, self.clip, loader, share
            )
        ) as batches:
            while batch := [*itertools.islice(batches, share.parts)]:
                yield batch

    def _batch_size(self):
        """Returns the examples of a batch, fewer than the config's of large views.

        256 videos in 4x3 views of 64x224x224 would take 28 GiB.
        """
        shape = EvaluationExample.of(self.clip, self.loader, self.source).shape
        least = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        most = sharding.batch_share(self.mesh).count * SHARE_BYTES // math.prod(shape)
        return min(self.source.batch_size, max(1, most // least) * least)

    def _score(self, params, batch, step):
        """Returns scores and the rest of `_PER_EXAMPLE` of a batch, without padding."""
        for part in batch:
            for x, problem in zip(part["id"], part["problem"], strict=True):
                if problem:
                    log.warning("%s: %s does not decode: %s", self.name, x, problem)
        keys = ("video", *_PER_EXAMPLE)
        arrays = [{key: part[key] for key in keys} for part in batch]
        arrays = sharding.to_devices(arrays, self.mesh)
        with jax.set_mesh(self.mesh):
            scores, rest = jax.device_get(self._program(params, **arrays))
        real = rest["index"] >= 0  # the last batch is padded
        found = {key: x[real] for key, x in (rest | {"scores": scores}).items()}
        wrong = (found["weight"] > 0) & ~np.isfinite(found["scores"]).all(1)
        if wrong.any():
            name = self.split[found["index"][wrong][0]]["id"]
            raise NonFiniteScores(
                f"{self.name}: the scores of {name} at step {step} are not finite. "
                f"{DIVERGED}"
            )
        return found

    @functools.cached_property
    def _program(self):
        """The jitted map from a batch to scores and its other arrays."""
        log.info("Compiling the evaluation %s ...", self.name)
        protocol, source = self.protocol(0), self.source
        if protocol["tokens"] != protocol["training_tokens"]:
            log.warning("%s has %s", self.name, tokens_in_words(protocol))
        model = self.model.restride(source.stride_scale)
        scores = make_scores(model, source.head, self.loss, source.combine_views)

        def score(params, video, **rest):
            return scores(params, video), rest

        return jax.jit(score, out_shardings=NamedSharding(self.mesh, P()))

    def protocol(self, step: int) -> dict:
        """Returns the protocol of a result of a checkpoint's step, as JSON types."""
        source, clip = self.source, self.clip
        protocol = {
            "evaluation": self.name,
            **{key: value for key, value in source.items() if key != "batch_size"},
        }
        if source.kind == "video":
            frames, rate = clip.frames, {"fps": clip.fps}
        else:
            frames, rate = 1, {}
            for key in VIEWS:
                del protocol[key]
        size = (frames, clip.size, clip.size)
        tubes = self.model.restride(source.stride_scale).tubes
        return protocol | {
            "tokens": count_tokens(tubes, size),
            "training_tokens": count_tokens(self.model.tubes, size),
            "frames": frames,
            **rate,
            "size": clip.size,
            "step": step,
        }


# Arrays of a batch that come back from the devices with the scores.
_PER_EXAMPLE = ("label", "weight", "index", "distinct_views")


def prepare(
    config: ConfigDict, class_names: dict, model: TubeViT, mesh: Mesh
) -> list[Evaluator]:
    """Returns the evaluators of a config, data sets opened and classes checked."""
    return [
        Evaluator(name, config, tuple(class_names[source.head]), model, mesh)
        for name, source in config.evaluations.items()
    ]


def evaluate(config: ConfigDict, source: Location, names=None) -> Iterator[Result]:
    """Evaluates a stored model by the evaluations of a config.

    Args:
        config: The model's config, whose evaluations, mesh and data_dir may differ.
        source: The model. If it is not in a work directory, the protocol of every
            result names it under "model".
        names: Evaluations to run; None for all.

    Returns:
        An iterator over results: each evaluation runs when its result is asked for.

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
    config = config.copy_and_resolve_references()
    for name in {*config.evaluations} - {*(names or config.evaluations)}:
        del config.evaluations[name]  # its data set is not needed
    evaluations = prepare(config, class_names, model, mesh)
    hosts.check_same(
        describe_run(config, class_names) | {"step": stored.step},
        {f"evaluations.{e.name}": e.split for e in evaluations},
    )

    def run(evaluation):
        result = evaluation.run(params, stored.step)
        if source.workdir is not None:
            return result
        # Without a work directory around it, a result names its model.
        named = result.protocol | {"model": stored.name}
        return dataclasses.replace(result, protocol=named)

    return map(run, evaluations)
