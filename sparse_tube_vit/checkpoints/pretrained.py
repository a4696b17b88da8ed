"""Initial parameters from an image ViT's weights, another run, or a release.

Image ViTs are read by `image_vits`. Every array of the file and every parameter of the
model is loaded, resized, new or dropped; an error lists all others.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sparse_tube_vit.checkpoints import image_vits, stored
from sparse_tube_vit.checkpoints.resizing import (
    inflate_kernel,
    positions_at,
    resize_patches,
)
from sparse_tube_vit.config import ConfigDict, InvalidConfig, from_json, wrong_source
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.models.tubevit import TubeViT
from sparse_tube_vit.models.variants import make_tubes


class WeightsDoNotMatch(TubeViTError, ValueError):
    """Weights that do not fit the configured model."""


def initial_params(
    config: ConfigDict,
    model: TubeViT,
    shapes,
    class_names: Mapping[str, tuple],
    vit: image_vits.ImageViT | None = None,
) -> tuple[dict, "WeightsReport"]:
    """Returns the parameters that a model takes from `config.init.weights`.

    Args:
        config: The run's config. Its section `init` sets what is loaded and how.
        model: The config's model.
        shapes: The model's parameters or their shapes, a nested dict.
        class_names: Class names of every head of the model.
        vit: The image ViT at `config.init.weights`, if it has been read.

    Returns:
        (part, report): A nested dict of numpy arrays, float32, without the new
        parameters; and the report.

    Raises:
        UnreadableWeights, UnsupportedViT: The file is of another kind.
        InvalidConfig: Keys of section `init` do not go with such weights.
        WeightsDoNotMatch: Arrays have other shapes, are left over in the file, or are
            missing there. Lists all.
        NoCheckpoint, ForeignCheckpoint: The path is neither a file of weights nor a run
            or release.
        UnreachableStorage: The URL's storage does not answer.
    """
    path = config.init.weights
    shapes = {name: x.shape for name, x in _flat(shapes).items()}
    image = vit is not None or image_vits.holds_image_vit(path)
    if wrong := [*wrong_source(config, image)]:
        raise InvalidConfig("\n".join(["The configuration cannot work:", *wrong]))
    if image:
        vit = vit or image_vits.read(path, config.init.normalization)
        source, theirs = vit.source, vit.model
        match = _from_vit(vit, config, model, shapes)
    else:
        source, theirs, match = _from_run(path, config, shapes, class_names)
    layers_wrong = {name.rpartition("/")[0] for name in match.wrong}
    for name, shape in shapes.items():
        if name not in match.arrays:
            if name.startswith(tuple(match.new)):
                match.report.new[name] = shape, ""
            elif name.rpartition("/")[0] not in layers_wrong:
                match.wrong[name] = shape, "not there"
        elif match.arrays[name].shape != shape:
            match.wrong[name] = f"{match.arrays[name].shape} is {shape} here", ""
    match.wrong |= {
        name: (x.shape, "a parameter that the model has not")
        for name, x in match.arrays.items()
        if name not in shapes
    }
    if match.wrong:
        raise WeightsDoNotMatch(
            "\n".join(
                [
                    f"config.init.weights is {source}, which does not fit config.model "
                    f"(depth {config.model.depth}, width {config.model.width}):",
                    *(f"  {line}" for line in _table(match.wrong)),
                    _advice(config.model, theirs),
                ]
            )
        )
    arrays = {name: x.astype(np.float32) for name, x in match.arrays.items()}
    report = dataclasses.replace(match.report, source=source)
    return unflatten_dict(arrays, sep="/"), report


def _advice(ours, theirs):
    """Returns what to do about weights that do not fit."""
    keys = ("depth", "width", "mlp_dim", "heads", "gated_mlp", "pre_norm", "registers")
    wrong = [key for key in keys if theirs.get(key, ours[key]) != ours[key]]
    if not wrong:
        return "Change what the lines above name, or choose other weights."
    sizes = ", ".join(f"{key}={theirs[key]}" for key in wrong)
    return f"Set config.model to these sizes ({sizes}), or choose other weights."


@dataclasses.dataclass
class WeightsReport:
    """Outcome for every array of a source and parameter of a model; `str` is a table.

    Attributes:
        source: Name of the source.
        loaded, resized, new: (shape, remark) of the model's parameters by name.
        dropped: (shape, remark) of the source's arrays by name.
        notes: Other differences between the two models.
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
class _Match:
    """A source's arrays matched to our parameters.

    Attributes:
        new: Beginnings of names of parameters that may be missing from the source.
        arrays: The arrays under our names.
        wrong: (shape, remark) of arrays and parameters without a match.
        report: What is known so far.
    """

    new: list[str]
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    wrong: dict[str, tuple] = dataclasses.field(default_factory=dict)
    report: WeightsReport = dataclasses.field(default_factory=WeightsReport)

    def load(self, name, x, remark=""):
        self.arrays[name] = x
        self.report.loaded[name] = x.shape, remark

    def resize(self, name, x, how):
        self.arrays[name] = x
        self.report.resized[name] = x.shape, how

    def drop(self, name, x, why):
        self.report.dropped[name] = x.shape, why


# ---- image ViTs


def _from_vit(vit, config, model, shapes):
    """Matches an image ViT to our parameters."""
    init = config.init
    arrays = {name: vit.array(name, model.options.heads) for name in vit.arrays}
    new = ["encoder/new_block_", "encoder/gate", "pooling/", "positions/gain"]
    new += [f"head_{head}/" for head in model.classes if head != init.head]
    if init.positions == "drop":
        new.append("positions/")
    if init.inflate == "none":
        taken = {1, vit.patch[0]}
        tubes = enumerate(model.tubes)
        new += [f"stem/tube_{i}/" for i, t in tubes if t.kernel[0] not in taken]
    match = _Match(new)
    _vit_left_over(match, vit, init.head, arrays, shapes)
    _patch_kernel(match, vit, init.inflate, model, shapes)
    for part in ("patch/kernel", "patch/bias"):
        arrays.pop(part, None)
    _vit_positions(match, vit, arrays.pop("positions", None), init.positions, model)
    _vit_tokens(match, vit, arrays, model, shapes)
    _vit_layers(match, vit, arrays, init.head, model.pooling, shapes)
    _compare_options(match, vit, vars(model.options))
    return match


def _vit_left_over(match, vit, head, arrays, shapes):
    """Matches what is beside a ViT's trunk: known arrays are dropped, others wrong."""
    match.report.dropped |= vit.dropped
    match.report.notes.append(f"inputs are normalized by {vit.normalization}")
    outside = [name for name in vit.dropped if not name.startswith(vit.prefix)]
    if outside:
        match.report.notes.append(
            f"of the arrays beside {vit.prefix!r}, {len(outside)} are dropped, as "
            f"{outside[0]}"
        )
    if vit.why_headless and not head:
        match.report.notes.append(f"there is no head: {vit.why_headless}")
    for name, shape in vit.left_over.items():
        match.wrong[name] = shape, "left over in the file"
    for name, x in vit.before_head.items():
        leaf = "bias" if name.endswith("bias") else "scale"
        if head:
            match.wrong[name] = x.shape, "stands before the head, which init.head asks"
        elif name.startswith("fc_norm") and f"encoder/norm/{leaf}" not in arrays:
            how = "its norm of the tokens' mean; here each token is normalized"
            match.load(f"encoder/norm/{leaf}", x, how)
        else:
            match.drop(name, x, "has no part in a TubeViT")
    if vit.family.tubelets:  # its trunk has no last norm
        for leaf, make in (("scale", np.ones), ("bias", np.zeros)):
            name = f"encoder/norm/{leaf}"
            if name not in match.arrays and name not in arrays:
                x = make(shapes[name], np.float32)
                match.load(name, x, f"the file has none: {leaf} {x[0]:g}")


def _vit_positions(match, vit, positions, wanted, model):
    """Matches a ViT's positions, resized for every tube, where they are `wanted`."""
    if positions is None:
        if wanted == "drop":
            match.report.notes.append("the file has no position embeddings")
        else:
            match.wrong["positions"] = "not in the file", _WITHOUT_POSITIONS
        return
    name, interpolation = vit.names["positions"], vit.family.interpolation
    if wanted == "drop":
        match.drop(name, positions, "init.positions is 'drop'")
    elif positions.ndim < 3:
        why = f"no square grid of patches; {_WITHOUT_POSITIONS}"
        match.wrong[name] = positions.shape, why
    else:
        for i, tube in enumerate(model.tubes):
            match.resize(
                f"positions/tube_{i}",
                positions_at(positions, tube, model.clip, interpolation),
                f"from {'x'.join(map(str, positions.shape[:-1]))}, {interpolation}",
            )


def _vit_tokens(match, vit, arrays, model, shapes):
    """Matches a ViT's class token and registers, which are taken out of `arrays`."""
    if (token := arrays.pop("class_token", None)) is not None:
        if model.pooling == "class_token":
            match.load("class_token", token, "with its position added")
        else:
            match.drop(vit.names["class_token"], token, f"pooling is {model.pooling!r}")
    elif model.pooling == "class_token":
        why = f"not there; set model.pooling={vit.model['pooling']}"
        match.wrong["class_token"] = shapes["class_token"], why
    if (registers := arrays.pop("registers", None)) is not None:
        if model.registers:
            match.load("registers", registers, vit.names["registers"])
        else:
            match.drop(vit.names["registers"], registers, "model.registers is 0")


def _vit_layers(match, vit, arrays, head, pooling, shapes):
    """Matches a ViT's encoder, pooling and head."""
    for name, x in arrays.items():
        if name.startswith("pooling/") and name not in shapes:
            ours = "which has no MLP; 'map' has" if pooling == "attention" else ""
            why = ", ".join(filter(None, [f"pooling is {pooling!r}", ours]))
            match.drop(vit.names[name], x, why)
        elif not name.startswith("head/"):
            match.load(name, x, "" if name in vit.names else "the file has none: zeros")
        elif head:
            match.load(name.replace("head", f"head_{head}"), x)
        else:
            match.drop(vit.names[name], x, vit.why_headless or "init.head is not set")


def _compare_options(match, vit, options):
    """Notes which options of the encoder differ from a ViT's, or are guessed."""
    for key, theirs in vit.model.items():
        if key not in options or options[key] == theirs:
            continue
        if key == "heads" and key in vit.known:
            match.wrong["model.heads"] = f"{theirs} is {options[key]} here", ""
        elif key in ("gated_mlp", "pre_norm"):
            match.wrong[f"model.{key}"] = f"{theirs} is {options[key]} here", ""
        elif key in vit.known and key in ("gelu", "norm_epsilon"):
            match.report.notes.append(
                f"model.{key} is {options[key]!r}; that of the file is {theirs!r}"
            )
        elif key in ("gelu", "norm_epsilon"):
            match.report.notes.append(
                f"model.{key} is {options[key]!r}; a file does not tell, but most "
                f"{vit.family.name} models of {vit.family.codebase} have {theirs!r}"
            )
    if "heads" not in vit.known:
        match.report.notes.append(
            f"model.heads is {options['heads']}; a file does not tell them"
        )
    if vit.family.name in ("CLIP", "SigLIP") and "gelu" not in vit.known:
        match.report.notes.append(
            f"model.gelu is {options['gelu']!r}; a file does not tell it, and models "
            f"of {vit.family.name} differ"
        )
    if vit.why_heads_guessed and options["heads"] == vit.model["heads"]:
        log.warning(
            "%s: %d heads are a guess, width / 64, and features may be wrong: %s. Add "
            'theirs, "num_attention_heads": N, to the config.json beside the file, or '
            'where there is none, write one of {"num_attention_heads": N}.',
            vit.source,
            options["heads"],
            vit.why_heads_guessed,
        )


_WITHOUT_POSITIONS = (
    "to start a run without them, --config.model.positions=fixed "
    "--config.model.position_gain=0.02 --config.init.positions=drop"
)
_WHOLE_TOKENS = (
    "a ViT's kernel makes whole tokens; take tubes without space-to-depth, as set '4', "
    "or init.inflate 'none'"
)


def _patch_kernel(match, vit, inflate, model, shapes):
    """Matches the patch kernel to tubes of one frame, and inflated to others."""
    kernel, bias = vit.arrays["patch/kernel"], vit.arrays.get("patch/bias")
    kernel = kernel if kernel.ndim == 5 else kernel[None]
    patch, taken = vit.patch, False
    for i, tube in enumerate(model.tubes):
        layer, (t, *size) = f"stem/tube_{i}", tube.kernel
        if f"{layer}/kernel" not in shapes:
            continue
        if t not in (1, patch[0]) and inflate == "none":
            continue
        taken = True
        if tube.windows_per_token > 1:
            match.wrong[f"{layer}/kernel"] = (
                shapes[f"{layer}/kernel"],
                f"{tube}: {_WHOLE_TOKENS}",
            )
            continue
        x, how = kernel, []
        if (*size,) != patch[1:]:
            x = np.stack([resize_patches(frame, size) for frame in kernel])
            how.append(f"from {patch[1]}x{patch[2]}")
        if t != patch[0]:
            x = x.sum(0)  # a still clip's
            how += [f"summed over {patch[0]} frames"] * (patch[0] > 1)
            x = inflate_kernel(x, t, inflate) if t > 1 else x[None]
            how += [inflate] * (t > 1)
        b = bias
        if not vit.normalization.is_ours:
            b = np.zeros(x.shape[-1], np.float32) if bias is None else bias
            x, b = vit.normalization.fold(x, b)
        if how:
            match.resize(f"{layer}/kernel", x, ", ".join(how))
        else:
            match.load(f"{layer}/kernel", x)
        if b is not None:
            match.load(f"{layer}/bias", b)
    if not taken:
        frames = "a single frame" if patch[0] == 1 else f"{patch[0]} frames"
        match.wrong[vit.names["patch/kernel"]] = (
            vit.arrays["patch/kernel"].shape,
            f"no tube takes it; add one of {frames} with a kernel of its own, or set "
            "init.inflate",
        )


# ---- runs of this package


def _from_run(path, config, shapes, class_names):
    """Matches a checkpoint or release to our parameters, heads by their classes."""
    source = stored.read(path)
    run, params = source.description, _flat(source.params)
    fresh = tuple(f"{part}/" for part in config.init.fresh)
    new = ["head_", "encoder/new_block_", "encoder/gate", "positions/gain", *fresh]
    if config.init.positions == "drop":
        new.append("positions/")
    match = _Match(new)
    for part in fresh:
        if not any(f"{name}/".startswith(part) for name in shapes):
            parts = ", ".join(sorted({name.partition("/")[0] for name in shapes}))
            match.wrong[part[:-1]] = "in init.fresh", f"the model's parts are {parts}"
    used, refused, places = _tubes_from_run(match, params, run["config"], config, fresh)
    _positions_from_run(match, params, shapes, config.init.positions, places, fresh)
    for name, x in params.items():
        head = re.match(r"head_(.*)/", name)
        if f"{name}/".startswith(fresh):
            match.drop(name, x, "in init.fresh")
        elif name.startswith("positions/tube_"):
            continue
        elif name in match.arrays:  # its tube takes the patches of another
            if name not in used:
                match.drop(name, x, "this tube takes the patches of another")
        elif name in used and x.shape != shapes.get(name):
            continue  # a tube of another number takes it
        elif name.startswith(refused):
            continue
        elif name == "encoder/gate" and name not in shapes:
            match.drop(name, x, "model.gate_after is None")
        elif name == "positions/gain" and name not in shapes:
            match.drop(name, x, "model.position_gain is None")
        elif head and head[1] not in class_names:
            match.drop(name, x, "there is no such head here")
        elif head and [*run["class_names"][head[1]]] != [*class_names[head[1]]]:
            match.drop(name, x, "the classes differ")
        else:
            match.load(name, x)
    theirs = from_json(run["config"]).model.to_dict()
    match.report.notes += [
        f"model.{key} was {theirs[key]!r} there, {value!r} here"
        for key, value in config.model.to_dict().items()
        if _plain(theirs[key]) != _plain(value)
    ]
    if config.optimizer.trained_layers is not None:
        for key in ("gelu", "norm_epsilon"):
            if theirs[key] != config.model[key]:
                match.wrong[f"model.{key}"] = (
                    f"{theirs[key]!r} there",
                    "what is frozen was trained with it: set it here, too",
                )
    return source.name, theirs, match


def _tubes_from_run(match, params, theirs, config, fresh):
    """Matches a run's 2-D patch kernels to tubes of another index, size or length.

    Tubes of one frame take them wherever they stand among the run's tubes, and with
    `init.inflate` tubes of several frames take them too.

    Returns:
        (used, refused, places): Names of the run's arrays that are used; paths of our
        tubes that cannot take patches; and, by the index of each of our tubes that
        takes patches, the index of the run's tube that has them.
    """
    used, refused, places = set(), (), {}
    inflate, ours = config.init.inflate, make_tubes(config.model.tubes)
    tubes = make_tubes(from_json(theirs).model.tubes)
    patches = {
        i: f"stem/tube_{i}"
        for i, tube in enumerate(tubes)
        if _makes_patches(tube) and f"stem/tube_{i}/kernel" in params
    }
    if config.model.kernels != "separate":
        return used, refused, places
    if inflate != "none" and not patches:
        match.wrong["stem"] = "no kernel of one frame", "init.inflate needs one"
    for i, tube in enumerate(ours) if patches else ():
        layer, (t, *size) = f"stem/tube_{i}", tube.kernel
        here = i in patches and tubes[i].kernel == tube.kernel
        if f"{layer}/".startswith(fresh) or (t == 1 and here):
            continue
        if t > 1 and inflate == "none":
            continue
        if tube.windows_per_token > 1:
            match.wrong[f"{layer}/kernel"] = f"{tube}", _WHOLE_TOKENS
            refused += (f"{layer}/",)
            continue
        same = [j for j in patches if tubes[j].kernel[1:] == (*size,)]
        place = next(iter([*same, *patches]))
        places[i], source = place, patches[place]
        kernel = params[f"{source}/kernel"][0]
        x = kernel if same else resize_patches(kernel, size)
        x = inflate_kernel(x, t, inflate) if t > 1 else x[None]
        how = [f"of {source}", *([inflate] if t > 1 else [])]
        match.resize(f"{layer}/kernel", x, ", ".join(how))
        match.load(f"{layer}/bias", params[f"{source}/bias"], how[0])
        used |= {f"{source}/kernel", f"{source}/bias"}
    return used, refused, places


def _positions_from_run(match, params, shapes, how, places, fresh):
    """Matches learned positions of a run to those of the tubes that take its tubes.

    Tubes that are fresh have new ones.

    Args:
        match: The match so far.
        params: The run's arrays by name.
        shapes: Shapes of our parameters by name.
        how: `init.positions`.
        places: As returned by `_tubes_from_run`; others take those of their number.
        fresh: `init.fresh`, which ends with slashes.
    """
    theirs = {n: x for n, x in params.items() if n.startswith("positions/tube_")}
    left = {n: x for n, x in theirs.items() if not f"{n}/".startswith(fresh)}
    ours = [name for name in shapes if name.startswith("positions/tube_")]
    if theirs and not ours and how == "keep":
        match.wrong["positions"] = "not learned here", "set init.positions='drop'"
    for name in ours:
        if f"{name}/".startswith(fresh):
            continue
        i = int(name.rpartition("_")[2])
        source = f"positions/tube_{places.get(i, i)}"
        of_other = f"of {source}" if source != name else ""
        x = None if f"stem/tube_{i}/".startswith(fresh) else theirs.get(source)
        if x is None:
            if theirs and how == "keep":  # of a tube that the run has not
                match.new.append(name)
            continue
        if x.shape == shapes[name]:
            match.load(name, x, of_other)
        elif how == "keep":
            size = (*shapes[name][:3], x.shape[3])
            remark = f"from {'x'.join(map(str, x.shape[:3]))} tokens"
            remark = ", ".join(filter(None, [of_other, remark]))
            match.resize(name, np.asarray(jax.image.resize(x, size, "linear")), remark)
        else:
            continue
        left.pop(source, None)
    why = "init.positions is 'drop'" if how == "drop" else "no tube takes them"
    for name, x in left.items():
        match.drop(name, x, why)


def _makes_patches(tube):
    return tube.kernel[0] == 1 and tube.windows_per_token == 1


def _plain(value):
    """Returns the value with tuples as lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


# ---- names


def _flat(params):
    return flatten_dict(params, sep="/")


def _table(remarks: Mapping[str, tuple]) -> list[str]:
    """Returns one line per layer, or per layer that many blocks have.

    Args:
        remarks: (shape, remark) by name. Slashes or dots separate layer and array.
    """
    layers = {}
    for name, (shape, remark) in remarks.items():
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
    """Formats ["0", "1", "2", "5"] as "0..2,5", and [None] as ""."""
    runs = []
    for n in sorted(map(int, filter(None, numbers))):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(f"{a}" if a == b else f"{a}..{b}" for a, b in runs)
