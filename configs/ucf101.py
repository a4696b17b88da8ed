"""UCF101 jointly with images, from scratch, small enough for a laptop.

    sparse-tube-vit prepare ucf101 --videos DIR --annotations DIR \
        --data_dir data
    sparse-tube-vit prepare image_folder --name tiny_imagenet --images DIR \
        --data_dir data
    sparse-tube-vit train --config configs/ucf101.py --workdir DIR

Measured with 10 classes of UCF101 (split 1) and 50 of Tiny-ImageNet on two CPU cores:
30 minutes, Top-1 46.2% with 2x3 views.

Clips of 32 frames at 12.5 frames per second and 96x96 pixels. Arguments, after a colon
and separated by commas:

    split=1         the official split, 1 to 3
    streams=video   the video stream alone
"""

from sparse_tube_vit.config import arguments, default_config, evaluation, stream


def get_config(argument: str = ""):
    args = arguments(argument, split=("1", "2", "3"), streams=("joint", "video"))
    config = default_config()
    config.total_steps = 3000
    config.clip.update(frames=32, fps=12.5, size=96)
    config.model.update(depth=4, width=192, mlp_dim=768, heads=3, dropout=0.0)
    config.model.tubes = (
        {"kernel": (8, 8, 8), "stride": (8, 24, 24), "offset": (0, 8, 8)},
        {"kernel": (16, 4, 4), "stride": (16, 24, 24), "offset": (0, 10, 10)},
        {"kernel": (4, 12, 12), "stride": (16, 24, 24), "offset": (0, 6, 6)},
        {"kernel": (1, 16, 16), "stride": (32, 16, 16)},
    )
    config.optimizer.update(
        learning_rate=5e-4,
        warmup_steps=300,
        weight_decay=0.3,
        beta1=0.9,
        beta2=0.99,
        clip_norm=1.0,
        ema_decay=0.998,
    )
    videos = {"kind": "video", "dataset": f"ucf101/split{args.split}", "head": "ucf101"}
    images = {
        "kind": "image",
        "dataset": "image_folder/tiny_imagenet",
        "head": "tiny_imagenet",
    }
    recipe = {"label_smoothing": 0.0, "flip": True, "randaugment_layers": 0}
    # 528 clips are memorized without strong augmentation; the images are not.
    config.streams.video = stream(
        **videos,
        **recipe,
        batch_size=16,
        mixup=0.2,
        crop_area=(0.35, 1.0),
        color_jitter=0.4,
    )
    config.evaluations.video = evaluation(
        **videos, batch_size=4, temporal_views=2, spatial_views=3
    )
    if args.streams == "joint":
        config.streams.image = stream(
            **images,
            **recipe,
            batch_size=32,
            mixup=0.0,
            crop_area=(0.6, 1.0),
            color_jitter=0.2,
        )
        config.evaluations.image = evaluation(**images, split="val", batch_size=50)
    config.evaluate_every_steps = 1000
    return config
