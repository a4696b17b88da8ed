"""A joint run small enough for tests: the embedded data, in seconds on two cores."""

from sparse_tube_vit.config import default_config, evaluation, stream
from sparse_tube_vit.datasets.builders import moving_shapes

COUNTS = {
    "images": {"train": 24, "test": 12},
    "videos": {"train": 48, "test": 24},
    "crowds": {"train": 24, "test": 24},
}


def shrink_moving_shapes(monkeypatch):
    """Makes the embedded data set, where it is prepared from now on, a tiny one."""
    for kind, counts in COUNTS.items():
        monkeypatch.setitem(moving_shapes.COUNTS, kind, counts)


def tiny_config(data_dir):
    """Both streams, all tubes, and everything random that a run can have."""
    config = default_config()
    config.total_steps = 6
    config.data_dir = str(data_dir)
    config.clip.update(frames=4, fps=8.0, size=16)
    config.model.update(depth=1, width=24, mlp_dim=32, heads=2, dropout=0.1)
    config.model.tubes = (
        {"kernel": (4, 4, 4), "stride": (4, 8, 8)},
        {"kernel": (1, 8, 8), "stride": (4, 8, 8)},
    )
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9)
    videos = {"kind": "video", "dataset": "moving_shapes/videos", "head": "motions"}
    images = {"kind": "image", "dataset": "moving_shapes/images", "head": "shapes"}
    augment = {"color_jitter": 0.2, "randaugment_layers": 2}
    options = {"flip": False, "mixup": 0.2} | augment
    config.streams.video = stream(**videos, batch_size=8, **options)
    config.streams.image = stream(**images, batch_size=8, **options)
    config.evaluations.video = evaluation(
        **videos, batch_size=16, temporal_views=2, spatial_views=3
    )
    config.evaluations.image = evaluation(**images, batch_size=8)
    config.log_every_steps = 2
    config.checkpoint.update(every_steps=2, keep=2)
    return config


def tiny_multi_label_config(data_dir):
    """The same, with videos of several labels for the videos of one."""
    config = tiny_config(data_dir)
    config.total_steps = 3
    video, views = config.streams.video, config.evaluations.video
    for source in (video, views):
        source.update(dataset="moving_shapes/crowds", head="crowds")
    video.update(loss="sigmoid", label_smoothing=0.1)
    return config
