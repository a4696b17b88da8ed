"""Fine-tuning a trained model on a folder of own clips.

    python -m sparse_tube_vit.prepare video_folder --name dances --videos DIR \
        --data_dir data
    python -m sparse_tube_vit.train --config configs/finetune.py:clips=dances \
        --workdir DIR --config.init.weights=RUN

RUN is a work directory; the model here must have its sizes and tubes. Arguments,
separated by commas:

    clips=NAME      the prepared data set video_folder/NAME
    variant=B       or L, H, S, Ti
    trained=all     or head: pooling and head alone; or a number of last layers, 4 or 8
    smoke           a minute on a CPU on the embedded data set

Nothing has been measured with this code.
"""

from sparse_tube_vit.config import (
    arguments,
    default_config,
    evaluation,
    smoke,
    stream,
)
from sparse_tube_vit.variants import MANY_LAYERS, OPTIMIZERS, VARIANTS


def get_config(argument: str = ""):
    args = arguments(
        argument,
        clips="clips",
        variant=("B", "L", "H", "S", "Ti"),
        trained=("all", "head", "4", "8"),
        smoke=False,
    )
    config = default_config()
    config.total_steps = 2_000
    config.clip.update(frames=64, fps=15.0, size=224)
    config.model.update(
        **VARIANTS[args.variant],
        **MANY_LAYERS[args.variant],
        tubes="main",
        dtype="bfloat16",
    )
    config.init.weights = f"runs/kinetics600_{args.variant}"
    config.optimizer.update(OPTIMIZERS[args.variant], warmup_steps=200, ema_decay=0.99)
    if args.trained != "all":
        last = 0 if args.trained == "head" else int(args.trained)
        config.optimizer.frozen_layers = config.model.depth - last
    videos = {"kind": "video", "dataset": f"video_folder/{args.clips}", "head": "clips"}
    config.streams.video = stream(
        **videos, batch_size=16, randaugment_layers=2, label_smoothing=0.1
    )
    config.evaluations.video = evaluation(
        **videos, batch_size=4, temporal_views=4, spatial_views=3
    )
    config.evaluate_every_steps = 500
    return smoke(config) if args.smoke else config
