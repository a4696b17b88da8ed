#!/usr/bin/env bash
# Sets up .venv and runs the linters and the tests. With --newest, the tests alone, with the
# newest versions that setup.py allows, in an environment of their own.
#
#   ./launch/test.sh [--newest] [pytest's options]     PYTHON=python3.13
#
#   --slow       the long tests too; those of PyTorch's TubeViT, of compiling for TPUs and
#                of TensorFlow's exports run where torch, libtpu and tensorflow are
#   -m smoke     a short set: load, predict, train, evaluate
set -euo pipefail
# shellcheck source=launch/usage.sh
source "$(dirname "$0")/usage.sh"
newest=
if [ "${1:-}" = --newest ]; then
    newest=yes
    shift
fi
# shellcheck source=launch/setup.sh
source "$(dirname "$0")/setup.sh"
if [ -z "$newest" ]; then # newer linters may ask for other things
    ruff check .
    ruff format --check .
    lint-imports --no-cache
    shellcheck --external-sources launch/*.sh launch/gke/*.sh
fi
python -m pytest -n auto --dist loadfile tests "$@"
