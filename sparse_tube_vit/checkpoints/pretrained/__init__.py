"""Initial parameters from an image ViT's weights, another run, or a release.

Every array of the source and every parameter of the model is loaded, resized, new or
dropped; an error lists all others.
"""

from sparse_tube_vit.checkpoints.pretrained.loading import initial_params
from sparse_tube_vit.checkpoints.pretrained.matching import (
    Match,
    WeightsDoNotMatch,
    WeightsReport,
)

__all__ = ["Match", "WeightsDoNotMatch", "WeightsReport", "initial_params"]
