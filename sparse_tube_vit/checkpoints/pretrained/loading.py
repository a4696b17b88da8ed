"""Initial parameters from an image ViT's weights, another run, or a release."""

from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sparse_tube_vit.checkpoints import image_vits
from sparse_tube_vit.checkpoints.pretrained.image_vit import match_image_vit
from sparse_tube_vit.checkpoints.pretrained.matching import WeightsReport
from sparse_tube_vit.checkpoints.pretrained.run import match_run
from sparse_tube_vit.config import ConfigDict, InvalidConfig, wrong_source
from sparse_tube_vit.models.tubevit import TubeViT


def initial_params(
    config: ConfigDict,
    model: TubeViT,
    shapes,
    class_names: Mapping[str, tuple],
    vit: image_vits.ImageViT | None = None,
) -> tuple[dict, WeightsReport]:
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
    shapes = {name: x.shape for name, x in flatten_dict(shapes, sep="/").items()}
    image = vit is not None or image_vits.holds_image_vit(path)
    if wrong := [*wrong_source(config, image)]:
        raise InvalidConfig("\n".join(["The configuration cannot work:", *wrong]))
    if image:
        vit = vit or image_vits.read(path, config.init.normalization)
        match = match_image_vit(vit, config, model, shapes)
    else:
        match = match_run(path, config, shapes, class_names)
    match.check(shapes, config.model)
    arrays = {name: x.astype(np.float32) for name, x in match.arrays.items()}
    return unflatten_dict(arrays, sep="/"), match.report
