"""Image ViTs that other libraries trained: reading their weights.

`read` takes a file or a folder as the Hugging Face Hub has it. `families` is the table
of what it knows: names of the arrays, options of the models, normalization of inputs.
"""

from sparse_tube_vit.checkpoints.image_vits.files import (
    UnreadableWeights,
    holds_image_vit,
    read_arrays,
    refuse_normalization,
)
from sparse_tube_vit.checkpoints.image_vits.reading import (
    ImageViT,
    UnsupportedViT,
    read,
)

__all__ = [
    "ImageViT",
    "UnreadableWeights",
    "UnsupportedViT",
    "holds_image_vit",
    "read",
    "read_arrays",
    "refuse_normalization",
]
