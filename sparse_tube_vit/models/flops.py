"""FLOPs of a model: by formula, and as XLA counts them."""

import math

import jax
import numpy as np

from sparse_tube_vit.config import ConfigDict, input_size
from sparse_tube_vit.distributed.mesh import traced_for_cpu
from sparse_tube_vit.models.tubes import count_tokens, tubes_for
from sparse_tube_vit.models.tubevit import TubeViT, init_params


def forward_flops(
    model: TubeViT, clip: tuple[int, int, int], head: str
) -> dict[str, int]:
    """Returns the FLOPs of one clip's forward pass by part of the model, by formula.

    Only matrix products count, a multiply-add as two. With N tokens of D channels, M
    hidden units, and windows of K = 3 kt kh kw inputs and d output channels: 2 K d for
    a window, 2 N (4 D^2 + 2 D M) + 4 N^2 D for a block, 2 (2 N + 2) D^2 + 4 N D for
    attention pooling, 4 D M for its MLP, 2 D C for a head of C classes. A gated MLP has
    3 D M in place of 2 D M.

    Args:
        model: The model.
        clip: (T, H, W) of the clip; T = 1 for an image.
        head: Name of the head.
    """
    o = model.options
    n, d = count_tokens(model.tubes, clip), o.width
    mlp = (3 if o.gated_mlp else 2) * d * o.mlp_dim
    stem = 0
    for i in tubes_for(model.tubes, clip[0]):
        tube = model.tubes[i]
        windows = math.prod(tube.grid(clip)) * tube.windows_per_token
        stem += 2 * windows * 3 * math.prod(tube.kernel) * tube.kernel_channels(d)
    pooling = 0
    if model.pooling in ("attention", "map"):
        pooling = 2 * (2 * n + 2) * d**2 + 4 * n * d
    if model.pooling == "map":
        pooling += 2 * mlp
    n += model.extra_tokens
    block = 2 * n * (4 * d**2 + mlp) + 4 * n**2 * d
    return {
        "stem": stem,
        "encoder": o.layers * block,
        "pooling": pooling,
        "head": 2 * d * model.classes[head],
    }


def training_flops(
    config: ConfigDict, model: TubeViT, stream: ConfigDict, heads_alone: bool = False
) -> int:
    """Returns the FLOPs of training on one example of a stream, by formula.

    The gradient of a matrix product takes two more of its size; the stem's takes one,
    as pixels have none, and counts as two all the same: 0.3% of B. Frozen layers and
    the tubes below them have no gradient. What rematerialization computes again does
    not count.

    Args:
        config: Config of the run.
        model: Its model.
        stream: One of its streams.
        heads_alone: Whether in one of the first `optimizer.head_steps` steps, in which
            pooling, heads and fresh blocks alone have a gradient.
    """
    clip = input_size(config.clip, stream.kind)
    forward = forward_flops(model, clip, stream.head)
    trained = dict(forward)
    layers = config.optimizer.trained_layers
    if heads_alone:
        layers = model.options.new_layers
    if layers is not None:
        trained["stem"] = 0
        trained["encoder"] = forward["encoder"] * layers // model.options.layers
    return sum(forward.values()) + 2 * sum(trained.values())


def step_flops(config: ConfigDict, model: TubeViT, heads_alone: bool = False) -> int:
    """Returns the FLOPs of a training step on all devices, as `training_flops`."""
    return sum(
        stream.batch_size * training_flops(config, model, stream, heads_alone)
        for stream in config.streams.values()
    )


def compiled_flops(
    model: TubeViT, clip: tuple[int, int, int], head: str
) -> float | None:
    """Returns the FLOPs of one clip's forward pass as XLA counts them.

    All operations count. Compiled for the CPU, because elsewhere XLA leaves matrix
    products to libraries and does not count them; without loops over blocks or heads,
    of which XLA counts one iteration.

    Args:
        model: The model.
        clip: (T, H, W) of the clip; T = 1 for an image.
        head: Name of the head.

    Returns:
        The FLOPs; None where JAX_PLATFORMS leaves the CPU out.
    """
    try:
        cpu, *_ = jax.devices("cpu")
    except RuntimeError:
        return None
    model = model.with_options(scan=False, attention="heads_first")
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0), clip))
    x = jax.ShapeDtypeStruct((1, *clip, 3), np.uint8)
    forward = jax.jit(lambda params, x: model.apply({"params": params}, x, head))
    with traced_for_cpu(), jax.default_device(cpu):
        return forward.lower(params, x).cost_analysis()["flops"]
