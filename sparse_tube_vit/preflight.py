"""Predicts what a config's training takes on a TPU pod, without one.

    python -m sparse_tube_vit.preflight --config configs/X.py --topology v5e:16x16

Compiles the train step for the pod, with its shardings, on a machine that has the TPU
compiler (pip install "jax[tpu]") and no TPU, and reads memory, time and collectives in
the compiled program. All times are predictions of the compiler's cost model, not
measurements. Ends with exit code 1 if the step does not fit the memory of a chip.
"""

import json

import jax
from absl import app, flags
from ml_collections import config_flags

from sparse_tube_vit.config.flags import parse_flags
from sparse_tube_vit.errors import reported
from sparse_tube_vit.log import to_stderr
from sparse_tube_vit.tpu.chips import Topology
from sparse_tube_vit.tpu.preflight import UnknownClasses, head_classes, preflight
from sparse_tube_vit.tpu.report import to_json, to_text


def main(argv):
    del argv
    to_stderr()
    jax.config.update("jax_platforms", "cpu")  # compiling needs no TPU
    with reported():
        config = _CONFIG.value
        topology = Topology.parse(_TOPOLOGY.value, config.mesh.slices)
        classes = head_classes(config, given_classes(_CLASSES.value))
        result = preflight(config, topology, classes)
        print(json.dumps(to_json(result), indent=1) if _JSON.value else to_text(result))


def given_classes(texts):
    given = {}
    for text in texts:
        head, _, number = text.partition("=")
        if not number.isdigit() or not int(number):
            raise UnknownClasses(f"--classes takes head=N, not {text!r}.")
        given[head] = int(number)
    return given


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _TOPOLOGY = flags.DEFINE_string(
        "topology", None, "Chip and grid of a slice: v5e:16x16, v5p:4x4x8, v4, v6e."
    )
    _CLASSES = flags.DEFINE_multi_string(
        "classes", [], "head=N, for a data set that is not prepared; may be repeated."
    )
    _JSON = flags.DEFINE_boolean("json", False, "Print JSON.")
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main, flags_parser=parse_flags)
