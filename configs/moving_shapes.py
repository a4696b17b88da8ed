"""Joint training on the embedded data: shapes in images, moving shapes in videos.

    sparse-tube-vit train --config configs/moving_shapes.py --workdir DIR

Measured on two CPU cores: 3 to 6 minutes, Top-1 94.4% on videos (2x1 views), 95.0% on
images.

Four tubes like the paper's, for clips of 64x64 pixels. The image tube reads one frame
of a clip, so that motion can only be seen through the other three. Arguments, after a
colon and separated by commas:

    tubes=image     the image tube alone
    streams=video   the video stream alone (or image)
"""

from sparse_tube_vit.config import arguments, default_config, evaluation, stream

TUBES = (
    {"kernel": (8, 8, 8), "stride": (8, 16, 16)},
    {"kernel": (16, 4, 4), "stride": (16, 16, 16), "offset": (0, 4, 4)},
    {"kernel": (4, 12, 12), "stride": (8, 16, 16), "offset": (0, 2, 2)},
    {"kernel": (1, 16, 16), "stride": (16, 16, 16)},
)


def get_config(argument: str = ""):
    args = arguments(
        argument, tubes=("all", "image"), streams=("joint", "video", "image")
    )
    config = default_config()
    config.total_steps = 700
    config.clip.update(frames=16, fps=8.0, size=64)
    config.model.update(depth=4, width=128, mlp_dim=512, heads=2, dropout=0.0)
    config.model.tubes = TUBES if args.tubes == "all" else TUBES[3:]
    config.optimizer.update(
        learning_rate=1e-3,
        warmup_steps=100,
        weight_decay=0.01,
        beta1=0.9,
        beta2=0.999,
        clip_norm=1.0,
        ema_decay=0.99,
    )
    videos = {"kind": "video", "dataset": "moving_shapes/videos", "head": "motions"}
    images = {"kind": "image", "dataset": "moving_shapes/images", "head": "shapes"}
    recipe = {
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "crop_area": (0.8, 1.0),
        "flip": False,  # motions are left and right
        "color_jitter": 0.0,
        "randaugment_layers": 0,
    }
    if args.streams in ("joint", "video"):
        config.streams.video = stream(**videos, batch_size=32, **recipe)
        config.evaluations.video = evaluation(**videos, batch_size=32, temporal_views=2)
    if args.streams in ("joint", "image"):
        config.streams.image = stream(**images, batch_size=64, **recipe)
        config.evaluations.image = evaluation(**images, batch_size=64)
    config.checkpoint.every_steps = 350
    return config
