"""Something-Something V2, from a model of Kinetics-600 and ImageNet.

    sparse-tube-vit train --config configs/something_something_v2.py \
        --workdir DIR --config.init.weights=RUN --config.data_dir=DATA

RUN is the work directory of `configs/kinetics.py:classes=600,variant=L`, by default
runs/kinetics600_L. Arguments, separated by commas:

    variant=L          or B, H, S, Ti
    streams=joint      with ImageNet, by the same settings; or video: without
    smoke              two minutes on a CPU on the embedded data set

Clips are never flipped: classes tell left from right. The paper has 76.1 Top-1 and 95.2
Top-5 for L with 4x3 views. Nothing has been measured with this code. 256 clips and
256 images a step are for a TPU pod.
"""

from sparse_tube_vit.config import arguments, default_config, evaluation, smoke, stream
from sparse_tube_vit.models.variants import VARIANTS


def get_config(argument: str = ""):
    args = arguments(
        argument,
        variant=("L", "B", "H", "S", "Ti"),
        streams=("joint", "video"),
        smoke=False,
    )
    config = default_config()
    large = args.variant in ("L", "H")  # less weight decay (table 10)
    config.total_steps = 300_000
    config.clip.update(frames=32, fps=24.0, size=224)
    config.model.update(
        **VARIANTS[args.variant],
        tubes="main",
        dropout=0.3,
        stochastic_depth=0.0,
        dtype="bfloat16",
        scan=large,
        remat="dots" if large else "none",
    )
    config.init.weights = f"runs/kinetics600_{args.variant}"
    config.optimizer.update(
        learning_rate=2e-5,
        warmup_steps=10_000,
        weight_decay=1e-5 if large else 1e-3,
        beta1=0.9,
        beta2=0.999,
        clip_norm=1.0,
    )
    videos = {
        "kind": "video",
        "dataset": "something_something_v2",
        "head": "something_something_v2",
    }
    images = {"kind": "image", "dataset": "imagenet2012", "head": "imagenet2012"}
    recipe = {
        "batch_size": 256,
        "label_smoothing": 0.3,
        "mixup": 0.3,
        "crop_area": (0.3, 1.0),
        "flip": False,
        "color_jitter": 0.0,
        "randaugment_layers": 2,
        "randaugment_magnitude": 10.0,
    }
    config.streams.video = stream(**videos, **recipe)
    config.evaluations.video = evaluation(
        **videos, split="validation", batch_size=256, temporal_views=4, spatial_views=3
    )
    if args.streams == "joint":
        config.streams.image = stream(**images, **recipe)
        config.evaluations.image = evaluation(
            **images, split="validation", batch_size=1024
        )
    config.evaluate_every_steps = 50_000
    return smoke(config) if args.smoke else config
