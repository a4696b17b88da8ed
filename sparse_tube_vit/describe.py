"""What a config's model is, before anything runs: tubes, tokens, parameters, FLOPs.

    python -m sparse_tube_vit.describe --config configs/X.py [--config.key=value ...]

FLOPs are those of one view forward, a multiply-add counted as two: by formula, of the
matrix products alone, and as XLA counts the whole program.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from sparse_tube_vit import datasets
from sparse_tube_vit.config import ConfigDict, parse_flags, validate
from sparse_tube_vit.datasets import DatasetError
from sparse_tube_vit.errors import reported
from sparse_tube_vit.model import TubeViT, init_params
from sparse_tube_vit.training.freezing import frozen_parts, split
from sparse_tube_vit.tubes import Tube, count_tokens, tubes_for
from sparse_tube_vit.variants import TUBE_SETS, VARIANTS, make_model

# Paper table 11, section 5 and the tables of results: parameters, and FLOPs of 4x3
# views. For B it also gives 70 to 74 billion a view (table 7b).
PAPER = {
    "B": {"parameters": 86e6, "flops": 0.87e12},
    "L": {"parameters": 307e6, "flops": 9.53e12},
    "H": {"parameters": 632e6, "flops": 17.64e12},
}


def pixels_read(tubes: Sequence[Tube], clip: tuple[int, int, int]) -> np.ndarray:
    """Which pixels of a clip (T, H, W) any of the tubes reads: bool (T, H, W)."""
    read = np.zeros(clip, bool)
    for tube in tubes:
        for start in tube.windows(clip).reshape(-1, 3):
            t, h, w = (slice(s, s + k) for s, k in zip(start, tube.kernel, strict=True))
            read[t, h, w] = True
    return read


def flops(model: TubeViT, clip: tuple[int, int, int], head: str) -> dict[str, int]:
    """FLOPs of the matrix products of one clip's forward pass, by part of the model.

    A multiply-add is two. With N tokens of D channels, M hidden units, and windows of
    K = 3 kt kh kw inputs and d channels: a window 2 K d, a block 2 N (4 D^2 + 2 D M) +
    4 N^2 D, pooling by attention 2 (2 N + 2) D^2 + 4 N D.
    """
    n, d = count_tokens(model.tubes, clip), model.width
    stem = 0
    for i in tubes_for(model.tubes, clip[0]):
        tube = model.tubes[i]
        windows = math.prod(tube.grid(clip)) * tube.windows_per_token
        stem += 2 * windows * 3 * math.prod(tube.kernel) * tube.kernel_channels(d)
    pooling = 2 * (2 * n + 2) * d**2 + 4 * n * d
    n += model.pooling == "class_token"
    block = 2 * n * (4 * d**2 + 2 * d * model.mlp_dim) + 4 * n**2 * d
    return {
        "stem": stem,
        "encoder": (model.depth + model.new_layers) * block,
        "pooling": pooling if model.pooling == "attention" else 0,
        "head": 2 * d * model.classes[head],
    }


def training_flops(config: ConfigDict, model: TubeViT, stream: ConfigDict) -> int:
    """FLOPs of the matrix products of training on one example of a stream.

    The gradients of a product are two more of it; below frozen layers there are none.
    """
    clip = model.clip if stream.kind == "video" else (1, *model.clip[1:])
    parts = flops(model, clip, stream.head)
    trained = dict(parts)
    frozen = config.optimizer.frozen_layers
    if frozen is not None:
        layers = model.depth + model.new_layers
        trained["stem"] = 0
        trained["encoder"] = parts["encoder"] * (layers - frozen) // layers
    return sum(parts.values()) + 2 * sum(trained.values())


def compiled_flops(model: TubeViT, clip: tuple[int, int, int], head: str) -> float:
    """FLOPs of one clip's forward pass as XLA counts them, of all operations.

    On the CPU: elsewhere XLA leaves matrix products to libraries, and does not count.
    Without a loop over layers, of which XLA counts one.
    """
    model = model.clone(scan=False)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0), clip))
    x = jax.ShapeDtypeStruct((1, *clip, 3), np.uint8)
    forward = jax.jit(lambda params, x: model.apply({"params": params}, x, head))
    with jax.default_device(jax.devices("cpu")[0]):
        return forward.lower(params, x).cost_analysis()["flops"]


def classes_of(config: ConfigDict) -> dict[str, int | None]:
    """Number of classes of every head; None where its data set is not prepared."""
    classes = {}
    for stream in config.streams.values():
        if not (epath.Path(config.data_dir) / stream.dataset).exists():
            # Opening it would make the embedded data set.
            classes.setdefault(stream.head, None)
            continue
        try:
            split = datasets.open_split(
                stream.dataset, stream.split, config.data_dir, stream.kind
            )
            classes[stream.head] = len(split.class_names)
        except DatasetError:
            classes.setdefault(stream.head, None)
    return classes


def describe(config: ConfigDict) -> str:
    """The report on a config as text.

    Raises: the named errors of the config and of its model.
    """
    validate(config)
    classes = classes_of(config)
    model = make_model(config, {head: n or 1 for head, n in classes.items()})
    lines = _tubes(model.tubes, model.clip) + _parameters(model, config, classes)
    kinds = {s.kind: s.head for s in config.streams.values()}
    for kind, head in kinds.items():
        clip = model.clip if kind == "video" else (1, *model.clip[1:])
        lines += _flops(model, kind, clip, head)
    return "\n".join(lines + _beside_the_paper(config, model))


def _size(numbers):
    return "x".join(map(str, numbers))


def _tubes(tubes, clip):
    tubes = [tubes[i] for i in tubes_for(tubes, clip[0])]
    rows = [("tube (kernel, stride, offset)", "tokens", "grid", "pixels read")]
    shares = [pixels_read([tube], clip).mean() for tube in tubes]
    for tube, share in zip(tubes, shares, strict=True):
        grid = tube.grid(clip)
        rows.append((str(tube), math.prod(grid), _size(grid), f"{share:.2%}"))
    union = pixels_read(tubes, clip).mean()
    rows.append(
        (f"a clip of {_size(clip)}", count_tokens(tubes, clip), "", f"{union:.2%}")
    )
    image = (1, *clip[1:])
    if any(tube.reads_images for tube in tubes):
        union = pixels_read([tubes[i] for i in tubes_for(tubes, 1)], image).mean()
        tokens = count_tokens(tubes, image)
        rows.append((f"an image of {_size(clip[1:])}", tokens, "", f"{union:.2%}"))
    return table(rows)


def _parameters(model, config, classes):
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0), model.clip))
    unknown = [f"head_{head}" for head, n in classes.items() if n is None]
    params = {part: tree for part, tree in params.items() if part not in unknown}
    halves = split(params, frozen_parts(config))

    def counts(part=None):
        trees = halves if part is None else [half.get(part, {}) for half in halves]
        sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in trees]
        return [f"{n:,}" for n in (*sizes, sum(sizes))]

    rows = [("parameters", "trained", "frozen", "all")]
    rows += [(part, *counts(part)) for part in params] + [("all", *counts())]
    lines = ["", *table(rows)]
    if unknown:
        lines.append(f"Without {', '.join(unknown)}, whose data sets are not prepared.")
    return lines


def _flops(model, kind, clip, head):
    parts = flops(model, clip, head)
    size = _size(clip if kind == "video" else clip[1:])
    rows = [(f"one {kind} of {size}", "GFLOP forward")]
    rows += [(part, f"{count / 1e9:.2f}") for part, count in parts.items()]
    rows.append(("by formula", f"{sum(parts.values()) / 1e9:.2f}"))
    rows.append(("as XLA counts", f"{compiled_flops(model, clip, head) / 1e9:.2f}"))
    return ["", *table(rows)]


def _beside_the_paper(config, model):
    """The paper's figures, where the model is one of its own, and why ours differ."""
    sizes = {key: config.model[key] for key in ("depth", "width", "mlp_dim", "heads")}
    names = [name for name in PAPER if VARIANTS[name] == sizes]
    if not names or model.tubes not in (TUBE_SETS["main"], TUBE_SETS["4"]):
        return []
    paper, (variant,) = PAPER[names[0]], names
    lines = ["", "Beside the paper"]
    lines.append(
        "  tokens of 32x224x224: 559 in the paper; here 539, 98 + 147 + 98 + 196, the "
        "windows inside the clip. No arithmetic of windows that we know gives 559."
    )
    d = model.width
    image_vit = 16 * 16 * 3 * d + d + 1000 * (d + 1)
    encoder = model.depth * (4 * d * d + 2 * d * model.mlp_dim + 9 * d + model.mlp_dim)
    lines.append(
        f"  parameters of {variant}: {paper['parameters'] / 1e6:.0f} million in the "
        f"paper; {(encoder + 2 * d + image_vit) / 1e6:.1f} here counted as it does, an "
        "image ViT: the encoder, a 16x16 patch embedding, and 1000 classes."
    )
    for frames in (32, 64):
        clip = (frames, 224, 224)
        parts = flops(model, clip, next(iter(model.classes)))
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


def table(rows: Sequence[tuple]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [
        max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)
    ]
    return [
        "  ".join(
            str(cell).ljust(width) if i == 0 else str(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def main(argv):
    del argv
    with reported():
        print(describe(_CONFIG.value))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=parse_flags)
