"""An image ViT's arrays as the parameters of a model: inflated, resized, dropped."""

import numpy as np

from sparse_tube_vit.checkpoints.pretrained.matching import (
    WHOLE_TOKENS,
    Match,
    WeightsReport,
)
from sparse_tube_vit.checkpoints.resizing import (
    inflate_kernel,
    positions_at,
    resize_patches,
)
from sparse_tube_vit.log import log

_WITHOUT_POSITIONS = (
    "to start a run without them, --config.model.positions=fixed "
    "--config.model.position_gain=0.02 --config.init.positions=drop"
)


def match_image_vit(vit, config, model, shapes) -> Match:
    """Matches an image ViT to our parameters.

    Args:
        vit: An `image_vits.ImageViT`.
        config: Our config.
        model: Its model.
        shapes: Shapes of our parameters by name.
    """
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
    match = Match(WeightsReport(vit.source), vit.model, new)
    _left_over(match, vit, init.head, arrays, shapes)
    _patch_kernel(match, vit, init.inflate, model, shapes)
    for part in ("patch/kernel", "patch/bias"):
        arrays.pop(part, None)
    _positions(match, vit, arrays.pop("positions", None), init.positions, model)
    _tokens(match, vit, arrays, model, shapes)
    _layers(match, vit, arrays, init.head, model.pooling, shapes)
    _compare_options(match, vit, vars(model.options))
    return match


def _left_over(match, vit, head, arrays, shapes):
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


def _positions(match, vit, positions, wanted, model):
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


def _tokens(match, vit, arrays, model, shapes):
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


def _layers(match, vit, arrays, head, pooling, shapes):
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
                f"{tube}: {WHOLE_TOKENS}",
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
