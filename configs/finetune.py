"""Fine-tuning a trained model or an image ViT on a folder of your clips or images.

    sparse-tube-vit train --config configs/finetune.py --workdir DIR \
        --config.data.folder=CLIPS --config.init.weights=WEIGHTS

CLIPS holds `<class>/<file>`, of which a fifth is held out for testing, or
`<split>/<class>/<file>` with the splits `train` and `test`. It is prepared below
`data_dir`. DIR/evaluations then holds the accuracy and the confusion matrix,
DIR/release the model for `load` and `predict`.

WEIGHTS is a TubeViT, that is a work directory, one of its checkpoints or a release:
clips, sizes and tubes are as there. Or it is an image ViT: sizes are as there, clips
have 16 frames at 8 fps and some 112 pixels a side; the ViT's patches read four frames
of a clip, three tubes of several frames, inflated from them, read more; its positions
are kept, and fixed ones added at a gain that starts at 0 and hardly grows in a short
run. For a third of the steps, or some 100, pooling and head train alone; then all does,
the ViT at 0.3 of their rate, times 0.75 for each block from the top. Settings chosen by
default are logged as command-line options. Arguments:

    all             trains everything
    last=4          trains pooling, head and the last 4 blocks
    head_only       trains pooling and head

With the latter two and an image ViT, its patches alone read a clip, at some 168 pixels.
After 20 steps the log predicts how long the run takes; on a CPU, also what is quicker,
if the run is new.
On a GPU: --config.clip.size=224 --config.clip.frames=32 --config.model.dtype=bfloat16

    --config.data.images=FOLDER

trains jointly with the images of FOLDER/<class>/<file>, with the head of the clips if
all these classes are among theirs. 16 of them are in a step:
--config.streams.images.batch_size=16

Clips are mirrored at random if those of WEIGHTS were. Where classes tell left from
right: --config.streams.clips.flip=False
"""

from sparse_tube_vit.config import (
    InvalidConfig,
    arguments,
    default_config,
    evaluation,
    leave_open,
    stream,
)


def get_config(argument: str = ""):
    trained = _trained_layers(argument)
    config = default_config()
    leave_open(config.clip, config.clip)
    leave_open(config.model, {*config.model} - {"attention", "remat", "scan"})
    leave_open(config.init, ["positions", "inflate"])
    leave_open(config.optimizer, ["learning_rate", "trunk_rate", "layer_decay"])
    leave_open(config.optimizer, ["warmup_steps", "head_steps"])
    leave_open(config.data, ["epochs"])
    leave_open(config, ["log_every_steps"])
    leave_open(config.checkpoint, ["every_steps"])
    config.optimizer.update(
        trained_layers=trained,
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
    images = {"kind": "image", "dataset": "", "head": "images"}
    config.streams.images = stream(
        **images, batch_size=16, crop_area=(0.6, 1.0), color_jitter=0.2
    )
    leave_open(config.streams.images, ["flip"])
    config.evaluations.images = evaluation(**images, batch_size=16)
    return config


def _trained_layers(argument):
    """Returns the number of last blocks that train; None for everything."""
    args = arguments(argument, all=False, last="", head_only=False)
    if args.all + bool(args.last) + args.head_only > 1:
        raise InvalidConfig(f"Give one of all, last=N and head_only, not {argument!r}.")
    if args.last and not (args.last.isdecimal() and int(args.last)):
        raise InvalidConfig(f"last={args.last}: give a number of blocks, as last=4.")
    return 0 if args.head_only else int(args.last) if args.last else None
