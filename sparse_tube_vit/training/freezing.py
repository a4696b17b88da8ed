"""Training of the last layers only (paper 3.6, tables 6 and 9).

Frozen parameters are excluded from differentiation, from the optimizer's state and from
the average. Dropout acts in frozen layers too. Layers that wait for
`optimizer.head_steps` steps have a state, and are not differentiated meanwhile.
"""

from collections.abc import Iterable, Mapping

from flax.traverse_util import flatten_dict, unflatten_dict

from sparse_tube_vit.config import ConfigDict, EncoderOptions
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.encoder import block_names

#: Path prefixes of the parameters that stand before the first block.
BELOW_BLOCKS = ("stem", "positions", "class_token", "registers", "encoder/pre_norm")

#: Path of the gate (paper, equation 8).
GATE = "encoder/gate"


class NewButFrozen(TubeViTError, ValueError):
    """Frozen parameters would keep their random initial values."""


def frozen_parts(config: ConfigDict) -> tuple[str, ...]:
    """Returns the path prefixes of the parameters that a config freezes.

    `optimizer.trained_layers` N freezes tubes, positions, class token, registers, all
    blocks but the last N, and a gate before the last of these; with N = 0, the
    encoder's norm too, so that only pooling and heads train. The heads of
    `init.keep_heads` are always frozen.
    """
    kept = tuple(f"head_{head}" for head in config.init.keep_heads)
    if config.optimizer.trained_layers is None:
        return kept
    return (*_first_layers(config, EncoderOptions.of(config).frozen_layers), *kept)


def waiting_parts(config: ConfigDict) -> tuple[str, ...]:
    """Returns the path prefixes of what waits for `optimizer.head_steps` steps.

    All but pooling, heads, and fresh blocks with the norm after them.
    """
    return (*_first_layers(config, config.model.depth), GATE)


def _first_layers(config, s):
    blocks = block_names(config.model.depth, config.model.new_layers)
    layers = [*blocks[:s], *(["norm"] if s == len(blocks) else [])]
    after = config.model.gate_after
    gate = [GATE] if after is not None and after < s else []
    return (*BELOW_BLOCKS, *(f"encoder/{layer}" for layer in layers), *gate)


def partition(params: Mapping, parts: tuple[str, ...]) -> tuple[dict, dict]:
    """Splits parameters into (trained, frozen), the latter below the prefixes."""
    halves = ({}, {})
    for name, x in flatten_dict(params, sep="/").items():
        halves[inside(name, parts)][name] = x
    return tuple(unflatten_dict(half, sep="/") for half in halves)


def join(params: Mapping, other: Mapping) -> dict:
    """Returns the parameters with those of `other` added or replaced."""
    return unflatten_dict(flatten_dict(params) | flatten_dict(other))


def check_new(names: Iterable[str], config: ConfigDict) -> None:
    """Raises NewButFrozen if parameters that `init.weights` lacks are frozen.

    The gain of positions may be: the config sets its value.

    Args:
        names: Paths a/b/c of the new parameters.
        config: The config of the run.
    """
    parts = frozen_parts(config)
    drawn = [name for name in names if name != "positions/gain"]
    if lacking := [name for name in drawn if inside(name, parts)]:
        raise NewButFrozen(
            f"{config.init.weights} has no {', '.join(lacking)}, which "
            f"optimizer.trained_layers {config.optimizer.trained_layers} keeps from "
            "being trained. Train more, or start from weights that have them."
        )


def check_gate(params: Mapping, config: ConfigDict) -> None:
    """Raises NewButFrozen if the gate is frozen at 0, as scaling up makes it.

    Args:
        params: Parameters that a run starts from.
        config: The config of the run.
    """
    gate = flatten_dict(params, sep="/").get(GATE)
    if gate is not None and gate == 0 and inside(GATE, frozen_parts(config)):
        raise NewButFrozen(
            f"The gate of {config.init.weights} is 0, and would stay so: it follows "
            f"block {config.model.gate_after}, which optimizer.trained_layers "
            f"{config.optimizer.trained_layers} freezes. Set model.gate_after to "
            f"{EncoderOptions.of(config).frozen_layers}, or train more."
        )


def inside(name: str, parts: Iterable[str]) -> bool:
    """Returns whether a parameter's path a/b/c begins with one of the prefixes."""
    return f"{name}/".startswith(tuple(f"{part}/" for part in parts))
