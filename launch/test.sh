#!/usr/bin/env bash
# Sets up and passes all tests. Arguments go to pytest: --slow runs the long ones too.
set -euo pipefail
# shellcheck source=launch/usage.sh
source "$(dirname "$0")/usage.sh"
# shellcheck source=launch/setup.sh
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
lint-imports --no-cache
shellcheck --external-sources launch/*.sh launch/gke/*.sh
python -m pytest -n auto --dist loadfile tests "$@"
