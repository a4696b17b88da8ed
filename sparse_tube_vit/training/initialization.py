"""Parameters that a fresh run takes from other weights."""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sparse_tube_vit.checkpoints import pretrained
from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.distributed import hosts
from sparse_tube_vit.log import log
from sparse_tube_vit.training.freezing import check_gate, check_new
from sparse_tube_vit.training.program import Program


def initial_params(
    config: ConfigDict, program: Program, class_names: Mapping[str, tuple[str, ...]]
) -> dict:
    """Returns the parameters from `init.weights`, a part of the tree; logs a report.

    Without `init.weights` there are none: all parameters are drawn at random.

    Args:
        config: The config of the run.
        program: Its model and the shapes of its parameters.
        class_names: The class names of every head.

    Raises:
        NewButFrozen: Frozen parameters are missing from the weights, or a frozen gate
            is 0 there.
        HostsDiffer: This host reads other weights than the first.
        TubeViTError: The named errors of `checkpoints.pretrained`.
    """
    if config.init.weights:
        params, report = pretrained.initial_params(
            config, program.model, program.state.params, class_names
        )
        log.info("%s", report)
        if jax.process_count() > 1:  # such as another step, if their run goes on
            read = {"from": report.source, "content": _digest(params)}
            hosts.check_same({"init.weights": read}, name="init.weights")
        check_new(report.new, config)
        check_gate(params, config)
        return params
    if config.optimizer.trained_layers is not None:
        log.warning(
            "optimizer.trained_layers is %d and init.weights is empty: what is frozen "
            "keeps its random parameters.",
            config.optimizer.trained_layers,
        )
    return {}


def _digest(params):
    digest = hashlib.sha256()
    for name, array in sorted(flatten_dict(params, sep="/").items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
