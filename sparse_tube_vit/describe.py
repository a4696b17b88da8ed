"""Prints a config's model: tubes, tokens, parameters and FLOPs.

    python -m sparse_tube_vit.describe --config configs/X.py [--config.key=value ...]

FLOPs are those of one view forward, a multiply-add counted as two: of the matrix
products by formula, and of the whole program as XLA counts.
"""

from absl import app, flags
from ml_collections import config_flags

from sparse_tube_vit.config.flags import parse_flags
from sparse_tube_vit.errors import reported
from sparse_tube_vit.training.description import describe


def main(argv):
    del argv
    with reported():
        print(describe(_CONFIG.value))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=parse_flags)
