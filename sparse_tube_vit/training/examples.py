"""What the model gets in a step, example by example: for people to look at."""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from sparse_tube_vit.config import ConfigDict, validate
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.input.pipeline import training_batches
from sparse_tube_vit.models.losses import LOSSES, check_loss
from sparse_tube_vit.training.step import model_clips, model_input, step_keys


@dataclasses.dataclass(frozen=True)
class Example:
    """An example as the model gets it.

    Attributes:
      video: (T, H, W, 3) uint8.
      target: what it counts as, such as "0.62 goal, 0.38 dive".
      names: its id; with mixup both, with their shares.
      problem: why its weight is 0; otherwise empty.
    """

    video: np.ndarray
    target: str
    names: tuple[str, ...]
    problem: str = ""


def examples_of_step(
    config: ConfigDict, step: int
) -> Iterator[tuple[str, list[Example]]]:
    """What the model gets in a step, stream by stream: (name, examples).

    Args:
      config: of a run.
      step: counted from 1, as a run's log does.

    Raises: the named errors of config, datasets and input.
    """
    validate(config)
    loader = config.loader.copy_and_resolve_references()
    loader.workers = 0  # one batch is not worth starting processes
    prepare_embedded(config)
    splits = {}
    for name, stream in config.streams.items():
        split = splits[name] = reading.open_split(
            stream.dataset, stream.split, config.data_dir, stream.kind
        )
        check_loss(f"streams.{name}", stream.loss, split.name, split.multi_label)
    for name, stream in config.streams.items():
        split = splits[name]
        batches = training_batches(
            split, name, stream, config.clip, loader, config.seed, start_step=step - 1
        )
        with contextlib.closing(batches):
            batch = next(batches)
        key = step_keys(config, step - 1)[1][name]
        yield (
            name,
            [_example(key, stream, batch, i, split) for i in range(stream.batch_size)],
        )


def _example(key, stream, batch, i, split) -> Example:
    # Of mixup it takes the example and its neighbour alone: whole batches of floats may
    # not fit where pictures are looked at.
    pair = {k: batch[k][[i - 1, i]] for k in ("video", "label", "weight")}
    seen = model_input(key, stream, pair, len(split.class_names))
    seen = {
        key: np.asarray(x[1])
        for key, x in (seen | {"video": model_clips(seen)}).items()
    }
    video, target, weight = (seen[key] for key in ("video", "target", "weight"))
    if video.dtype != np.uint8:
        video = ((video + 1) * 127.5).round().astype(np.uint8)
    which = [i, i - 1] if stream.mixup else [i]
    names = batch["id"][which].tolist()
    if stream.mixup:
        share = float(seen["lambda"])
        names = [f"{s:.2f} {n}" for s, n in zip((share, 1 - share), names, strict=True)]
    return Example(
        video=video,
        target=_say(target, stream, split.class_names),
        names=tuple(names),
        problem="" if weight else "; ".join(filter(None, batch["problem"][which])),
    )


def _say(target, stream, class_names) -> str:
    """The classes that a target (C,) says more of than nothing."""
    nothing = stream.label_smoothing * LOSSES[stream.loss].uninformed(len(target))
    order = np.argsort(-target, kind="stable")
    said = [
        class_names[c] if target[c] == 1 else f"{target[c]:.2f} {class_names[c]}"
        for c in order[: np.sum(target > nothing + 1e-6)]
    ]
    return ", ".join(said) or "no class"
