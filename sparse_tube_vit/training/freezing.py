"""Training the last layers alone (paper 3.6, tables 6 and 9).

What stands below them is left out of differentiation, of the optimizer's state and of
the average of the parameters. Dropout acts in frozen layers as in others.
"""

from collections.abc import Iterable, Mapping

from flax.traverse_util import flatten_dict, unflatten_dict

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.encoder import block_names


class NewButFrozen(TubeViTError, ValueError):
    """Parameters would keep the random values that they begin with."""


def frozen_parts(config: ConfigDict) -> tuple[str, ...]:
    """Parts of the parameters that `optimizer.frozen_layers` holds fast, by path.

    With s of the blocks frozen: what makes the tokens, and these blocks. The encoder's
    norm follows the last block and is frozen with it; pooling and heads are trained,
    but for the heads of `init.keep_heads`.
    """
    s = config.optimizer.frozen_layers
    kept = tuple(f"head_{head}" for head in config.init.keep_heads)
    if s is None:
        return kept
    blocks = block_names(config.model.depth, config.model.new_layers)
    layers = [*blocks[:s], *(["norm"] if s == len(blocks) else [])]
    return (
        "stem",
        "positions",
        "class_token",
        *(f"encoder/{layer}" for layer in layers),
        *kept,
    )


def split(params: Mapping, parts: tuple[str, ...]) -> tuple[dict, dict]:
    """(trained, frozen): the parameters outside and inside of `parts`."""
    halves = ({}, {})
    for name, x in flatten_dict(params, sep="/").items():
        halves[_inside(name, parts)][name] = x
    return tuple(unflatten_dict(half, sep="/") for half in halves)


def join(params: Mapping, other: Mapping) -> dict:
    """Parameters with those of `other` added, or put in their place."""
    return unflatten_dict(flatten_dict(params) | flatten_dict(other))


def check_new(names: Iterable[str], config: ConfigDict) -> None:
    """Raises NewButFrozen if parameters that `init.weights` lacks are frozen.

    Args:
      names: of the new parameters, as a/b/c.
      config: of the run.
    """
    parts = frozen_parts(config)
    if lacking := [name for name in names if _inside(name, parts)]:
        raise NewButFrozen(
            f"{config.init.weights} has no {', '.join(lacking)}, which "
            f"optimizer.frozen_layers {config.optimizer.frozen_layers} keeps from "
            "being trained. Freeze less, or start from weights that have them."
        )


def _inside(name, parts):
    return f"{name}/".startswith(tuple(f"{part}/" for part in parts))
