"""Normalization of an image ViT's inputs, folded into its patch kernel.

Image ViTs compute with (x - mean) / std of pixels x in 0..1, TubeViT with 2 x - 1. As
patches are linear, a kernel and a bias for the latter give the same tokens.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from sparse_tube_vit.checkpoints.image_vits.files import UnreadableWeights
from sparse_tube_vit.config import InvalidConfig

#: Means and standard deviations of pixels in 0..1, by what `init.normalization` may be.
KINDS = {
    "half": ((0.5,) * 3, (0.5,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of inputs, and where they come from.

    Attributes:
        mean, std: Of red, green and blue, in 0..1.
        why: "by preprocessor_config.json".
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    why: str

    def __str__(self):
        known = {v: k for k, v in KINDS.items()}
        mean, std = (", ".join(f"{x:g}" for x in v) for v in (self.mean, self.std))
        name = known.get((self.mean, self.std), "its own")
        return f"{name} (mean {mean}; std {std}), {self.why}"

    @property
    def is_ours(self) -> bool:
        return (self.mean, self.std) == KINDS["half"]

    def fold(self, kernel: np.ndarray, bias: np.ndarray):
        """Returns (kernel, bias) for inputs in [-1, 1] that give the same tokens.

        Args:
            kernel: (..., h, w, 3, D).
            bias: (D,).
        """
        if self.is_ours:
            return kernel, bias
        mean, std = np.array(self.mean), np.array(self.std)
        of_grey = kernel.astype(np.float64).sum(tuple(range(kernel.ndim - 2)))
        bias = bias + ((0.5 - mean) / std) @ of_grey
        return kernel * (0.5 / std)[:, None], bias


def choose(
    asked: str, config: Mapping, preprocessor: Mapping, family, path=""
) -> Normalization:
    """Returns the normalization of a file.

    Args:
        asked: A key of `KINDS`, which goes before what the files say, or "".
        config: `config.json`; that of timm has it in `pretrained_cfg`.
        preprocessor: `preprocessor_config.json` of transformers.
        family: The file's `Family`.
        path: The file, for messages.

    Raises:
        InvalidConfig: `asked` is not a key of `KINDS`.
        UnreadableWeights: The mean or standard deviation in the files is invalid.
    """
    if asked:
        if asked not in KINDS:
            kinds = ", ".join(KINDS)
            raise InvalidConfig(f"normalization is {asked!r}: it must be of {kinds}.")
        return Normalization(*KINDS[asked], "as asked for")
    timm = config.get("pretrained_cfg", config)
    if "mean" in timm and "std" in timm:
        return _from_file(path, "config.json", timm["mean"], timm["std"])
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if not preprocessor.get("do_normalize", True):
        mean, std = 0, 1  # whatever they are, or without any
    if mean is not None and std is not None:
        factor = preprocessor.get("rescale_factor", 1 / 255)
        factor = factor if preprocessor.get("do_rescale", True) else 1
        return _from_file(path, "preprocessor_config.json", mean, std, factor)
    why = f"as most {family.name} models of {family.codebase}"
    if family.shared:
        other = "half" if family.normalization == "imagenet" else "imagenet"
        why += (
            f"; {family.shared} have the same names: for them, "
            f"--config.init.normalization={other}, or where no run is trained, "
            f"--normalization={other}"
        )
    return Normalization(*KINDS[family.normalization], why)


def _from_file(path, file, mean, std, factor=1 / 255):
    """Returns what a file beside `path` does to pixels in 0..255 times the factor."""
    try:
        values = np.stack([np.broadcast_to(x, 3) for x in (mean, std)])
        if not (factor > 0 and np.isfinite(values).all() and (values[1] > 0).all()):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise UnreadableWeights(
            f"{file} beside {path} normalizes pixels times {factor} by mean {mean} and "
            f"std {std}: expected three numbers each, and std above 0. Correct it, or "
            f"choose a normalization: {', '.join(KINDS)}."
        ) from error
    mean, std = (values / (255 * factor)).round(9).tolist()
    return Normalization(tuple(mean), tuple(std), f"by {file}")
