"""ImageNet alone: the first stage of `configs/kinetics.py:streams=images_first`.

    sparse-tube-vit train --config configs/imagenet.py:variant=B \
        --workdir runs/imagenet_B --config.data_dir=DATA

Arguments: variant=B (or L, H, S, Ti); smoke, two minutes on a CPU on the embedded data
set. The model has the tubes of the video model; images go through one of them, and the
others wait at their initial values. The settings are the paper's of joint training; it
gives none for images alone, and 78.1 Top-1 for B. Nothing has been measured with this
code.
"""

from sparse_tube_vit.config import arguments, default_config, evaluation, smoke, stream
from sparse_tube_vit.models.variants import VARIANTS


def get_config(argument: str = ""):
    args = arguments(argument, variant=("B", "L", "H", "S", "Ti"), smoke=False)
    config = default_config()
    large = args.variant in ("L", "H")  # B's rate is too high for them (table 10)
    config.total_steps = 300_000
    config.clip.update(frames=64, fps=15.0, size=224)
    config.model.update(
        **VARIANTS[args.variant],
        tubes="main",
        dropout=0.0,
        stochastic_depth=0.0,
        dtype="bfloat16",
        scan=large,
        remat="dots" if large else "none",
    )
    config.optimizer.update(
        learning_rate=1e-5 if large else 5e-5,
        warmup_steps=10_000,
        weight_decay=1e-5 if large else 1e-3,
        beta1=0.9,
        beta2=0.999,
        clip_norm=1.0,
    )
    recipe = {
        "batch_size": 256,
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "crop_area": (0.3, 1.0),
        "flip": True,
        "color_jitter": 0.0,
        "randaugment_layers": 2,
        "randaugment_magnitude": 10.0,
    }
    images = {"kind": "image", "dataset": "imagenet2012", "head": "imagenet2012"}
    config.streams.image = stream(**images, **recipe)
    config.evaluations.image = evaluation(**images, split="validation", batch_size=1024)
    config.evaluate_every_steps = 50_000
    return smoke(config) if args.smoke else config
