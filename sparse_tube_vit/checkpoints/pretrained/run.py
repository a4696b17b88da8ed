"""A run or release's arrays as the parameters of a model of other tubes or heads."""

import re
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.pretrained.matching import (
    WHOLE_TOKENS,
    Match,
    WeightsReport,
)
from sparse_tube_vit.checkpoints.resizing import inflate_kernel, resize_patches
from sparse_tube_vit.config import from_json
from sparse_tube_vit.models.variants import make_tubes

_FROZEN = "what is frozen was trained with it: set it here, too"


def match_run(path, config, shapes, class_names) -> Match:
    """Matches a checkpoint or release to our parameters, heads by their classes.

    Args:
        path: Its path or URL.
        config: Our config.
        shapes: Shapes of our parameters by name.
        class_names: Class names of each of our heads.

    Raises:
        NoCheckpoint, ForeignCheckpoint, UnreachableStorage: As `stored.read`.
    """
    source = stored.read(path)
    run, params = source.description, flatten_dict(source.params, sep="/")
    fresh = tuple(f"{part}/" for part in config.init.fresh)
    new = ["head_", "encoder/new_block_", "encoder/gate", "positions/gain", *fresh]
    if config.init.positions == "drop":
        new.append("positions/")
    theirs = from_json(run["config"]).model.to_dict()
    match = Match(WeightsReport(source.name), theirs, new)
    for part in fresh:
        if not any(f"{name}/".startswith(part) for name in shapes):
            parts = ", ".join(sorted({name.partition("/")[0] for name in shapes}))
            match.wrong[part[:-1]] = "in init.fresh", f"the model's parts are {parts}"
    tubes, ours = make_tubes(theirs["tubes"]), make_tubes(config.model.tubes)
    used, refused, places = _tubes(match, params, tubes, ours, config, fresh)
    _positions(match, params, shapes, config.init.positions, places, fresh)
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
    match.report.notes += [
        f"model.{key} was {theirs[key]!r} there, {value!r} here"
        for key, value in config.model.to_dict().items()
        if _plain(theirs[key]) != _plain(value)
    ]
    if config.optimizer.trained_layers is not None:
        for key in ("gelu", "norm_epsilon"):
            if theirs[key] != config.model[key]:
                match.wrong[f"model.{key}"] = f"{theirs[key]!r} there", _FROZEN
        for i, (before, now) in enumerate(zip(tubes, ours, strict=False)):
            if i in places or f"stem/tube_{i}/".startswith(fresh):
                continue
            same = before.space_to_depth == now.space_to_depth
            if before.kernel == now.kernel and not same:
                match.wrong[f"model.tubes: {now}"] = f"{before} there", _FROZEN
    return match


def _tubes(match, params, tubes, ours, config, fresh):
    """Matches a run's 2-D patch kernels to tubes of another index, size or length.

    Tubes of one frame take them wherever they stand among the run's tubes, and with
    `init.inflate` tubes of several frames take them too.

    Args:
        match: The match so far.
        params: The run's arrays by name.
        tubes: The run's tubes.
        ours: Our tubes.
        config: Our config.
        fresh: `init.fresh`, which ends with slashes.

    Returns:
        (used, refused, places): Names of the run's arrays that are used; paths of our
        tubes that cannot take patches; and, by the index of each of our tubes that
        takes patches, the index of the run's tube that has them.
    """
    used, refused, places, inflate = set(), (), {}, config.init.inflate
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
            match.wrong[f"{layer}/kernel"] = f"{tube}", WHOLE_TOKENS
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


def _positions(match, params, shapes, how, places, fresh):
    """Matches learned positions of a run to those of the tubes that take its tubes.

    Tubes that are fresh have new ones.

    Args:
        match: The match so far.
        params: The run's arrays by name.
        shapes: Shapes of our parameters by name.
        how: `init.positions`.
        places: As returned by `_tubes`; others take those of their number.
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
