"""Models that `benchmark gpu` and `benchmark peers` measure."""

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping

from sparse_tube_vit.models.tubes import Tube

#: Outputs of the heads: Kinetics-400 and ImageNet.
CLASSES = {"videos": 400, "images": 1000}


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A model in one framework.

    Attributes:
        framework: "jax" or "torch".
        modules: Modules that its process imports before it measures.
        packages: Packages that have to be installed for it.
        source: Where they come from, if no package index has them.
        frames: Frames of a clip that it is made for.
        tubes: Our tubes, `model.tubes`; empty for other models.
        forward_flops: Of other models, FLOPs of a clip by (size of the encoder, frames,
            patches of 16x16 of a frame), without the head.
    """

    framework: str
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    source: str = ""
    frames: int = 32
    tubes: str = ""
    forward_flops: Callable[[Mapping[str, int], int, int], int] | None = None

    @property
    def steps(self) -> str:
        """Name of the module whose `make_steps` makes its steps."""
        return f"sparse_tube_vit.benchmark.{self.framework}_steps"


def _attention(tokens, width):
    """Returns FLOPs of projections, scores and weighted sums."""
    return 2 * tokens * 4 * width**2 + 4 * tokens**2 * width


def _encoder(sizes, tokens):
    mlp = 2 * tokens * 2 * sizes["width"] * sizes["mlp_dim"]
    return sizes["depth"] * (_attention(tokens, sizes["width"]) + mlp)


def _stem(sizes, pixels):
    return 2 * 3 * pixels * sizes["width"]


def _dense_stem(sizes, frames, patches):
    return _stem(sizes, frames * patches * 16**2)


def _videomae(sizes, frames, patches):
    tokens = frames // 2 * patches
    return _dense_stem(sizes, frames, patches) + _encoder(sizes, tokens)


def _vivit(sizes, frames, patches):
    """Returns FLOPs as of VideoMAE, with a class token."""
    tokens = frames // 2 * patches + 1
    return _dense_stem(sizes, frames, patches) + _encoder(sizes, tokens)


def _timesformer(sizes, frames, patches):
    """Returns FLOPs of attention over time, then in each frame with a class token."""
    width = sizes["width"]
    in_time = patches * (_attention(frames, width) + 2 * frames * width**2)
    in_frames = frames * _attention(patches + 1, width)
    mlp = 2 * (frames * patches + 1) * 2 * width * sizes["mlp_dim"]
    blocks = sizes["depth"] * (in_time + in_frames + mlp)
    return _dense_stem(sizes, frames, patches) + blocks


def _vit(sizes, frames, patches):
    """Returns FLOPs of a pass for every frame."""
    stem = _dense_stem(sizes, frames, patches)
    return stem + frames * _encoder(sizes, patches + 1)


#: Tubes of the public port.
PORT_TUBES = (
    Tube((8, 8, 8), (16, 32, 32)),
    Tube((12, 4, 4), (6, 32, 32), (4, 8, 8)),
    Tube((4, 12, 12), (16, 32, 32), (0, 16, 16)),
    Tube((1, 16, 16), (16, 16, 16)),
)


def _port(sizes, frames, patches):
    """Returns FLOPs with a class token, and pooling by a weight for each token."""
    side = 16 * math.isqrt(patches)
    windows = [math.prod(tube.grid((frames, side, side))) for tube in PORT_TUBES]
    volumes = [math.prod(tube.kernel) for tube in PORT_TUBES]
    pixels = sum(map(operator.mul, windows, volumes))
    tokens = sum(windows) + 1
    pooling = 2 * tokens * sizes["width"]
    return _stem(sizes, pixels) + _encoder(sizes, tokens) + pooling


def _transformers(name, frames, forward_flops):
    modules = (f"transformers.models.{name}.modeling_{name}",)
    packages = ("torch", "transformers")
    return Implementation(
        "torch", modules, packages, frames=frames, forward_flops=forward_flops
    )


#: All models, by name. "pytorch" is ours in PyTorch, "dense" our encoder with the
#: tokens of ViViT, "timm" a ViT on every frame, "port" github.com/daniel-code/TubeViT.
IMPLEMENTATIONS = {
    "ours": Implementation("jax", tubes="main"),
    "dense": Implementation("jax", tubes="dense_3d"),
    "pytorch": Implementation("torch", packages=("torch",), tubes="main"),
    "port": Implementation(
        "torch",
        ("tubevit.model",),
        ("torch", "tubevit"),
        source="git+https://github.com/daniel-code/TubeViT@0168f41",
        forward_flops=_port,
    ),
    "videomae": _transformers("videomae", 16, _videomae),
    "vivit": _transformers("vivit", 32, _vivit),
    "timesformer": _transformers("timesformer", 8, _timesformer),
    "timm": Implementation(
        "torch",
        ("timm.models.vision_transformer",),
        ("torch", "timm"),
        forward_flops=_vit,
    ),
}
