"""Reading an image ViT: its arrays by our names, its sizes and options."""

import dataclasses
import math
import re

import numpy as np

from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.image_vits import classifier, files, normalization
from sparse_tube_vit.checkpoints.image_vits.families import (
    FAMILIES,
    HEADS,
    NAFLEX,
    REFUSED,
    VIVIT,
    WIDTHS,
    Family,
    heads_of,
)
from sparse_tube_vit.checkpoints.image_vits.files import UnreadableWeights
from sparse_tube_vit.errors import TubeViTError

#: `hidden_act` of transformers and `act_layer` of timm as `EncoderOptions.gelu`.
_GELUS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "quick_gelu": "quick",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_tanh": "tanh",
}


#: timm's architectures with the tanh approximation.
_TANH = (
    r"(base_patch32|giantopt_patch16|so400m_patch16)_siglip"
    r"|large_patch16_siglip(_gap)?_512$"
)


#: The prefixes of MoCo v3.
_MOCO = r"(momentum|base)_encoder\."


class UnsupportedViT(TubeViTError, ValueError):
    """An image ViT that this model cannot compute."""


@dataclasses.dataclass(frozen=True)
class ImageViT:
    """An image ViT in memory.

    Attributes:
        source: In words: "vit.npz (ViT, AugReg; 12 blocks, width 768)".
        family: What its names are of.
        prefix: What stands before its names in the file: "" or as "backbone.".
        arrays: Arrays by our names, float32: kernels (in, out), or with heads where the
            file has them; "patch/kernel" (h, w, 3, D) or (t, h, w, 3, D); "registers"
            (1, R, D), a class token that is not pooled among them; "positions" (h, w,
            D) or (t, h, w, D); the positions of class token and registers are added to
            them, and LayerScale is folded.
        names: The file's names of these arrays, by ours.
        before_head: Arrays by the file's names of layers between trunk and classifier.
        dropped: (shape, reason) by the file's names of arrays without a part here.
        left_over: Shapes by the file's names of arrays that the family does not know.
        model: Values of keys of `config.model`: depth, width, mlp_dim, heads, gelu
            unless MLPs are gated, gated_mlp, norm_epsilon, pre_norm, registers and
            pooling.
        known: Keys of `model` that a config or the arrays tell; the others are guessed.
        normalization: Of its inputs.
        frames, size: Frames and pixels of its inputs.
        labels: Class names of its classifier, with their numbers where two are the
            same, and numbers where no config tells; () without one.
        why_headless: Why its classifier is no head of the pooled features; "" where it
            is one, or there is none.
        why_pooled_differs: Why pooled features are not those of its library, or "".
        loss: Loss that its classifier was trained with, as of a stream.
    """

    source: str
    family: Family
    prefix: str
    arrays: dict[str, np.ndarray]
    names: dict[str, str]
    before_head: dict[str, np.ndarray]
    dropped: dict[str, tuple]
    left_over: dict[str, tuple]
    model: dict
    known: frozenset[str]
    normalization: normalization.Normalization
    frames: int
    size: int
    labels: tuple[str, ...]
    why_headless: str
    why_pooled_differs: str
    loss: str

    @property
    def patch(self) -> tuple[int, int, int]:
        """Size of its patches as a tube's kernel, (frames, pixels, pixels)."""
        *size, _, _ = self.arrays["patch/kernel"].shape
        return (1, *size) if len(size) == 2 else tuple(size)

    @property
    def why_heads_guessed(self) -> str:
        """Why neither files nor the width, as of a known ViT, tell the heads, or ""."""
        if "heads" in self.known:
            return ""
        if re.search(_MOCO, self.prefix):
            return "MoCo v3's ViT-S has 12"
        return "" if self.model["width"] in WIDTHS else "no known ViT has this width"

    def array(self, name: str, heads: int) -> np.ndarray:
        """Returns an array in the shape of our parameter, for a number of heads."""
        x = self.arrays[name]
        *_, layer, leaf = ("", *name.split("/"))
        projected = layer in ("query", "key", "value")
        if projected and x.ndim == 1 + (leaf == "kernel") and x.shape[-1] % heads == 0:
            return x.reshape(*x.shape[:-1], heads, -1)
        merged = layer == "out" and leaf == "kernel"
        if merged and x.ndim == 2 and x.shape[0] % heads == 0:
            return x.reshape(heads, -1, x.shape[-1])
        return x


def read(path, asked: str = "") -> ImageViT:
    """Reads an image ViT.

    Args:
        path: An `.npz` or `.safetensors` file or a folder of the Hub; local, or at
            gs:// or hf://.
        asked: Normalization of its inputs, as `init.normalization`.

    Raises:
        UnreadableWeights: It is missing, damaged, or of no known family.
        UnsupportedViT: It is of a kind that the model cannot compute.
        UnreachableStorage: The storage does not answer.
    """
    found = files.find(path)
    _refuse_by_config(path, found.config)
    file = _split_gates(_unstack(files.read_arrays(found.weights)))
    family, prefix = _family(path, found, file)
    _check_types(found.config, found.weights.parent / stored.CONFIG)
    in_file = _names_in_file(family, prefix, file)
    depth = family.depth(in_file)
    names = {a: in_file[b] for a, b in family.names(depth).items() if b in in_file}
    arrays = {a: _kernel(family, a, file.pop(b)) for a, b in names.items()}
    before_head = {n: file.pop(in_file[n]) for n in family.before_head if n in in_file}
    dropped, left_over = {}, {}
    for name, x in file.items():
        if why := _unused(family, prefix, name):
            dropped[name] = x.shape, why
        else:
            left_over[name] = x.shape
    model, known = _model(family, found.config, arrays, depth)
    *_, side, channels, _ = arrays["patch/kernel"].shape
    _check_sizes(found, {**model, "patch": side})
    if channels != 3:
        raise UnsupportedViT(
            f"{path} is of {channels}-channel images, as its {names['patch/kernel']} "
            "tells; tubes read red, green and blue. Take a ViT of such images."
        )
    _add_biases(arrays, family.without_bias)
    _fold_layer_scale(arrays)
    model["pooling"] = _pooling(found.config, arrays, before_head)
    why_headless = classifier.why_headless(
        family, prefix, found.config, names, arrays, before_head, dropped
    )
    if family.tubelets:
        own = [names[x] for x in ("class_token", "positions") if x in arrays]
        if own:  # VideoMAE's names without its positions, which are no arrays
            raise UnsupportedViT(f"{path} (it has {' and '.join(own)}) {VIVIT.why}")
        arrays["positions"] = _sines(found.config, arrays, model["width"])
        names["positions"] = "sines of the patches' index"
    else:
        square = _has_square_images(found.config)
        _split_tokens(arrays, names, model["pooling"], square)
    registers = arrays.get("registers")
    model["registers"] = 0 if registers is None else registers.shape[1]
    return ImageViT(
        source=f"{path} ({family}; {depth} blocks, width {model['width']})",
        family=family,
        prefix=prefix,
        arrays=arrays,
        names=names,
        before_head=before_head,
        dropped=dropped,
        left_over=left_over,
        model=model,
        known=frozenset(known),
        normalization=normalization.choose(
            asked, found.config, found.preprocessor, family, path
        ),
        frames=found.config.get("num_frames", 16) if family.tubelets else 1,
        size=_size(found, arrays),
        labels=classifier.labels(found.config, arrays),
        why_headless=why_headless,
        why_pooled_differs=_why_pooled_differs(
            family, found.config, model, before_head
        ),
        loss=classifier.loss(found.config),
    )


#: Keys of timm's configs that hold options.
_OPTIONS = ("model_args", "pretrained_cfg")

#: Types of what is read of configs, by key; those of other models have others.
_TYPES = (
    dict.fromkeys(("num_attention_heads", "num_heads", "num_frames"), int)
    | dict.fromkeys(("hidden_act", "act_layer", "architecture"), str)
    | dict.fromkeys(_OPTIONS, dict)
    | {"layer_norm_eps": (int, float), "image_size": (int, list, dict)}
)


def _check_types(config, path):
    """Raises UnreadableWeights if a key that is read has a value of another type."""
    for key, value in config.items():
        kinds = _TYPES.get(key)
        if kinds and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise UnreadableWeights(f"{path} cannot be read: its {key} is {value!r}")
        if isinstance(value, dict) and key in (*_PARTS, *_OPTIONS):
            _check_types(value, path)


#: Keys of sizes in configs of transformers and timm, by ours.
_SIZES = {
    "width": ("hidden_size", "embed_dim", "num_features"),
    "depth": ("num_hidden_layers", "depth"),
    "patch": ("patch_size",),
}


#: Keys of a larger model's config that hold the image model's.
_PARTS = ("vision_config", "image_config", "backbone_config", "encoder")


def _options(config):
    """Returns the options of the image model in a config of transformers or timm."""
    parts = [config[k] for k in _PARTS if isinstance(config.get(k), dict)]
    return config.get("model_args", {}) | (parts[0] if parts else config)


def _check_sizes(found, ours):
    """Raises UnreadableWeights for a config of other weights than those beside it."""
    options = _options(found.config)
    wrong = [
        f"{key} is {options[key]} there, {ours[size]} in the weights"
        for size, keys in _SIZES.items()
        for key in keys
        if (theirs := _side(options.get(key))) and theirs != ours[size]
    ]
    if wrong:
        folder = found.weights.parent
        raise UnreadableWeights(
            f"{folder / stored.CONFIG} is of other weights than {found.weights.name}: "
            f"{'; '.join(wrong)}. Put the weights into a folder of their own, or "
            "remove the config."
        )


def _side(size):
    """Returns the last of a number, a list or a dict of sides, in pixels, or None."""
    size = size.get("height") if isinstance(size, dict) else size
    size = size[-1] if isinstance(size, list) and size else size
    return size if isinstance(size, int) else None


def _size(found, arrays):
    """Returns the pixels of inputs, a multiple of the patches'."""
    *_, patch = arrays["patch/kernel"].shape[:-2]
    timm = found.config.get("pretrained_cfg", found.config)
    options = _options(found.config)
    size = _side(timm.get("input_size")) or _side(options.get("image_size"))
    for key in ("size", "crop_size"):  # that of a crop is the last
        size = _side(found.preprocessor.get(key)) or size
    if size is None and "positions" in arrays:
        size = arrays["positions"].shape[-2] * patch
    return max(round((size or 224) / patch), 1) * patch


def _has_square_images(config):
    """Returns False if a config's input size has another height than width."""
    timm, options = config.get("pretrained_cfg", config), _options(config)
    sizes = options.get("img_size"), options.get("image_size"), timm.get("input_size")
    size = next(filter(None, sizes), None)
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    return not isinstance(size, list) or len({*size[-2:]}) == 1


def _why_pooled_differs(family, config, model, before_head):
    """Returns why pooled features are not those of the library, or ""."""
    if model["pooling"] == "mean" and "fc_norm.weight" in before_head:
        return "there fc_norm is of the tokens' mean, here of each token before it"
    if (family.name, family.codebase) == ("distilled DeiT", "timm"):
        return (
            "timm's are the mean of class and distillation token, here they are the "
            "class token"
        )
    options = _options(config)
    if options.get("global_pool") in ("max", "avgmax"):
        return f"there global_pool is {options['global_pool']!r}"
    if options.get("pool_include_prefix"):
        return "there the class token is a part of the mean"
    return ""


def _refuse_by_config(path, config):
    kind = f"{config.get('model_type', '')} {config.get('architecture', '')}".strip()
    for refusal in REFUSED:
        pattern = refusal.model_types
        if kind and pattern and re.search(pattern, kind):
            raise UnsupportedViT(f"{path} ({kind}) {refusal.why}")


def _family(path, found, file):
    """Returns the family of arrays by name, and the prefix of their names."""
    model_type = found.config.get("model_type")
    rows = sorted(FAMILIES, key=lambda f: model_type not in f.model_types)
    candidates = [name for name in file if not files.elsewhere(name)]
    families = {}
    for family in rows:
        for prefix in family.prefixes(candidates):
            names = _names_in_file(family, prefix, file)
            shapes = {ours: file[theirs].shape for ours, theirs in names.items()}
            if family.recognizes(shapes, model_type, file):
                families.setdefault(prefix, family)
    for prefix in families or ("",):  # in a larger model, what is beside it may differ
        _refuse_by_arrays(path, prefix, file)
    if not families:
        known = ", ".join(dict.fromkeys(f"{f.name}" for f in FAMILIES))
        some = sorted(file, key=lambda name: ("patch" not in name, name))[:5]
        raise UnreadableWeights(
            f"{path} is not a ViT by names that are known here ({known}; of AugReg, "
            f"big_vision, timm and Hugging Face): it has {len(file)} arrays, as "
            f"{', '.join(some)}."
        )
    if len(families) > 1:
        raise UnreadableWeights(_several(path, found.weights, sorted(families)))
    ((prefix, family),) = families.items()
    return family, prefix


def _several(path, weights, prefixes):
    """Returns what to do about several ViTs in a file."""
    one, name = prefixes[-1], str(weights)
    name = weights.name if "://" in name else name
    read, save = f"every = load_file({name!r})", "save_file(one, 'one.safetensors')"
    if name.endswith(".npz"):
        read, save = f"every = np.load({name!r})", "np.savez('one.npz', **one)"
    elif name.endswith(files.INDEX):
        shards = name.replace(files.INDEX, "-*.safetensors")
        read = (
            "every = {}\n"
            f"  for file in glob.glob({shards!r}): every.update(load_file(file))"
        )
    return (
        f"{path} holds {len(prefixes)} ViTs, whose names begin with "
        f"{', '.join(map(repr, prefixes))}. Keep one of them, say {one!r}, beside "
        "copies of its config.json and preprocessor_config.json in a folder of its "
        "own:\n"
        "  import glob, numpy as np\n"
        "  from safetensors.numpy import load_file, save_file\n"
        f"  {read}\n"
        f"  one = {{k: x for k, x in every.items() if k.startswith({one!r})}}\n"
        f"  {save}"
    )


def _parts(prefix):
    """Returns the prefixes of the modules around a part: "" and "a." for "a.b."."""
    return ["", *(prefix[: x.end()] for x in re.finditer(r"[./]", prefix))][:-1]


def _names_in_file(family, prefix, file):
    """Returns a file's names by the family's: of a ViT, and of a head around it."""
    heads = [name for ours, name in family.names(0).items() if ours.startswith("head/")]
    around = {
        name: part + name
        for part in (_parts(prefix) if prefix else ())
        for name in (*heads, *family.before_head)
        if part + name in file
    }
    inside = [name for name in file if name.startswith(prefix)]
    return around | {_bias_of(name.removeprefix(prefix)): name for name in inside}


def _unused(family, prefix, name):
    """Returns why an array of a file is dropped; "" if the reason is unknown."""
    for part in (*_parts(prefix), prefix):
        inside = name.removeprefix(part)
        if why := files.elsewhere(inside):
            return why
        patterns = family.unused.items()
        if why := next((why for k, why in patterns if re.match(k, inside)), ""):
            return why
    return "" if name.startswith(prefix) else f"{classifier.OUTSIDE} in {prefix!r}"


def _refuse_by_arrays(path, prefix, file):
    inside = {
        n.removeprefix(prefix): x for n, x in file.items() if n.startswith(prefix)
    }
    flat = [name for name, x in inside.items() if x.ndim == 2]
    for refusal in REFUSED:
        if evidence := refusal.evidence(inside):
            raise UnsupportedViT(f"{path} (it has {evidence}) {refusal.why}")
    if evidence := NAFLEX.evidence(flat):
        raise UnsupportedViT(f"{path} (it has {evidence}) {NAFLEX.why}")


def _unstack(file):
    """Splits big_vision's arrays of all blocks into one for each."""
    for name in [n for n in file if "/encoderblock/" in n]:
        for i, x in enumerate(file.pop(name)):
            file[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = x
    return file


def _split_gates(file):
    """Splits timm's gated MLPs, whose gate and up are one layer of fc1's name."""
    for down in [n for n in file if n.endswith("mlp.fc2.weight")]:
        both = down.replace("fc2", "fc1")
        if both not in file or len(file[both]) != 2 * file[down].shape[1]:
            continue
        for name in (both, both.replace("weight", "bias")):
            if name in file:
                gate, up = np.split(file.pop(name), 2)
                file[name.replace("fc1", "gate")] = gate
                file[name.replace("fc1", "up")] = up
    return file


def _bias_of(name):
    """Returns VideoMAE's and EVA's q_bias as of its layer; other names unchanged."""
    name = re.sub(r"\battn\.([qv])_bias$", r"attn.\1.bias", name)
    name = re.sub(r"\bq_bias$", "query.bias", name)
    return re.sub(r"\bv_bias$", "value.bias", name)


def _kernel(family, name, x):
    """Returns a file's array with a kernel's inputs first, as in JAX."""
    if not family.torch or not name.endswith("/kernel"):
        return x
    return np.moveaxis(x, (0, 1), (-1, -2))  # (D, 3, ...) and (out, in)


def _model(family, config, arrays, depth):
    """Returns the values of `config.model`, and the keys that are not guessed."""
    vision = _options(config)
    width = arrays["patch/kernel"].shape[-1]
    query = arrays["encoder/block_0/attention/query/kernel"]
    gated = "encoder/block_0/mlp/gate/kernel" in arrays
    architecture = config.get("architecture", "")
    model = {
        "depth": depth,
        "width": width,
        "mlp_dim": arrays["encoder/block_0/mlp/up/kernel"].shape[-1],
        "heads": heads_of(width, gated, architecture),
        "gelu": family.gelu,
        "gated_mlp": gated,
        "norm_epsilon": family.norm_epsilon,
        "pre_norm": "encoder/pre_norm/scale" in arrays,
    }
    known = {"depth", "width", "mlp_dim", "gated_mlp", "pre_norm"}
    if architecture in HEADS:
        known.add("heads")
    if query.ndim == 3:
        model["heads"] = query.shape[1]
        known.add("heads")
    for key, *theirs in (
        ("heads", "num_attention_heads", "num_heads"),
        ("norm_epsilon", "layer_norm_eps"),
    ):
        if values := [vision[name] for name in theirs if vision.get(name)]:
            model[key] = values[0]
            known.add(key)
    if gated:
        del model["gelu"]  # there is none, whatever a config says
    elif act_key := next((k for k in ("hidden_act", "act_layer") if k in vision), ""):
        act = vision[act_key]
        if act not in _GELUS:
            raise UnsupportedViT(
                f"Its config has {act_key} {act!r}; the model has "
                f"{', '.join(sorted(_GELUS))}."
            )
        model["gelu"] = _GELUS[act]
        known.add("gelu")
    elif architecture:
        if "quickgelu" in architecture:
            model["gelu"] = "quick"
        elif re.search(_TANH, architecture):
            model["gelu"] = "tanh"
        known.add("gelu")
    return model, known


def _pooling(config, arrays, before_head):
    """Returns the pooling: timm's `global_pool`, or as a file's layers tell."""
    if "pooling/probe" in arrays:
        return "map"
    by_layers = "avg" if "fc_norm.weight" in before_head else "token"
    averaged = _options(config).get("global_pool", by_layers) == "avg"
    return "class_token" if "class_token" in arrays and not averaged else "mean"


def _add_biases(arrays, without):
    """Adds zeros as biases of layers that have none.

    Args:
        arrays: Arrays by our names.
        without: `Family.without_bias`, besides queries, keys and values where none of
            the three has a bias.
    """
    biases = {name for name in arrays if name.endswith("/bias")}
    for name in [n for n in arrays if n.endswith("/kernel")]:
        layer = name.removesuffix("/kernel")
        block = layer.rpartition("/")[0]
        qkv = [f"{block}/{x}/bias" for x in ("query", "key", "value")]
        alone = f"{layer}/bias" in qkv and biases.isdisjoint(qkv)
        if alone or layer.endswith(without):
            shape = arrays[name].shape[1:] if alone else arrays[name].shape[-1:]
            arrays.setdefault(f"{layer}/bias", np.zeros(shape, np.float32))


def _fold_layer_scale(arrays):
    """Multiplies LayerScale into the layer before it."""
    for name in [n for n in arrays if re.search(r"/scale_[12]$", n)]:
        scale, block = arrays.pop(name), name.rpartition("/")[0]
        layer = "attention/out" if name.endswith("1") else "mlp/down"
        for leaf in ("kernel", "bias"):
            if (x := arrays.get(f"{block}/{layer}/{leaf}")) is not None:
                arrays[f"{block}/{layer}/{leaf}"] = x * scale


def _split_tokens(arrays, names, pooling, square):
    """Adds positions to the tokens that have some; makes those of patches a grid.

    A class token that is not pooled becomes a register. Positions of no square grid
    are left as they are, and all of them where `square` is False.
    """
    order = ("class_token", "distillation_token", "registers")
    tokens = {a: np.atleast_2d(np.squeeze(arrays.pop(a))) for a in order if a in arrays}
    if (positions := arrays.get("positions")) is not None:
        positions = positions.reshape(-1, positions.shape[-1])
        first, side = 0, 0
        if square:
            first, side = _grid(len(positions), sum(map(len, tokens.values())))
        for name, x in tokens.items():
            added, positions = np.split(positions, [min(len(x), first)])
            first -= len(added)
            tokens[name] = x + np.pad(added, [(0, len(x) - len(added)), (0, 0)])
        arrays["positions"] = positions
        if side:
            arrays["positions"] = positions.reshape(side, side, -1)
    if pooling == "class_token":
        arrays["class_token"] = tokens.pop("class_token")[None]
    if tokens:
        arrays["registers"] = np.concatenate([*tokens.values()])[None]
        names["registers"] = " and ".join(names[name] for name in tokens)


def _grid(positions, tokens):
    """Returns how many tokens have positions, and the side of the patches' grid.

    Args:
        positions: Number of positions.
        tokens: Number of tokens without a place. Position embeddings are of none, of
            the class token alone, or of all of them.
    """
    for first in dict.fromkeys((0, min(1, tokens), tokens)):
        side = math.isqrt(max(positions - first, 0))
        if side and side * side == positions - first:
            return first, side
    return 0, 0


def _sines(config, arrays, width):
    """Returns VideoMAE's fixed positions (t, h, w, D): sines of a patch's index."""
    t, h, w, *_ = arrays["patch/kernel"].shape
    rows, columns = np.broadcast_to(config.get("image_size", 224), 2).tolist()
    grid = config.get("num_frames", 16) // t, rows // h, columns // w
    channels = np.arange(width)
    angles = np.arange(math.prod(grid))[:, None] / 10_000 ** (
        2 * (channels // 2) / width
    )
    table = np.where(channels % 2, np.cos(angles), np.sin(angles))
    return table.reshape(*grid, width).astype(np.float32)
