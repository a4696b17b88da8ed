"""Fine-tuning a trained model on a folder of own clips or images.

    sparse-tube-vit train --config configs/finetune.py --workdir DIR \
        --config.data.folder=CLIPS --config.init.weights=MODEL

CLIPS holds `<class>/<file>`, of which a fifth is held out for testing, or
`<split>/<class>/<file>` with the splits `train` and `test`. It is prepared below
`data_dir`. MODEL is a work directory, one of its checkpoints or a release: clips, sizes
and tubes are as there, unless they are set. DIR/evaluations then holds the accuracy and
the confusion, DIR/release the model for `load` and `predict`.

Clips are mirrored at random if those of MODEL were. Where classes tell left from right:
--config.streams.clips.flip=False
"""

from sparse_tube_vit.config import (
    arguments,
    default_config,
    evaluation,
    leave_open,
    stream,
)


def get_config(argument: str = ""):
    arguments(argument)
    config = default_config()
    leave_open(config.clip, config.clip)
    leave_open(config.model, {*config.model} - {"attention", "remat", "scan"})
    leave_open(config.optimizer, ["warmup_steps"])
    leave_open(config, ["log_every_steps"])
    config.optimizer.update(
        learning_rate=3e-4,
        weight_decay=0.05,
        beta1=0.9,
        beta2=0.999,
        clip_norm=1.0,
        ema_decay=0.99,
    )
    config.checkpoint.release = True
    clips = {"kind": "video", "dataset": "", "head": "clips"}
    config.streams.clips = stream(
        **clips,
        batch_size=16,
        label_smoothing=0.0,
        mixup=0.2,
        crop_area=(0.35, 1.0),
        color_jitter=0.4,
        randaugment_layers=0,
    )
    leave_open(config.streams.clips, ["flip"])
    config.evaluations.clips = evaluation(
        **clips, batch_size=8, temporal_views=4, spatial_views=3
    )
    return config
