"""Parameters that a fresh run takes from other weights."""

from collections.abc import Mapping

from sparse_tube_vit.checkpoints import pretrained
from sparse_tube_vit.config import ConfigDict
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
        TubeViTError: The named errors of `checkpoints.pretrained`.
    """
    if config.init.weights:
        params, report = pretrained.initial_params(
            config, program.model, program.state.params, class_names
        )
        log.info("%s", report)
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
