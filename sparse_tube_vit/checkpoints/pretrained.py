"""Parameters to start from: an image ViT's weights, or another run's or release's.

Weights of image ViTs are read from the files of google-research/vision_transformer
(AugReg `.npz`), timm and Hugging Face transformers (`.safetensors`) by explicit maps of
names. Every array of the file and every parameter of the model is accounted for:
loaded, resized, new or dropped. What is not is an error that lists it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.vit_formats import read_vit
from sparse_tube_vit.config import ConfigDict, is_weights_file
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.tubevit import TubeViT


class WeightsDoNotMatch(TubeViTError, ValueError):
    """Weights of another model than the configured one."""


def initial_params(
    config: ConfigDict, model: TubeViT, shapes, class_names: Mapping[str, tuple]
) -> tuple[dict, "Report"]:
    """The parameters that `config.init.weights` gives to a model.

    Args:
      config: of the run; its section `init` says what is loaded and how.
      model: the config's.
      shapes: the model's parameters, or their shapes: a nested dict.
      class_names: of every head of the model.

    Returns:
      (part, report): a nested dict of float32 arrays in numpy, of those parameters that
      are not new, and what became of every array.

    Raises:
      UnreadableWeights: a file of another kind.
      WeightsDoNotMatch: an array is of another shape, left over in the file, or missing
        there; lists all.
      NoCheckpoint, ForeignCheckpoint: neither a file of weights nor a run or release.
    """
    path = config.init.weights
    shapes = {name: x.shape for name, x in _flat(shapes).items()}
    if is_weights_file(path):
        source, found = _from_vit(path, config, model, shapes)
    else:
        source, found = _from_run(path, config, shapes, class_names)
    told = {name.rpartition("/")[0] for name in found.wrong}
    for name, shape in shapes.items():
        if name not in found.arrays:
            if found.may_be_new(name):
                found.report.new[name] = shape, ""
            elif name.rpartition("/")[0] not in told:
                found.wrong[name] = shape, "not there"
        elif found.arrays[name].shape != shape:
            found.wrong[name] = f"{found.arrays[name].shape} is {shape} here", ""
    found.wrong |= {
        name: (x.shape, "a parameter that the model has not")
        for name, x in found.arrays.items()
        if name not in shapes
    }
    if found.wrong:
        raise WeightsDoNotMatch(
            "\n".join(
                [
                    f"config.init.weights is {source}, which does not fit config.model "
                    f"(depth {config.model.depth}, width {config.model.width}):",
                    *(f"  {line}" for line in _table(found.wrong)),
                    "Set config.model to these sizes, or choose other weights.",
                ]
            )
        )
    found.report.source = source
    arrays = {name: x.astype(np.float32) for name, x in found.arrays.items()}
    return unflatten_dict(arrays, sep="/"), found.report


@dataclasses.dataclass
class Report:
    """What became of every array; as text, a table.

    Attributes:
      source: what was loaded.
      loaded, resized, new: shape, and what is said of it, of our parameters by name.
      dropped: the same of the source's arrays.
      notes: what else differs between the source's model and the configured one.
    """

    source: str = ""
    loaded: dict[str, tuple] = dataclasses.field(default_factory=dict)
    resized: dict[str, tuple] = dataclasses.field(default_factory=dict)
    new: dict[str, tuple] = dataclasses.field(default_factory=dict)
    dropped: dict[str, tuple] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self):
        lines = [f"Parameters from {self.source}"]
        for kind in ("loaded", "resized", "new", "dropped"):
            lines += [f"  {kind:8} {line}" for line in _table(getattr(self, kind))]
        return "\n".join(lines + [f"  note     {note}" for note in self.notes])


@dataclasses.dataclass
class _Found:
    """Arrays under our names, and what is to be said of them and of the others."""

    may_be_new: Callable[[str], bool]
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    wrong: dict[str, tuple] = dataclasses.field(default_factory=dict)
    report: Report = dataclasses.field(default_factory=Report)

    def load(self, name, x, remark=""):
        self.arrays[name] = x
        self.report.loaded[name] = x.shape, remark

    def resize(self, name, x, how):
        self.arrays[name] = x
        self.report.resized[name] = x.shape, how

    def drop(self, name, x, why):
        self.report.dropped[name] = x.shape, why


# ---- image ViTs


def _from_vit(path, config, model, shapes):
    """Everything of a file of weights, under the names and in the shapes of ours."""
    kind, file = read_vit(path)
    init, depth = config.init, kind.depth(file)
    names = {a: b for a, b in kind.names(depth).items() if b in file}
    heads = model.options.heads
    vit = {a: _our_layout(kind, a, file.pop(b), heads) for a, b in names.items()}
    width = vit["patch/kernel"].shape[-1]
    source = f"{path} ({kind.name}, {depth} blocks, width {width})"

    new = ["encoder/new_block_", "encoder/gate", "pooling/"]
    new += [f"head_{head}/" for head in model.classes if head != init.head]
    if init.positions == "drop":
        new.append("positions/")
    if init.inflate == "none":
        new += [f"stem/tube_{i}/" for i, t in enumerate(model.tubes) if t.kernel[0] > 1]
    found = _Found(may_be_new=lambda name: name.startswith(tuple(new)))

    # What the file holds beyond a trunk: known and dropped, or an error.
    for name, x in file.items():
        if name in kind.unused or (name in kind.before_head and not init.head):
            found.drop(name, x, "has no part in a TubeViT")
        elif name in kind.before_head:
            found.wrong[name] = x.shape, "stands before the head, which init.head asks"
        else:
            found.wrong[name] = x.shape, "left over in the file"

    _patch_kernel(found, vit, init.inflate, model, shapes, names)

    class_token = vit.pop("class_token", None)
    if (positions := vit.pop("positions", None)) is not None:
        name = names["positions"]
        of_class, grid = split_positions(positions)
        if grid is None:
            found.wrong[name] = positions.shape, "no square grid of patches"
        elif init.positions == "keep":
            for i, tube in enumerate(model.tubes):
                found.resize(
                    f"positions/tube_{i}",
                    positions_at(grid, tube, model.clip),
                    f"from {grid.shape[0]}x{grid.shape[1]}",
                )
        else:
            found.drop(name, positions, "init.positions is 'drop'")
        if class_token is not None:
            class_token = class_token + of_class
    if class_token is not None and model.pooling == "class_token":
        found.load("class_token", class_token, "with its position added")
    elif class_token is not None:
        found.drop(names["class_token"], class_token, f"pooling is {model.pooling!r}")

    for name, x in vit.items():
        if not name.startswith("head/"):
            found.load(name, x)
        elif init.head:
            found.load(name.replace("head", f"head_{init.head}"), x)
        else:
            found.drop(names[name], x, "init.head is not set")

    for key in ("gelu", "norm_epsilon"):
        theirs, ours = getattr(kind, key), getattr(model, key)
        if theirs != ours:
            found.report.notes.append(
                f"model.{key} is {ours!r}; a file does not tell, but most models of "
                f"{kind.name} have {theirs!r}"
            )
    return source, found


def _our_layout(kind, name, x, heads):
    """An array of the file as we keep it, under our name of it."""
    *_, layer, leaf = ("", *name.split("/"))
    if not kind.torch or leaf not in ("kernel", "bias"):
        return x
    if leaf == "kernel":
        x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
    if layer in ("query", "key", "value") and x.shape[-1] % heads == 0:
        return x.reshape(*x.shape[:-1], heads, -1)
    if layer == "out" and leaf == "kernel" and x.shape[0] % heads == 0:
        return x.reshape(heads, -1, x.shape[-1])
    return x


def _patch_kernel(found, vit, inflate, model, shapes, names):
    """The 2-D patch kernel for the tubes of one frame, and inflated for the others."""
    kernel, bias = vit.pop("patch/kernel"), vit.pop("patch/bias", None)
    taken = False
    for i, tube in enumerate(model.tubes):
        layer, (t, *size) = f"stem/tube_{i}", tube.kernel
        if f"{layer}/kernel" not in shapes or (t > 1 and inflate == "none"):
            continue
        taken = True
        if tube.windows_per_token > 1:
            found.wrong[f"{layer}/kernel"] = (
                shapes[f"{layer}/kernel"],
                f"{tube}: a ViT's kernel makes whole tokens; take tubes without "
                "space-to-depth, as set '4', or init.inflate 'none'",
            )
            continue
        x = resize_patches(kernel, size)
        x = inflate_kernel(x, t, inflate) if t > 1 else x[None]
        if x.shape[:3] == (1, *kernel.shape[:2]):
            found.load(f"{layer}/kernel", x)
        else:
            how = f", {inflate}" if t > 1 else ""
            found.resize(
                f"{layer}/kernel", x, f"from {kernel.shape[0]}x{kernel.shape[1]}{how}"
            )
        if bias is not None:
            found.load(f"{layer}/bias", bias)
    if not taken:
        found.wrong[names["patch/kernel"]] = (
            kernel.shape,
            "no tube takes it; add one of a single frame with a kernel of its own, or "
            "set init.inflate",
        )


@functools.cache
def _bilinear(old: int, new: int) -> np.ndarray:
    """(new, old): what jax.image.resize(..., "linear") multiplies an axis by."""
    return np.asarray(jax.image.resize(np.eye(old), (new, old), "linear"), np.float64)


def resize_patches(kernel: np.ndarray, size) -> np.ndarray:
    """Resizes a 2-D patch kernel by the pseudo-inverse, PI-resize of FlexiViT.

    Let B be the matrix that resizes a patch x to the new size bilinearly, smoothed
    where it shrinks. The new kernel is w' = pinv(B^T) w, of all kernels the one that
    minimizes (<Bx, w'> - <x, w>)^2 on average over white x. Where patches grow,
    B^T w' = w: resized patches have exactly the products that the old patches had
    (Beyer et al., CVPR 2023, section 3.4).

    Args:
      kernel: (h, w, 3, D).
      size: the new (h, w).

    Returns:
      (h, w, 3, D).
    """
    # B is a Kronecker product of one matrix an axis, and so is its pseudo-inverse.
    rows, columns = (
        np.linalg.pinv(_bilinear(old, new).T)
        for old, new in zip(kernel.shape[:2], size, strict=True)
    )
    return np.einsum("yh,xw,hwcd->yxcd", rows, columns, kernel)


def inflate_kernel(kernel: np.ndarray, frames: int, how: str) -> np.ndarray:
    """Makes a tube's kernel (t, h, w, 3, D) of a 2-D kernel (h, w, 3, D).

    "repeat": on every frame, divided by their number, so that a still clip gives what
    its frame gives (Carreira and Zisserman, CVPR 2017). "central_frame": on frame
    t // 2 alone, zeros on the others (Arnab et al., ICCV 2021).
    """
    if how == "repeat":
        return np.repeat(kernel[None], frames, axis=0) / frames
    tube = np.zeros((frames, *kernel.shape), kernel.dtype)
    tube[frames // 2] = kernel
    return tube


def split_positions(positions: np.ndarray):
    """Learned positions (1, N, D): the class token's, or 0, and the patches' (g, g, D).

    The grid is None if neither N nor N - 1 is a square.
    """
    *_, n, width = positions.shape
    for of_class in (0, 1):
        side = math.isqrt(n - of_class)
        if side * side == n - of_class:
            grid = positions[0, of_class:].reshape(side, side, width)
            return (positions[:, :1] if of_class else 0), grid
    return 0, None


def positions_at(grid: np.ndarray, tube, clip) -> np.ndarray:
    """Positions of patches on a grid (g, g, D), bilinearly at a tube's centres.

    Both grids span the whole picture. Past the centres of the outer patches, theirs
    holds. All frames have the same.

    Returns:
      (nt, nh, nw, D) for a clip of (T, H, W).
    """
    nt, nh, nw = tube.grid(clip)
    centres = tube.centres(clip).reshape(nt, nh, nw, 3)[0]
    places = (centres[:, 0, 1] / clip[1], centres[0, :, 2] / clip[2])  # in 0..1
    rows, columns = (
        np.stack([np.interp(place * g - 0.5, np.arange(g), e) for e in np.eye(g)], -1)
        for place, g in zip(places, grid.shape[:2], strict=True)
    )  # (nh, g), (nw, g)
    resized = np.einsum("yh,xw,hwd->yxd", rows, columns, grid)
    return np.repeat(resized[None], nt, axis=0)


# ---- runs of this package


def _from_run(path, config, shapes, class_names):
    """All of a checkpoint or release; of its heads, those of the same classes."""
    source = stored.read(path)
    run, params = source.run, _flat(source.params)
    fresh = tuple(f"{part}/" for part in config.init.fresh)
    new = ["head_", "encoder/new_block_", "encoder/gate", *fresh]
    if config.init.positions == "drop":
        new.append("positions/")
    found = _Found(may_be_new=lambda name: name.startswith(tuple(new)))
    for part in fresh:
        if not any(f"{name}/".startswith(part) for name in shapes):
            parts = ", ".join(sorted({name.partition("/")[0] for name in shapes}))
            found.wrong[part[:-1]] = "in init.fresh", f"the model's parts are {parts}"
    for name, x in params.items():
        head = re.match(r"head_(.*)/", name)
        if f"{name}/".startswith(fresh):
            found.drop(name, x, "in init.fresh")
        elif name == "encoder/gate" and name not in shapes:
            found.drop(name, x, "model.gate_after is None")
        elif head and head[1] not in class_names:
            found.drop(name, x, "there is no such head here")
        elif head and [*run["class_names"][head[1]]] != [*class_names[head[1]]]:
            found.drop(name, x, "the classes differ")
        elif name.startswith("positions/") and x.shape == shapes.get(name):
            found.load(name, x)
        elif name.startswith("positions/") and config.init.positions == "drop":
            found.drop(name, x, "init.positions is 'drop'")
        elif name.startswith("positions/") and name in shapes:
            size = (*shapes[name][:3], x.shape[3])
            how = f"from {'x'.join(map(str, x.shape[:3]))} tokens"
            found.resize(name, np.asarray(jax.image.resize(x, size, "linear")), how)
        else:
            found.load(name, x)
    theirs, ours = run["config"]["model"], config.model.to_dict()
    found.report.notes += [
        f"model.{key} was {theirs.get(key)!r} there, {value!r} here"
        for key, value in ours.items()
        if _plain(theirs.get(key)) != _plain(value)
    ]
    return source.name, found


def _plain(value):
    """Tuples as JSON gives them back."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


# ---- names


def _flat(params):
    return flatten_dict(params, sep="/")


def _table(said: Mapping[str, tuple]) -> list[str]:
    """One line a layer, and for the same layer in many blocks.

    Args:
      said: (shape, remark) by name; layers and their arrays' names are parted by
        slashes or dots.
    """
    layers = {}
    for name, (shape, remark) in said.items():
        parts = re.fullmatch(r"(.*)[/.](kernel|scale|weight|bias)", name)
        layer, leaf = parts.groups() if parts else (name, "")
        layers.setdefault((layer, remark), []).append(f"{leaf} {shape}".strip())
    lines = {}
    for (layer, remark), leaves in layers.items():
        leaves.sort(key=lambda leaf: leaf.startswith("bias"))  # after the kernel
        parts = re.fullmatch(r"(.*?)(?:(\d+)([/.].*)?)?", layer)
        line = (parts[1], parts[3] or "", ", ".join(leaves), remark)
        lines.setdefault(line, []).append(parts[2])
    return [
        f"{before}{_ranges(numbers)}{after}  {leaves}" + (f": {remark}" * bool(remark))
        for (before, after, leaves, remark), numbers in lines.items()
    ]


def _ranges(numbers):
    """["0", "1", "2", "5"] to "0..2,5"; [None] to ""."""
    runs = []
    for n in sorted(map(int, filter(None, numbers))):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(f"{a}" if a == b else f"{a}..{b}" for a, b in runs)
