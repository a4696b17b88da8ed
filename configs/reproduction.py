"""A row of one of the paper's tables, at full size or shrunk to minutes of a CPU.

    ./launch/reproduce.sh 7b --tasks moving_shapes      # all rows and seeds of a table
    ./launch/reproduce.sh --full 7b                     # its commands at full size

    sparse-tube-vit train --workdir DIR \
        --config configs/reproduction.py:table=7b,row=4,task=moving_shapes,seed=0

Rows are listed in sparse_tube_vit/reproduction/tables.py, results in
docs/reproduction.md. Arguments, after a colon and separated by commas:

    table=7b, row=4     the table and its row
    seed=0              seed of parameters, examples and augmentation
    task=               kinetics600: full size, by the settings of
                        configs/kinetics.py; of the others a run takes minutes:
        moving_shapes       the embedded data, 24 classes of shape and motion
        ucf101              videos of data set ucf101/split1_small, images of
                            image_folder/tiny_imagenet, from scratch
        ucf101_directions   the same clips forwards and backwards, as two classes each,
                            for table=directions
        ucf101_image_vit    ucf101/split1, for rows that start from an image ViT of
                            size S

Rows that start from another row's model, or from an image ViT, need
--config.init.weights, which `reproduce.sh` sets.
"""

import dataclasses
import math

from sparse_tube_vit.checkpoints.scaling import scale_config
from sparse_tube_vit.config import (
    InvalidConfig,
    arguments,
    default_config,
    evaluation,
    leave_open,
    set_key,
    stream,
)
from sparse_tube_vit.models.tubes import Tube, count_tokens
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS, make_tubes
from sparse_tube_vit.reproduction.tables import PAPER, PATCH, evaluations_of
from sparse_tube_vit.training import recipe

#: What each small task has in place of the full size. Clips have 16 frames for 64, at
#: half the rate; kernels and strides half the frames. Of strides, those above 16 pixels
#: shrink by `stride`.
SMALL = {
    "moving_shapes": {
        "videos": ("moving_shapes/videos", "motions", 16),
        "images": ("moving_shapes/images", "shapes", 32),
        "clip": {"frames": 16, "fps": 8.0, "size": 64},
        "model": {"depth": 4, "width": 128, "mlp_dim": 512, "heads": 2},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.01, "ema_decay": 0.99},
        "stream": {"crop_area": (0.8, 1.0), "flip": False},
        "views": {"temporal_views": 2, "spatial_views": 1},
        "image_split": "test",
        "steps": 1200,
        "stride": 1 / 2,
        # Strides of so few pixels make other numbers of tokens.
        "evaluations": {
            "tokens_768": {"stride_scale": 0.93},
            "tokens_1024": {"stride_scale": 0.9},
        },
    },
    "ucf101": {
        "videos": ("ucf101/split1_small", "ucf101", 16),
        "images": ("image_folder/tiny_imagenet", "tiny_imagenet", 32),
        "clip": {"frames": 16, "fps": 8.0, "size": 64},
        "model": {"depth": 4, "width": 192, "mlp_dim": 768, "heads": 3},
        "optimizer": {"learning_rate": 5e-4, "weight_decay": 0.3, "ema_decay": 0.99},
        "stream": {"crop_area": (0.35, 1.0), "flip": True, "color_jitter": 0.4},
        "views": {"temporal_views": 2, "spatial_views": 3},
        "image_split": "val",
        "steps": 2000,
        "stride": 3 / 4,
        "evaluations": {
            "tokens_768": {"stride_scale": 0.87},
            "tokens_1024": {"stride_scale": 0.78},
        },
    },
}
SMALL["ucf101_directions"] = SMALL["ucf101"] | {
    "videos": ("video_folder/ucf101_directions_small", "ucf101_directions", 16)
}
SMALL["ucf101_image_vit"] = SMALL["ucf101"] | {
    "videos": ("ucf101/split1", "ucf101", 16),
    "clip": {"frames": 16, "fps": 8.0, "size": 84},
    "optimizer": SMALL["ucf101"]["optimizer"] | {"learning_rate": 1e-3},
    "big": {**VARIANTS["S"], "gelu": "erf"},
    "big_images": ("image_folder/tiny_imagenet", "tiny_imagenet", 8),
    "steps": 1200,
    "big_steps": 120,
    "created_steps": 240,
    "stride": 1 / 2,
}


def get_config(argument: str = ""):
    args = arguments(
        argument,
        table=tuple(PAPER),
        row="",
        task=("kinetics600", *SMALL),
        seed="0",
    )
    table = PAPER[args.table]
    row = table.row(args.row or table.rows[0].name)
    small = SMALL.get(args.task)
    if small and args.task not in table.tasks:
        raise InvalidConfig(
            f"Table {args.table} is not run on {args.task}, but on "
            f"{', '.join(table.tasks)}."
        )

    config = default_config()
    if not args.seed.isdecimal():
        raise InvalidConfig(f"seed={args.seed} is no number of 0 or more.")
    config.seed = int(args.seed)
    large = (table.big if row.big else table.variant) in ("L", "H")
    created = row.big and row.after
    config.total_steps = 50_000 if created else 300_000 * row.steps
    config.evaluate_every_steps = 10_000 if created else 50_000
    config.clip.update(frames=64, fps=15.0, size=224)
    config.model.update(
        **VARIANTS[table.variant],
        tubes=row.tubes,
        dropout=0.0,
        stochastic_depth=0.0,
        dtype="bfloat16",
        scan=large,
        remat="dots" if large else "none",
    )
    config.optimizer.update(
        learning_rate=1e-5 if large else 5e-5,  # B's is too high for them (table 10)
        warmup_steps=2_000 if created else 10_000,
        weight_decay=1e-5 if large else 1e-3,
        beta1=0.9,
        beta2=0.999,
        clip_norm=1.0,
    )
    settings = {
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "crop_area": (0.3, 1.0),
        "flip": True,
        "color_jitter": 0.0,
        "randaugment_layers": 2,
        "randaugment_magnitude": 10.0,
    }
    videos = ("kinetics600", "kinetics600", 256)
    images = ("imagenet2012", "imagenet2012", 256)
    big, patch = VARIANTS.get(table.big), 14 if table.big == "H" else 16
    if small:
        settings |= {"randaugment_layers": 0} | small["stream"]
        videos, images = small["videos"], small["big_images" if row.big else "images"]
        big, patch = small.get("big"), 14
        _shrink(config, small, row)

    scale = row.stride_scale
    tubes = [tube.restride(scale) for tube in make_tubes(config.model.tubes)]
    if row.as_many_tokens:
        main = [
            _shrink_tube(tube, small) if small else tube for tube in TUBE_SETS["main"]
        ]
        tubes = [_with_tokens_of(main, *tubes, config.clip)]
    config.model.tubes = tuple(tube.to_dict() for tube in tubes)
    if created:
        _scale_up(config, row, big, patch, keep_positions=bool(small))
    elif row.big:
        _start_from_image_vit(config, big, patch)
    if small and row.big:
        _take_recipe(config, row)
    if row.after:  # training fails on it where --config.init.weights is not set
        config.init.weights = f"MODEL_OF_ROW_{row.after}"
    for key, value in row.changes.items():
        set_key(config, key, value)

    _add_streams(config, row, settings, videos, images)
    _add_evaluations(config, args.table, row, args.task, videos, images)
    return config


def _shrink(config, small, row):
    """Shrinks clips, tubes and model to those of a small task."""
    config.clip.update(small["clip"])
    config.model.update(small["model"], dtype="float32", scan=False, remat="none")
    config.model.tubes = tuple(
        _shrink_tube(tube, small).to_dict() for tube in make_tubes(config.model.tubes)
    )
    config.optimizer.update(small["optimizer"], beta2=0.99)
    created = "created_steps" if row.after else "big_steps"
    config.total_steps = small[created if row.big else "steps"] * row.steps
    config.optimizer.warmup_steps = config.total_steps // 10
    config.log_every_steps = config.total_steps // 20
    config.evaluate_every_steps = 0
    config.checkpoint.update(every_steps=config.total_steps // 2, keep=1)


def _shrink_tube(tube, small):
    """Returns the tube with half the frames, and wide strides scaled.

    Where space-to-depth would then read past the frame, strides are shorter still.
    """
    clip = small["clip"]
    size = clip["frames"], clip["size"], clip["size"]

    def frames(n, least=1):
        return max(round(n / 2), least)

    def pixels(n):
        return round(n * small["stride"])

    several = tube.kernel[0] > 1
    kernel = frames(tube.kernel[0], 2 if several else 1)
    dense = several and tube.stride[0] == tube.kernel[0]
    stride = [kernel if dense else frames(tube.stride[0])]
    stride += [pixels(s) if s > 16 else s for s in tube.stride[1:]]
    tube = dataclasses.replace(
        tube,
        kernel=(kernel, *tube.kernel[1:]),
        stride=tuple(stride),
        offset=(tube.offset[0] // 2, *map(pixels, tube.offset[1:])),
    )
    for axis in (1, 2):
        while tube.past(size)[axis]:
            stride[axis] -= tube.space_to_depth[axis]
            tube = dataclasses.replace(tube, stride=tuple(stride))
    return tube


def _with_tokens_of(tubes, image, clip):
    """Returns the image tube on as many frames as make about the tokens of tubes."""
    size = (clip.frames, clip.size, clip.size)
    wanted = count_tokens(tubes, size)
    strides = [(t, *image.stride[1:]) for t in range(1, clip.frames + 1)]
    return min(
        (dataclasses.replace(image, stride=stride) for stride in strides),
        key=lambda tube: abs(count_tokens([tube], size) - wanted),
    )


def _scale_up(config, row, big, patch, keep_positions):
    """Turns the small model's config into the created one's (paper 3.6).

    In the few steps of a small task, a ViT without its own positions hardly learns.
    """
    patches = Tube(kernel=(1, patch, patch), stride=(1, patch, patch))
    scale_config(config, big, patches, keep_positions=keep_positions)
    depth, trained = config.model.depth, row.trained
    if trained is not None:
        trained = math.ceil(trained * depth - 1e-6)
        config.model.gate_after = depth - trained if row.gate else None
    config.optimizer.trained_layers = trained


def _start_from_image_vit(config, big, patch):
    """Turns the config into that of an image ViT with tubes."""
    config.init.weights = "vit_b.npz" if patch == 16 else "hf://facebook/dinov2-small"
    config.model.update(big, pooling="attention")
    config.model.tubes = tuple(
        tube
        | {"kernel": (1, patch, patch), "stride": (tube["stride"][0], patch, patch)}
        if tube["kernel"][0] == 1
        else tube
        for tube in config.model.tubes
    )


def _take_recipe(config, row):
    """Trains an image ViT as configs/finetune.py does: few steps do not spoil it."""
    steps, warmup = config.total_steps, config.optimizer.warmup_steps
    config.optimizer.weight_decay = 0.05
    given = default_config()
    leave_open(given.model, ["positions", "tubes"])
    leave_open(given.init, ["inflate", "positions"])
    keys = ["optimizer.trunk_rate", "optimizer.layer_decay"]
    # Created models have trained tubes and positions of their own, and a gate, which
    # would have to wait.
    if not row.after:
        config.optimizer.head_steps = recipe.head_steps(steps, warmup)
        keys += ["model.positions", "model.position_gain", "init.positions"]
        keys += ["init.inflate", "optimizer.video_tubes_rate"]
    values = recipe.from_image_vit(given, PATCH, trained=None)
    for key in keys:
        set_key(config, key, values[key])


def _add_streams(config, row, settings, videos, images):
    for kind, (dataset, head, batch) in (("video", videos), ("image", images)):
        if row.streams in ("joint", kind):
            source = {"kind": kind, "dataset": dataset, "head": head}
            config.streams[kind] = stream(**source, batch_size=batch, **settings)


def _add_evaluations(config, table, row, task, videos, images):
    """Adds accuracy of videos and images, and what other tables measure of this run."""
    views, own = {"temporal_views": 4, "spatial_views": 3}, {}
    splits, batches = ("validation", "validation"), (256, 1024)
    if task in SMALL:
        views, own = SMALL[task]["views"], SMALL[task].get("evaluations", {})
        splits, batches = ("test", SMALL[task]["image_split"]), (16, 50)
    for kind, (dataset, head, _), split, batch in zip(
        ("video", "image"), (videos, images), splits, batches, strict=True
    ):
        if row.streams not in ("joint", kind):
            continue
        keys = {"kind": kind, "dataset": dataset, "head": head}
        keys |= {"split": split, "batch_size": batch}
        if kind == "video":
            others = {"video": {}} | evaluations_of(table, row, task)
            for name, changes in others.items():
                changes = changes | own.get(name, {})
                config.evaluations[name] = evaluation(**keys | views | changes)
        else:
            config.evaluations[kind] = evaluation(**keys)
