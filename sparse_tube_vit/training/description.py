"""Text on a config's model: tubes, tokens, parameters and FLOPs."""

import math

import jax

from sparse_tube_vit.config import ConfigDict, input_size
from sparse_tube_vit.datasets.classes import classes_of
from sparse_tube_vit.log import format_table
from sparse_tube_vit.models.flops import compiled_flops, forward_flops
from sparse_tube_vit.models.tubes import count_tokens, pixels_read, tubes_for
from sparse_tube_vit.models.tubevit import make_model, param_shapes
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS
from sparse_tube_vit.training import finetuning
from sparse_tube_vit.training.freezing import frozen_parts, partition

# From the paper's table 11, section 5 and tables of results: parameters, and FLOPs of
# 4x3 views. Table 7b also gives 70 to 74 billion per view of B.
PAPER = {
    "B": {"parameters": 86e6, "flops": 0.87e12},
    "L": {"parameters": 307e6, "flops": 9.53e12},
    "H": {"parameters": 632e6, "flops": 17.64e12},
}


def describe(config: ConfigDict) -> str:
    """Returns a description of a config's model.

    Open keys of clips and model are taken from that of `init.weights`, as training
    does; a data set is not needed.

    Raises:
        The named errors of the config and of its model.
    """
    config = finetuning.complete(config, data=False)
    classes = classes_of(config)
    model = make_model(config, {head: n or 1 for head, n in classes.items()})
    lines = _tubes(model.tubes, model.clip) + _parameters(model, config, classes)
    kinds = {s.kind: s.head for s in config.streams.values()}
    for kind, head in kinds.items():
        lines += _flops(model, kind, input_size(config.clip, kind), head)
    return "\n".join(lines + _beside_the_paper(config, model))


def _size(numbers):
    return "x".join(map(str, numbers))


def _tubes(tubes, clip):
    tubes = [tubes[i] for i in tubes_for(tubes, clip[0])]
    rows = [("tube (kernel, stride, offset)", "tokens", "grid", "pixels read")]
    for tube in tubes:
        grid, read = tube.grid(clip), pixels_read([tube], clip).mean()
        rows.append((str(tube), math.prod(grid), _size(grid), f"{read:.2%}"))
    union = pixels_read(tubes, clip).mean()
    rows.append(
        (f"a clip of {_size(clip)}", count_tokens(tubes, clip), "", f"{union:.2%}")
    )
    image = (1, *clip[1:])
    if any(tube.reads_images for tube in tubes):
        union = pixels_read([tubes[i] for i in tubes_for(tubes, 1)], image).mean()
        tokens = count_tokens(tubes, image)
        rows.append((f"an image of {_size(clip[1:])}", tokens, "", f"{union:.2%}"))
    return format_table(rows)


def _parameters(model, config, classes):
    params = param_shapes(model)
    unknown = [f"head_{head}" for head, n in classes.items() if n is None]
    params = {part: tree for part, tree in params.items() if part not in unknown}
    trained_and_frozen = partition(params, frozen_parts(config))

    def counts(part=None):
        trees = [x if part is None else x.get(part, {}) for x in trained_and_frozen]
        sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in trees]
        return [f"{n:,}" for n in (*sizes, sum(sizes))]

    rows = [("parameters", "trained", "frozen", "all")]
    rows += [(part, *counts(part)) for part in params] + [("all", *counts())]
    lines = ["", *format_table(rows)]
    if unknown:
        lines.append(f"Without {', '.join(unknown)}, whose data sets are not prepared.")
    return lines


def _flops(model, kind, clip, head):
    parts = forward_flops(model, clip, head)
    size = _size(clip if kind == "video" else clip[1:])
    rows = [(f"one {kind} of {size}", "GFLOP forward")]
    rows += [(part, f"{count / 1e9:.2f}") for part, count in parts.items()]
    rows.append(("by formula", f"{sum(parts.values()) / 1e9:.2f}"))
    counted = compiled_flops(model, clip, head)
    if counted is None:
        platforms = f"JAX_PLATFORMS={jax.config.jax_platforms},cpu"
        why = f"Not counted by XLA, for want of a CPU backend: {platforms} has one."
        return ["", *format_table(rows), why]
    rows.append(("as XLA counts", f"{counted / 1e9:.2f}"))
    return ["", *format_table(rows)]


def _beside_the_paper(config, model):
    """Returns the paper's numbers for a model of its own, and why ours differ."""
    sizes = {key: config.model[key] for key in ("depth", "width", "mlp_dim", "heads")}
    names = [name for name in PAPER if VARIANTS[name] == sizes]
    of_paper = model.tubes in (TUBE_SETS["main"], TUBE_SETS["4"])
    if not names or not of_paper or model.options.gated_mlp:
        return []
    paper, (variant,) = PAPER[names[0]], names
    lines = ["", "Beside the paper"]
    lines.append(
        "  tokens of 32x224x224: 559 in the paper; here 539, 98 + 147 + 98 + 196, the "
        "windows inside the clip. No arithmetic of windows that we know gives 559."
    )
    options = model.options
    d, m = options.width, options.mlp_dim
    image_vit = 16 * 16 * 3 * d + d + 1000 * (d + 1)
    encoder = options.depth * (4 * d * d + 2 * d * m + 9 * d + m)
    lines.append(
        f"  parameters of {variant}: {paper['parameters'] / 1e6:.0f} million in the "
        f"paper; {(encoder + 2 * d + image_vit) / 1e6:.1f} here counted as it does, an "
        "image ViT: the encoder, a 16x16 patch embedding, and 1000 classes."
    )
    for frames in (32, 64):
        clip = (frames, 224, 224)
        parts = forward_flops(model, clip, next(iter(model.classes)))
        views = 12 * sum(parts.values()) / 1e12
        lines.append(
            f"  4x3 views of {variant}: {paper['flops'] / 1e12:.2f} TFLOP in the "
            f"paper; {views:.2f} here at {frames} frames, or {views / 2:.2f} if a "
            "multiply-add is one."
        )
    lines.append("  The paper does not say how it counts, nor at how many frames.")
    if variant == "B":
        lines.append("  It also says 72 GFLOP a view of B, for any number of tubes.")
    return lines
