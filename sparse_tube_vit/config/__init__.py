"""Configurations: keys with defaults, rules and meanings, and command lines."""

from ml_collections import ConfigDict

from sparse_tube_vit.config.files import arguments, smoke
from sparse_tube_vit.config.keys import InvalidConfig
from sparse_tube_vit.config.model import MODEL, EncoderOptions
from sparse_tube_vit.config.rules import (
    check_values,
    from_json,
    head_loss,
    profiled_steps,
    validate,
    worker_shares,
    wrong_source,
)
from sparse_tube_vit.config.schema import (
    PICKLES,
    VIEWS,
    default_config,
    differences,
    evaluation,
    get_key,
    input_size,
    leave_open,
    open_keys,
    set_key,
    stream,
)

__all__ = [
    "ConfigDict",
    "EncoderOptions",
    "InvalidConfig",
    "MODEL",
    "PICKLES",
    "VIEWS",
    "arguments",
    "check_values",
    "default_config",
    "differences",
    "evaluation",
    "from_json",
    "get_key",
    "head_loss",
    "input_size",
    "leave_open",
    "open_keys",
    "profiled_steps",
    "set_key",
    "smoke",
    "stream",
    "validate",
    "worker_shares",
    "wrong_source",
]
