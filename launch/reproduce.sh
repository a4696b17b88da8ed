#!/usr/bin/env bash
# The paper's tables at a small scale: runs what has no result yet, the cheapest first,
# and writes docs/reproduction.md. Stopped, the same command goes on.
#
#   ./launch/reproduce.sh [TABLE ...] [--tasks TASK ...] [--seeds 3]
#   ./launch/reproduce.sh 5 --tasks moving_shapes       needs no data
#   ./launch/reproduce.sh --ucf101 DIR --images DIR     prepares UCF101 (DIR/videos, and the
#                                                       lists in DIR) and Tiny-ImageNet;
#     docs/reproduction is of a part of UCF101 (212 test clips): of all of its clips,
#     give --runs, --results and --document of your own
#   ./launch/reproduce.sh 8 --weights DIR               from an image ViT of size S, /14
#   ./launch/reproduce.sh --dry_run                     what is left, with minutes
#   ./launch/reproduce.sh --full 5                      the commands at full size
#
# Paths are taken from the repository. Work directories stay, in runs/reproduction: of runs
# from an image ViT 0.3 GB each.
# In the background: nohup nice ./launch/reproduce.sh >reproduce.log 2>&1 &
# With a GPU: JAX_PLATFORMS=cuda ./launch/reproduce.sh, in an active venv that has it.
# All options: sparse-tube-vit reproduce --help
set -euo pipefail
# shellcheck source=launch/usage.sh
source "$(dirname "$0")/usage.sh"
cd "$(dirname "$0")/.."
# An environment that is active is used as it is.
if [ -z "${VIRTUAL_ENV:-}" ]; then
    if command -v nvidia-smi >/dev/null; then
        echo "This uses the CPU. For the GPU, start it in an environment by docs/gpu.md." >&2
    fi
    # shellcheck source=launch/setup.sh
    source launch/setup.sh
fi
exec python -m sparse_tube_vit.reproduce "$@"
