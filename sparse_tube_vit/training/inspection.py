"""Examples of a training step as the model gets them, to be looked at."""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.input.pipeline import training_batches
from sparse_tube_vit.models.losses import LOSSES
from sparse_tube_vit.training import finetuning
from sparse_tube_vit.training.batches import open_streams
from sparse_tube_vit.training.step import model_clips, model_input, step_keys


@dataclasses.dataclass(frozen=True)
class StepExample:
    """An example of a step, augmented and mixed.

    Attributes:
        video: (T, H, W, 3) uint8.
        target: The target in words, such as "0.62 goal, 0.38 dive".
        ids: Its id; with mixup the ids of both, with their weights.
        problem: Why its weight is 0; otherwise empty.
    """

    video: np.ndarray
    target: str
    ids: tuple[str, ...]
    problem: str = ""


def examples_of_step(
    config: ConfigDict, step: int
) -> Iterator[tuple[str, list[StepExample]]]:
    """Yields each stream's name and its examples in a step.

    Args:
        config: The config of a run; open keys are filled in as training does.
        step: The step, counted from 1 as in the log.

    Raises:
        TubeViTError: The named errors of config, datasets and input.
    """
    config = finetuning.complete(config)
    loader = config.loader.copy_and_resolve_references()
    loader.workers = 0  # one batch is not worth starting processes
    prepare_embedded((s.dataset for s in config.streams.values()), config.data_dir)
    for name, split in open_streams(config).items():
        stream = config.streams[name]
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


def _example(key, stream, batch, i, split) -> StepExample:
    # Only the example and its neighbour for mixup are converted: whole batches of
    # floats may not fit in the memory of the machine that draws them.
    pair = {k: batch[k][[i - 1, i]] for k in ("video", "label", "weight")}
    mixed = model_input(key, stream, pair, len(split.class_names))
    mixed |= {"video": model_clips(mixed)}
    mixed = {name: np.asarray(x[1]) for name, x in mixed.items()}
    video, target, weight = (mixed[name] for name in ("video", "target", "weight"))
    if video.dtype != np.uint8:
        video = ((video + 1) * 127.5).round().astype(np.uint8)
    which = [i, i - 1] if stream.mixup else [i]
    names = batch["id"][which].tolist()
    if stream.mixup:
        lam = float(mixed["lambda"])
        names = [f"{x:.2f} {n}" for x, n in zip((lam, 1 - lam), names, strict=True)]
    return StepExample(
        video=video,
        target=_target_text(target, stream, split.class_names),
        ids=tuple(names),
        problem="" if weight else "; ".join(filter(None, batch["problem"][which])),
    )


def _target_text(target, stream, class_names) -> str:
    """The classes whose target (C,) exceeds that of label smoothing."""
    least = stream.label_smoothing * LOSSES[stream.loss].smoothing_target(len(target))
    order = np.argsort(-target, kind="stable")
    words = [
        class_names[c] if target[c] == 1 else f"{target[c]:.2f} {class_names[c]}"
        for c in order[: np.sum(target > least + 1e-6)]
    ]
    return ", ".join(words) or "no class"
