"""Defaults of fine-tuning, by the kind of weights and the layers that train.

`finetuning.complete` sets a config's open keys to these. They suit some ten classes of
some fifty clips, and two CPU cores.
"""

from collections.abc import Iterable, Sequence

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.models.tubes import Tube

#: Keys of the config that a recipe sets, beside the sections `clip` and `model`.
KEYS = (
    "optimizer.learning_rate",
    "optimizer.layer_decay",
    "optimizer.trunk_rate",
    "optimizer.video_tubes_rate",
    "optimizer.head_steps",
    "init.positions",
    "init.inflate",
    "data.epochs",
)

#: Clips of an image ViT: frames, at frames per second.
FRAMES, FPS = 16, 8.0

#: Approximate sides in pixels, where everything trains and where layers are frozen: a
#: step of the last 4 of 12 blocks takes as many FLOPs at 168 as one of all at 112.
PIXELS, PIXELS_FROZEN = 112, 168


def from_run(trained: int | None, learned: bool = False) -> dict[str, object]:
    """Returns the values of `KEYS` for weights of a run or a release.

    Args:
        trained: Number of last blocks that train; None: everything.
        learned: Whether both it and the model have learned positions.
    """
    return {
        "optimizer.learning_rate": 3e-3 if trained == 0 else 3e-4,
        "optimizer.layer_decay": 1.0,
        "optimizer.trunk_rate": 1.0,
        "optimizer.head_steps": 0,
        "init.positions": "keep" if learned else "drop",
        "init.inflate": "none",
        "data.epochs": 30,
    }


def from_image_vit(
    config: ConfigDict, patch: Sequence[int], trained: int | None
) -> dict[str, object]:
    """Returns values of `clip`, `model` and `KEYS` for weights of an image ViT.

    `optimizer.head_steps` is None where it depends on the steps of the run, see below.
    Where layers are frozen, the tube of the ViT's patches reads the clip alone: what is
    frozen has to come from the weights. Beside patches of several frames, images have a
    tube of their own.

    Args:
        config: The config, whose set keys influence the others.
        patch: Size of the ViT's patches as a tube's kernel, (frames, pixels, pixels).
        trained: Number of last blocks that train; None: everything.
    """
    everything = trained is None
    pixels = PIXELS if everything else PIXELS_FROZEN
    frames = config.clip.frames or FRAMES
    values = {
        "clip.frames": frames,
        "clip.fps": FPS,
        "clip.size": patch[1] * max(round(pixels / patch[1]), 4),
        "model.tubes": video_tubes(frames, patch) if everything else (),
        "model.pooling": "attention",
        # Stochastic depth harms a ViT that was trained without it.
        "model.stochastic_depth": 0.0,
        "optimizer.learning_rate": 1e-3,
        "optimizer.trunk_rate": 1.0 if trained == 0 else 0.3,
        "optimizer.layer_decay": 1.0 if trained == 0 else 0.75,
        "optimizer.head_steps": None if everything else 0,
        "init.positions": "drop",
        "data.epochs": 10,
    }
    values["model.tubes"] += (image_tube(frames, patch),)
    if patch[0] > 1 and any(s.kind == "image" for s in config.streams.values()):
        values["model.tubes"] += (image_tube(frames, (1, *patch[1:])),)
    if config.model.positions is None:
        dropped = config.init.positions == "drop"
        values["model.positions"] = "fixed" if dropped else "learned"
        # Fixed ones of amplitude 1 would swamp a ViT's tokens.
        gain = 0.02 if dropped else 0.0 if everything else None
        values["model.position_gain"] = gain
    if (config.model.positions or values["model.positions"]) == "learned":
        values["init.positions"] = "keep"
    ours = config.model.tubes is None
    values["init.inflate"] = "central_frame" if ours and everything else "none"
    if everything and patch[0] == 1:  # else the ViT's own would have this rate, too
        inflated = config.init.inflate or values["init.inflate"]
        # Inflated ones know something already.
        known = inflated in ("repeat", "central_frame")
        values["optimizer.video_tubes_rate"] = 0.05 if known else 0.3
    return values


def head_steps(total: int, warmup: int) -> int:
    """Returns the first steps in which pooling and head train alone.

    They are for image ViTs, which the gradient of a fresh head would spoil: a third of
    the run, or some hundred steps where that leaves half of it.

    Args:
        total: Steps of the run.
        warmup: Steps in which the rest warms up afterwards.
    """
    steps = max(total // 3, min(100, total // 2))
    return max(0, min(steps, total - warmup - 1))


def patch_of(tubes: Iterable[Tube]) -> tuple[int, int, int]:
    """Returns the kernel of the image ViT's patches: of the fewest frames, the largest.

    Args:
        tubes: A model's tubes. If they are not of a recipe here, the result is a guess.
    """
    kernels = [tube.kernel for tube in tubes]
    fewest = min(t for t, *_ in kernels)
    return max((k for k in kernels if k[0] == fewest), key=lambda k: k[1:])


def image_tube(frames: int, patch: Sequence[int]) -> dict:
    """Returns the tube of an image ViT's patches, on about four frames of a clip."""
    t, h, w = patch
    return {"kernel": (t, h, w), "stride": (max(frames // 4, t), h, w)}


def video_tubes(frames: int, patch: Sequence[int]) -> tuple[dict, ...]:
    """Returns the paper's three tubes of several frames, for shorter clips.

    Their strides are two patches, their windows in the middle of these.
    """
    _, h, w = patch
    tubes = []
    for t, size in ((8, 8), (16, 4), (4, 12)):
        t = min(t, frames)
        tubes.append(
            {
                "kernel": (t, size, size),
                "stride": (max(t, frames // 2), 2 * h, 2 * w),
                "offset": (0, max(h - size // 2, 0), max(w - size // 2, 0)),
            }
        )
    return tuple(tubes) if frames > 1 else ()
