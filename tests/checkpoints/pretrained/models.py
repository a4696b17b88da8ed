"""Configs of small models whose initial parameters are loaded."""

from pathlib import Path

from sparse_tube_vit.config import default_config

GOLDEN = Path(__file__).parents[2] / "golden"
VIT = {"depth": 2, "width": 24, "mlp_dim": 48, "heads": 2}


def image_tube(patch):
    size = (1, patch, patch)
    return {"kernel": size, "stride": size}


def video_config(file="timm.safetensors", **init):
    """A TubeViT as in a run: several tubes, fixed positions, attention pooling."""
    config = default_config()
    config.total_steps = 3
    config.clip.update(frames=8, size=48)
    config.model.update(VIT, gelu="erf", new_layers=1, gate_after=1)
    config.model.tubes = (
        {"kernel": (4, 8, 8), "stride": (4, 16, 16)},
        {"kernel": (3, 16, 16), "stride": (4, 16, 16)},
        image_tube(16),
    )
    config.init.update({"weights": str(GOLDEN / file), **init})
    return config
