#!/usr/bin/env bash
# Times training and inference on this machine's GPU, beside the same model in PyTorch,
# in one run of at most eight minutes: results.json and table.md in runs/gpu_benchmark.
#
#   ./launch/gpu_benchmark.sh [--minutes 8] [arguments of `benchmark gpu`: docs/gpu.md]
#
#   PYTHON=python3.12    has jax with CUDA; and PyTorch, timm, transformers to compare
#   WHEELS=DIR           wheels of what else is needed, for a machine without network
#
# Installs nothing into PYTHON: packages that it lacks go to build/gpu_packages. Programs
# stay compiled in build/benchmark, so that a second call measures more rows.
set -euo pipefail
# shellcheck source=launch/usage.sh
source "$(dirname "$0")/usage.sh"
began="$(date +%s)"
python="${PYTHON:-python3}" wheels="${WHEELS:+$(realpath "$WHEELS")}"
case "$python" in */*) python="$(realpath --no-symlinks "$python")" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

"$python" -c 'import jax' || {
    echo "$python has no jax. Name one that has it: PYTHON=python3.12 $0" >&2
    exit 1
}
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
packages="$PWD/build/gpu_packages/$version"
export PYTHONPATH="$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}"

# As benchmark gpu imports them.
if ! "$python" -c 'import etils.epath, flax, ml_collections, optax' 2>/dev/null; then
    mkdir -p "$packages"
    pip() {
        "$python" -m pip --disable-pip-version-check "$@"
    }
    from=(${wheels:+--no-index --find-links "$wheels"})
    # What is installed keeps its version, jax, numpy and torch above all: pip tells
    # what to add to it, and only that goes into the folder.
    pip list --format=freeze >"$packages/installed.txt"
    pip install --quiet --dry-run --report "$packages/report.json" \
        --constraint "$packages/installed.txt" "${from[@]}" \
        'flax>=0.12' 'optax>=0.2.6' 'ml-collections>=1.1' 'etils[epath]>=1.13'
    "$python" - "$packages/report.json" >"$packages/added.txt" <<'EOF'
import json, sys

for package in json.load(open(sys.argv[1]))["install"]:
    print("{name}=={version}".format(**package["metadata"]))
EOF
    pip install --quiet --no-deps --upgrade --target "$packages" "${from[@]}" \
        --requirement "$packages/added.txt"
fi
exec "$python" -m sparse_tube_vit.benchmark gpu --since "$began" "$@"
