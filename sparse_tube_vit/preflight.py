"""What a config's training would take on a TPU pod, before one is paid for.

    python -m sparse_tube_vit.preflight --config configs/X.py --topology v5e:16x16

Compiles the train step for the pod, with its shardings, on a machine that needs no TPU
but the TPU compiler (pip install "jax[tpu]"), and reads what it takes in the compiled
program. All times are predictions of the compiler's cost model, not measurements. Ends
with exit code 1 if the step does not fit the memory of a chip.
"""

import jax
from absl import app, flags
from ml_collections import config_flags

from sparse_tube_vit.config.flags import parse_flags
from sparse_tube_vit.errors import reported
from sparse_tube_vit.log import to_stderr
from sparse_tube_vit.tpu.preflight import UnknownClasses, run


def given_classes(texts):
    given = {}
    for text in texts:
        head, _, number = text.partition("=")
        if not number.isdigit() or not int(number):
            raise UnknownClasses(f"--classes takes head=N, not {text!r}.")
        given[head] = int(number)
    return given


def main(argv):
    del argv
    to_stderr()
    jax.config.update("jax_platforms", "cpu")  # the TPUs are not here
    with reported():
        run(_CONFIG.value, _TOPOLOGY.value, given_classes(_CLASSES.value), _JSON.value)


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
