"""FLOPs of a model, by formula and as XLA counts them."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.models.tubes import Tube, count_tokens, tubes_for
from sparse_tube_vit.models.tubevit import TubeViT, init_params


def pixels_read(tubes: Sequence[Tube], clip: tuple[int, int, int]) -> np.ndarray:
    """Which pixels of a clip (T, H, W) any of the tubes reads: bool (T, H, W)."""
    read = np.zeros(clip, bool)
    for tube in tubes:
        for start in tube.windows(clip).reshape(-1, 3):
            t, h, w = (slice(s, s + k) for s, k in zip(start, tube.kernel, strict=True))
            read[t, h, w] = True
    return read


def forward_flops(
    model: TubeViT, clip: tuple[int, int, int], head: str
) -> dict[str, int]:
    """FLOPs of the matrix products of one clip's forward pass, by part of the model.

    A multiply-add is two. With N tokens of D channels, M hidden units, and windows of
    K = 3 kt kh kw inputs and d channels: a window 2 K d, a block 2 N (4 D^2 + 2 D M) +
    4 N^2 D, pooling by attention 2 (2 N + 2) D^2 + 4 N D.
    """
    n, d = count_tokens(model.tubes, clip), model.options.width
    stem = 0
    for i in tubes_for(model.tubes, clip[0]):
        tube = model.tubes[i]
        windows = math.prod(tube.grid(clip)) * tube.windows_per_token
        stem += 2 * windows * 3 * math.prod(tube.kernel) * tube.kernel_channels(d)
    pooling = 2 * (2 * n + 2) * d**2 + 4 * n * d
    n += model.pooling == "class_token"
    block = 2 * n * (4 * d**2 + 2 * d * model.options.mlp_dim) + 4 * n**2 * d
    return {
        "stem": stem,
        "encoder": model.options.layers * block,
        "pooling": pooling if model.pooling == "attention" else 0,
        "head": 2 * d * model.classes[head],
    }


def training_flops(config: ConfigDict, model: TubeViT, stream: ConfigDict) -> int:
    """FLOPs of the matrix products of training on one example of a stream.

    The gradients of a product are two more of it; below frozen layers there are none.
    """
    clip = model.clip if stream.kind == "video" else (1, *model.clip[1:])
    parts = forward_flops(model, clip, stream.head)
    trained = dict(parts)
    frozen = config.optimizer.frozen_layers
    if frozen is not None:
        layers = model.options.layers
        trained["stem"] = 0
        trained["encoder"] = parts["encoder"] * (layers - frozen) // layers
    return sum(parts.values()) + 2 * sum(trained.values())


def compiled_flops(model: TubeViT, clip: tuple[int, int, int], head: str) -> float:
    """FLOPs of one clip's forward pass as XLA counts them, of all operations.

    On the CPU: elsewhere XLA leaves matrix products to libraries, and does not count.
    Without a loop over layers, of which XLA counts one.
    """
    model = model.with_options(scan=False)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0), clip))
    x = jax.ShapeDtypeStruct((1, *clip, 3), np.uint8)
    forward = jax.jit(lambda params, x: model.apply({"params": params}, x, head))
    with jax.default_device(jax.devices("cpu")[0]):
        return forward.lower(params, x).cost_analysis()["flops"]
