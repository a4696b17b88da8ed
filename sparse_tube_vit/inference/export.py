"""Exports of a model's scores as StableHLO, which run without this package.

`jax.export` serializes the program. The parameters, which it takes as an argument, stay
in the release's `model.safetensors`: they are stored once, and may exceed the 2 GiB
that a serialized program may have. docs/export.md tells how to run it.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from sparse_tube_vit.checkpoints.stored import WEIGHTS, StoredModel
from sparse_tube_vit.config import head_loss
from sparse_tube_vit.distributed.mesh import traced_for_cpu
from sparse_tube_vit.inference.loaded import TrainedTubeViT, from_stored
from sparse_tube_vit.models.scores import make_scores

#: The platforms that a program is lowered for.
PLATFORMS = ("cpu", "cuda", "tpu")
#: The file that describes the programs of a release.
DESCRIPTION = "export.json"


def export_scores(
    tubevit: TrainedTubeViT,
    kind: str,
    batch: int | None = None,
    dtype: str = "float32",
) -> export.Exported:
    """Exports the program from parameters and clips, or images, to probabilities.

    Its first argument is a dict of the parameters by their names in a release; its
    second is uint8, (B, T, H, W, 3) for videos and (B, H, W, 3) for images. It returns
    {head: probabilities (B, C) float32}, those of `TrainedTubeViT.scores` for one view.

    Args:
        tubevit: A model; of its parameters only the shapes matter.
        kind: "image" or "video". The heads are those that were trained on such inputs,
            or all if none was.
        batch: B; None: any.
        dtype: The dtype of the given parameters.

    Raises:
        ClipTooSmall, NoImageTube, PositionsMismatch: The model cannot read such inputs.
    """
    # Attention that every platform has; the others are kernels of one.
    model = tubevit.model.with_options(attention="heads_first")
    scores = {}
    for head in _heads(tubevit, kind):
        protocol = tubevit.protocol(kind, head)
        loss = head_loss(tubevit.config, head)
        scores[head] = make_scores(model.restride(protocol.stride_scale), head, loss)

    def program(parameters, inputs):
        views = inputs[:, None] if kind == "video" else inputs[:, None, None]
        parameters = {k: x.astype(np.float32) for k, x in parameters.items()}
        parameters = unflatten_dict(parameters, sep="/")
        return {head: of_head(parameters, views) for head, of_head in scores.items()}

    parameters = {
        name: jax.ShapeDtypeStruct(x.shape, dtype)
        for name, x in flatten_dict(tubevit.params, sep="/").items()
    }
    (b,) = (batch,) if batch else export.symbolic_shape("b")
    frames, *size = tubevit.model.clip
    shape = (b, frames, *size, 3) if kind == "video" else (b, *size, 3)
    inputs = jax.ShapeDtypeStruct(shape, np.uint8)
    with traced_for_cpu():  # on whatever machine: models choose kernels by the device
        exported = export.export(jax.jit(program), platforms=PLATFORMS)
        return exported(parameters, inputs)


def _heads(tubevit, kind):
    """Returns the heads that were trained on inputs of a kind, or all."""
    streams = tubevit.config.streams.values()
    trained = {s.head for s in streams if s.kind == kind}
    return [h for h in tubevit.class_names if h in trained] or [*tubevit.class_names]


def add_to_release(
    folder: Path,
    model: StoredModel,
    dtype: str = "float32",
    kind: str | None = None,
    batch: int | None = None,
) -> str:
    """Writes KIND.stablehlo and export.json to a release; returns text for its card.

    Args:
        folder: The folder of the release.
        model: The model.
        dtype: The dtype of the release's parameters.
        kind: "image" or "video"; None: those that the model was trained on.
        batch: The batch size; None: any.

    Raises:
        TubeViTError: As `export_scores`.
    """
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params
    )
    tubevit = from_stored(dataclasses.replace(model, params=shapes))
    trained = {s.kind for s in tubevit.config.streams.values()}
    programs = {}
    for each in [kind] if kind else sorted(trained):
        exported = export_scores(tubevit, each, batch, dtype)
        (folder / f"{each}.stablehlo").write_bytes(exported.serialize())
        programs[each] = _describe(tubevit, each, exported)
    description = {
        "format": "jax.export",
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
        "platforms": exported.platforms,
        "parameters": {"file": WEIGHTS, "dtype": dtype},
        "programs": programs,
        "versions": model.description["versions"],
    }
    text = json.dumps(description, indent=1)
    (folder / DESCRIPTION).write_text(f"{text}\n")
    return _card(programs)


def _describe(tubevit, kind, exported):
    """Returns inputs, outputs and class names of a program as JSON types."""
    *_, inputs = exported.in_avals
    clip = tubevit.config.clip
    outputs = {}
    for head in _heads(tubevit, kind):
        outputs[head] = {
            "dtype": "float32",
            "shape": [_size(inputs.shape[0]), len(tubevit.class_names[head])],
            "probabilities": head_loss(tubevit.config, head),
            "combine_views": tubevit.protocol(kind, head).combine_views,
            "classes": tubevit.class_names[head],
        }
    return {
        "file": f"{kind}.stablehlo",
        "input": {
            "dtype": "uint8",
            "shape": [*map(_size, inputs.shape)],
            **({"fps": clip.fps} if kind == "video" else {}),
        },
        "outputs": outputs,
    }


def _size(dimension):
    return dimension if isinstance(dimension, int) else str(dimension)


def _card(programs):
    lines = [
        f"* `{x['file']}`: uint8 ({', '.join(map(str, x['input']['shape']))}) to "
        f"probabilities of {', '.join(x['outputs'])}"
        for x in programs.values()
    ]
    return (
        "## Without sparse_tube_vit\n\n"
        "Programs in StableHLO that `jax.export.deserialize` reads, for "
        f"{', '.join(PLATFORMS)}. `{DESCRIPTION}` tells their inputs, outputs and "
        "classes; docs/export.md of sparse_tube_vit how to run them.\n\n"
        + "\n".join(lines)
    )
