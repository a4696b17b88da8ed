"""Scaling up, from image to video (paper 3.6, eq. 8, tables 6 and 9).

A large ViT that was trained on images gets the video tubes of a small TubeViT. Their
kernels stay unchanged: space-to-depth concatenates the outputs of as many windows as
the larger width needs. In training, the first layers are frozen, and a gate, which
starts at zero, adds the tokens again after them.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sparse_tube_vit.checkpoints import image_vits, pretrained, stored
from sparse_tube_vit.checkpoints.resizing import positions_at
from sparse_tube_vit.checkpoints.run import describe_run, save_params
from sparse_tube_vit.config import (
    ConfigDict,
    default_config,
    from_json,
    validate,
)
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.models.tubes import (
    Tube,
    kernel_channels,
    pixels_read,
    resize_kernel,
)
from sparse_tube_vit.models.tubevit import init_params, make_model, param_shapes
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.storage import absolute

#: The paper freezes 26 of the 32 layers of H.
FROZEN_FRACTION = 26 / 32  # rounded down to whole layers: 19 of 24, 9 of 12

#: `model.position_gain` beside kept positions: the fixed ones, of amplitude 1, would
#: drown those of an image ViT, and frozen layers leave it where it starts.
POSITION_GAIN = 0.02


class NotScalable(TubeViTError, ValueError):
    """Two models that cannot be combined by scaling up."""


def scale_tube(tube: Tube, clip: Sequence[int], channels: int, width: int) -> Tube:
    """Returns the tube with as many windows per token as a larger width needs.

    Along each axis, the windows per token are a multiple of what they were and divide
    the stride. Of all such factors those with the smallest product are taken; of these,
    those by which the tube reads the most of the clip, as by windows that neither
    overlap nor reach past it; of these, the most equal, then those with most windows
    along time, then down.

    Args:
        tube: Tube of the small model.
        clip: (T, H, W) of a clip.
        channels: d, outputs of its kernel.
        width: D, channels of the larger model's tokens. At least D / d windows per
            token are needed. If they give more channels, the first D are kept, which
            the paper does not state.

    Raises:
        NotScalable: There are no such factors.
        ClipTooSmall: Not even one token fits into the clip.
    """
    needed = math.ceil(width / channels)
    choices = itertools.product(
        *(
            [f for f in range(least, stride + 1, least) if stride % f == 0]
            for least, stride in zip(tube.space_to_depth, tube.stride, strict=True)
        )
    )
    enough = [factors for factors in choices if math.prod(factors) >= needed]
    if not enough:
        raise NotScalable(
            f"Tube {tube}: a width of {width} needs {needed} windows a token of its "
            f"kernel's {channels} channels. The stride {tube.stride} has no factors, "
            f"multiples of {tube.space_to_depth}, that make so many. Train the small "
            "model with a larger stride, or with more channels."
        )

    fewest = min(map(math.prod, enough))
    scaled = [
        dataclasses.replace(tube, space_to_depth=factors, channels=channels)
        for factors in enough
        if math.prod(factors) == fewest
    ]

    def order(tube):
        in_time, down, _ = factors = tube.space_to_depth
        read, equal = pixels_read([tube], clip).sum(), sorted(factors, reverse=True)
        return -read, equal, -in_time, -down

    return min(scaled, key=order)


def scale_tubes(
    tubes: Sequence[Tube],
    clip: Sequence[int],
    channels: Sequence[int],
    width: int,
    patches: Tube,
) -> tuple[Tube, ...]:
    """Returns the tubes of the created model.

    Args:
        tubes: Tubes of the small model.
        clip: (T, H, W) of a clip.
        channels: Outputs of every kernel.
        width: D of the large model.
        patches: Patches of the large model. They replace the tube that reads images,
            and take its stride along time.

    Raises:
        NotScalable, ClipTooSmall: As `scale_tube`; or not exactly one tube reads
            images.
    """
    if sum(tube.reads_images for tube in tubes) != 1:
        raise NotScalable(
            f"Of the small model's tubes [{'; '.join(map(str, tubes))}] one must read "
            "images, for the large model's patches to take its place."
        )
    return tuple(
        dataclasses.replace(patches, stride=(tube.stride[0], *patches.stride[1:]))
        if tube.reads_images
        else scale_tube(tube, clip, d, width)
        for tube, d in zip(tubes, channels, strict=True)
    )


def scale_config(
    config: ConfigDict,
    big: Mapping,
    patches: Tube,
    trained_layers: int | None = None,
    keep_positions: bool = False,
) -> None:
    """Changes the config of a small model to that of the created one.

    Args:
        config: Config of the small model.
        big: The large model's values of `config.model` for its encoder.
        patches: Patches of the large model.
        trained_layers: Last layers of the created model that train; the gate is before
            them. None for the paper's fraction.
        keep_positions: Whether the large model's learned positions are kept beside the
            fixed ones, which the paper has alone.

    Raises:
        NotScalable, ClipTooSmall: As `scale_tubes`; or the small model is the wider
            one, or has learned positions, which fit only its own tokens.
    """
    m = config.model
    if m.positions == "learned" or big["width"] < m.width:
        raise NotScalable(
            f"A model of width {m.width} with {m.positions} positions cannot be scaled "
            f"to a width of {big['width']}: it must not be wider, and its positions "
            "must not be learned."
        )
    tubes = make_tubes(m.tubes)
    channels = kernel_channels(tubes, m.width, m.kernels)
    clip = (config.clip.frames, config.clip.size, config.clip.size)
    tubes = scale_tubes(tubes, clip, channels, big["width"], patches)
    m.update(big, kernels="separate", pooling="attention", registers=0)
    layers = m.depth + m.new_layers
    if trained_layers is None:
        trained_layers = layers - int(FROZEN_FRACTION * layers)
    m.gate_after = layers - trained_layers
    m.tubes = tuple(tube.to_dict() for tube in tubes)
    if keep_positions:
        m.update(positions="learned", position_gain=POSITION_GAIN)
        config.init.positions = "keep"
    config.optimizer.trained_layers = trained_layers


@dataclasses.dataclass(frozen=True)
class PatchViT:
    """A ViT of 2-D patches.

    Attributes:
        model: The values of `config.model` for its encoder.
        patches: Its patches as a tube.
        params: Numpy arrays by path, those of the patches below `stem/tube_0/`.
        dropped: As in `pretrained.WeightsReport`.
        positions: Learned positions of a file's patches (h, w, D), or None.
        interpolation: How these are resized, as in `resizing.positions_at`.
        notes: As in `pretrained.WeightsReport`.
    """

    model: dict
    patches: Tube
    params: dict[str, np.ndarray]
    dropped: dict[str, tuple]
    positions: np.ndarray | None = None
    interpolation: str = "linear"
    notes: Sequence[str] = ()


#: The keys of `config.model` that an encoder's parameters depend on.
_ARCHITECTURE = (
    *("depth", "width", "mlp_dim", "heads", "new_layers"),
    *("gelu", "gated_mlp", "norm_epsilon", "pre_norm"),
)


def read_image_vit(
    path, sizes: Mapping | None = None, normalization: str = ""
) -> PatchViT:
    """Reads the large model.

    Args:
        path: A file as for `config.init.weights`; or any stored model whose only tube
            reads single frames.
        sizes: depth, width, mlp_dim and heads of an image ViT's weights; None: as
            they tell.
        normalization: Of an image ViT's inputs, as `init.normalization`.

    Raises:
        NotScalable: The model is more than an image ViT.
        InvalidConfig: There is no such normalization, or a stored model has its own.
        UnreadableWeights, WeightsDoNotMatch: The file cannot be read.
        The errors of `stored`.
    """
    if image_vits.holds_image_vit(path):
        vit = image_vits.read(path, normalization)
        _, h, w = vit.patch
        config = default_config()
        values = {key: vit.model[key] for key in _ARCHITECTURE if key in vit.model}
        config.model.update(values | dict(sizes or {}))
        config.model.tubes = ({"kernel": (1, h, w), "stride": (1, h, w)},)
        config.init.update(weights=str(path), normalization=normalization)
        model, shapes = _model_and_shapes(config, {})
        params, report = pretrained.initial_params(config, model, shapes, {}, vit)
        about = {
            "dropped": report.dropped,
            "notes": report.notes,
            "positions": vit.arrays.get("positions"),
            "interpolation": vit.family.interpolation,
        }
    else:
        image_vits.refuse_normalization(path, normalization)
        source, about = stored.read(path), {"dropped": {}}
        config, params = from_json(source.description["config"]), source.params
    m, (tube, *others) = config.model, make_tubes(config.model.tubes)
    images_alone = not others and tube.reads_images and tube.windows_per_token == 1
    if not images_alone or m.kernels != "separate" or m.gate_after is not None:
        raise NotScalable(
            f"{path} is not an image ViT, which has one tube, of single frames and "
            "with a kernel of its own, and no gate."
        )
    values = {key: m[key] for key in _ARCHITECTURE}
    return PatchViT(values, tube, flatten_dict(params, sep="/"), **about)


def _model_and_shapes(config, class_names):
    """Returns the model with these heads, and the shapes of its parameters."""
    model = make_model(config, {head: len(c) for head, c in class_names.items()})
    return model, param_shapes(model)


def scale_up(
    small,
    big,
    workdir,
    sizes: Mapping | None = None,
    trained_layers: int | None = None,
    keep_positions: bool = False,
    normalization: str = "",
) -> tuple[ConfigDict, pretrained.WeightsReport]:
    """Writes the created model as a checkpoint that runs can start from.

    The kernels of its tubes are the small model's. Patches, encoder and, if there is
    one, attention pooling are the large model's. All other parameters are new, drawn
    with the seed of the small model's config. It has the heads that the small model's
    streams train.

    Args:
        small: A stored TubeViT: work directory, checkpoint or release.
        big, sizes, normalization: As for `read_image_vit`.
        workdir: Work directory for the created model; no run may use it.
        trained_layers, keep_positions: As for `scale_config`.

    Returns:
        (config, report): The small model's config, changed to train the created model,
        which the checkpoint holds too; and the origin of every parameter.

    Raises:
        NotScalable: The two models do not fit, or the large one has no positions to
            keep.
        InvalidConfig: `trained_layers` is 0, or all layers; or as `read_image_vit`.
        UnreadableWeights, WeightsDoNotMatch: The file cannot be read.
        OtherRun: The work directory is in use.
        The errors of `stored`.
    """
    source = stored.read(small)
    run, config = source.description, from_json(source.description["config"])
    if source.step < config.total_steps:
        log.warning(
            "%s is at step %d of the %d of its run: the large model gets the tubes "
            "that it has by then.",
            source.name,
            source.step,
            config.total_steps,
        )
    kernels = read_kernels(source.params, config)
    image = read_image_vit(big, sizes, normalization)
    trained = {stream.head for stream in config.streams.values()}
    classes = {h: names for h, names in run["class_names"].items() if h in trained}
    config.init.update(default_config().init)
    scale_config(config, image.model, image.patches, trained_layers, keep_positions)
    config.init.weights = absolute(workdir)
    validate(config)
    tubes = make_tubes(config.model.tubes)
    model, shapes = _model_and_shapes(config, classes)
    shapes = flatten_dict(shapes, sep="/")
    match = pretrained.Match(
        pretrained.WeightsReport(
            f"{source.name} and {big}",
            dropped=dict(image.dropped),
            notes=[*image.notes],
        ),
        image.model,
        new=[""],  # whatever neither model has
    )
    for i, (tube, kernel) in enumerate(zip(tubes, kernels, strict=True)):
        for leaf, x in kernel.items():
            name = f"stem/tube_{i}/{leaf}"
            if tube.reads_images:
                match.load(name, image.params[f"stem/tube_0/{leaf}"], f"of {big}")
            else:
                match.load(name, x, f"of {small}")
    gain = source.params.get("positions", {}).get("gain")
    if gain is not None and not keep_positions:
        match.load("positions/gain", gain, f"of {small}")
    if keep_positions:
        if image.positions is None or image.positions.ndim < 3:
            raise NotScalable(
                f"{big} has no learned positions of a square grid of patches to keep."
            )
        for i, tube in enumerate(tubes):
            x = positions_at(image.positions, tube, model.clip, image.interpolation)
            match.load(f"positions/tube_{i}", x.astype(np.float32), f"of {big}")
    for name, x in image.params.items():
        if name.startswith(("encoder/", "pooling/")) and name in shapes:
            match.load(name, x, f"of {big}")
        elif not name.startswith("stem/"):
            match.drop(name, x, f"of {big}")
    match.check({name: x.shape for name, x in shapes.items()}, config.model)

    @jax.jit  # computes the new parameters only
    def new():
        params = init_params(model, jax.random.key(config.seed), model.clip)
        params = flatten_dict(params, sep="/")
        return {name: params[name] for name in match.report.new}

    params = jax.device_get(new()) | match.arrays
    save_params(
        workdir,
        unflatten_dict(params, sep="/"),
        describe_run(config, classes),
    )
    return config, match.report


def read_kernels(params: Mapping, config: ConfigDict) -> list[dict]:
    """Returns {"kernel", "bias"} of every tube, interpolated if the model's are."""
    stem = params["stem"]
    if config.model.kernels == "separate":
        return [stem[f"tube_{i}"] for i in range(len(stem))]
    return [
        stem["shared"]
        | {"kernel": np.asarray(resize_kernel(stem["shared"]["kernel"], tube.kernel))}
        for tube in make_tubes(config.model.tubes)
    ]
