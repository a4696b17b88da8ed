#!/usr/bin/env bash
# The main job on the embedded data, on this machine's CPU: sets up, makes moving_shapes,
# trains jointly on images and videos, evaluates, draws figures, puts all of it on one
# page, and ends with the accuracies.
#
#   ./launch/local.sh [--config.key=value ...]      WORKDIR=runs/moving_shapes
set -euo pipefail
# shellcheck source=launch/usage.sh
source "$(dirname "$0")/usage.sh"
# shellcheck source=launch/setup.sh
source "$(dirname "$0")/setup.sh"
workdir="${WORKDIR:-runs/moving_shapes}"

python -m sparse_tube_vit.train --config configs/moving_shapes.py \
    --workdir "$workdir" "$@"
python -m sparse_tube_vit.figures run --workdir "$workdir"
python -m sparse_tube_vit.report --workdir "$workdir"
