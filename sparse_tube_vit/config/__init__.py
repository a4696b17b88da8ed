"""Configurations: every key with its default and its rule, and command lines."""

from sparse_tube_vit.config.model import MODEL, EncoderOptions
from sparse_tube_vit.config.schema import (
    ConfigDict,
    InvalidConfig,
    arguments,
    check_values,
    default_config,
    differences,
    evaluation,
    from_json,
    head_loss,
    is_weights_file,
    leave_open,
    open_keys,
    profiled_steps,
    smoke,
    stream,
    validate,
)

__all__ = [
    "ConfigDict",
    "EncoderOptions",
    "InvalidConfig",
    "MODEL",
    "arguments",
    "check_values",
    "default_config",
    "differences",
    "evaluation",
    "from_json",
    "head_loss",
    "is_weights_file",
    "leave_open",
    "open_keys",
    "profiled_steps",
    "smoke",
    "stream",
    "validate",
]
