"""ImageNet alone: the first stage of `configs/kinetics.py:streams=images_first`.

    python -m sparse_tube_vit.train --config configs/imagenet.py:variant=B \
        --workdir runs/imagenet_B --config.data_dir=DATA

Arguments: variant=B (or L, H, S, Ti); smoke, a minute on a CPU on the embedded data
set. The model has the tubes of the video model; images go through one of them, and the
others wait at their initial values. The settings are the paper's of joint training; it
gives none for images alone, and 78.1 Top-1 for B. Nothing has been measured with this
code.
"""

from sparse_tube_vit.config import arguments, default_config, evaluation, smoke, stream
from sparse_tube_vit.models.variants import MANY_LAYERS, OPTIMIZERS, VARIANTS


def get_config(argument: str = ""):
    args = arguments(argument, variant=("B", "L", "H", "S", "Ti"), smoke=False)
    config = default_config()
    config.total_steps = 300_000
    config.clip.update(frames=64, fps=15.0, size=224)
    config.model.update(
        **VARIANTS[args.variant],
        **MANY_LAYERS[args.variant],
        tubes="main",
        dtype="bfloat16",
    )
    config.optimizer.update(OPTIMIZERS[args.variant], warmup_steps=10_000)
    images = {"kind": "image", "dataset": "imagenet2012", "head": "imagenet2012"}
    config.streams.image = stream(**images, batch_size=256, randaugment_layers=2)
    config.evaluations.image = evaluation(**images, split="validation", batch_size=1024)
    config.evaluate_every_steps = 50_000
    return smoke(config) if args.smoke else config
