"""Model sizes (paper table 11) and sets of tubes (tables 12 and 3.4), by name."""

from collections.abc import Iterable, Mapping

import jax.numpy as jnp

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.model import TubeViT
from sparse_tube_vit.tubes import Tube, count_tokens

#: Encoder sizes. "Ti" and "S" are those of ViT; the paper uses Ti in table 9.
VARIANTS = {
    "Ti": {"depth": 12, "width": 192, "mlp_dim": 768, "heads": 3},
    "S": {"depth": 12, "width": 384, "mlp_dim": 1536, "heads": 6},
    "B": {"depth": 12, "width": 768, "mlp_dim": 3072, "heads": 12},
    "L": {"depth": 24, "width": 1024, "mlp_dim": 4096, "heads": 16},
    "H": {"depth": 32, "width": 1280, "mlp_dim": 5120, "heads": 16},
}

_IMAGE = Tube(kernel=(1, 16, 16), stride=(32, 16, 16))

#: Sets of tubes. 32x224x224 gives 539 tokens with "main", which the paper counts as
#: 559: no arithmetic of windows that we know gives that number.
TUBE_SETS = {
    "main": (
        Tube(kernel=(8, 8, 8), stride=(16, 32, 32)),
        Tube(kernel=(16, 4, 4), stride=(6, 32, 32), offset=(4, 8, 8)),
        Tube(kernel=(4, 12, 12), stride=(16, 32, 32), offset=(0, 16, 16)),
        _IMAGE,
    ),
    "core": (
        Tube(kernel=(1, 16, 16), stride=(16, 16, 16)),
        Tube(kernel=(8, 8, 8), stride=(16, 16, 16)),
    ),
    "image": (_IMAGE,),
}


class UnknownTubes(TubeViTError, ValueError):
    """Tubes that are neither a known set nor given by their sizes."""


def make_tubes(tubes: str | Iterable[Mapping]) -> tuple[Tube, ...]:
    """Tubes by the name of a set, or from mappings with kernel, stride and offset.

    Raises:
      UnknownTubes: no such set, or a mapping that makes no tube.
    """
    if isinstance(tubes, str):
        if tubes not in TUBE_SETS:
            raise UnknownTubes(
                f"There is no set of tubes {tubes!r}; there are {', '.join(TUBE_SETS)}."
            )
        return TUBE_SETS[tubes]
    try:
        return tuple(Tube(**tube) for tube in tubes)
    except (TypeError, ValueError) as error:
        raise UnknownTubes(
            f"config.model.tubes is {tubes}, which is neither the name of a set nor a "
            f"tuple of dicts with kernel, stride and offset: {error}"
        ) from error


def make_model(config: ConfigDict, classes: Mapping[str, int]) -> TubeViT:
    """The model of a config, with a head of so many classes for every name.

    Raises:
      UnknownTubes, ClipTooSmall: the tubes are wrong, or do not fit the config's clips.
    """
    m = config.model
    tubes = make_tubes(m.tubes)
    count_tokens(tubes, (config.clip.frames, config.clip.size, config.clip.size))
    return TubeViT(
        tubes=tubes,
        classes=dict(classes),
        depth=m.depth,
        width=m.width,
        mlp_dim=m.mlp_dim,
        heads=m.heads,
        dropout=m.dropout,
        dtype=jnp.dtype(m.dtype),
    )
