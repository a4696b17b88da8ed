#!/usr/bin/env bash
# Trains on GKE by XPK (github.com/AI-Hypercomputer/xpk), which makes the JobSet.
#
#   ./launch/gke/xpk.sh CLUSTER NAME TYPE SLICES IMAGE --config=FILE --workdir=gs://...
#                       [--config.key=VALUE ...]
#
# TYPE is an accelerator type as for tpu_vm.sh, IMAGE that of launch/gke/Dockerfile. Of
# several SLICES, --config.mesh.slices has to be told as well. XPK takes the cluster's
# project and zone from gcloud's configuration. Hosts wait a day for those that have no
# node yet. Where the run ends early, as when a host is taken away, it is resumed:
# RESTARTS times, 10 if not set.
set -euo pipefail
# shellcheck source=launch/usage.sh
source "$(dirname "$0")/../usage.sh"
if [ $# -lt 7 ]; then
    usage >&2
    exit 2
fi
cluster="$1" name="$2" type="$3" slices="$4" image="$5"
shift 5
command -v xpk >/dev/null || {
    echo "NoXpk: xpk is not on PATH: pip install xpk" >&2
    exit 1
}
# A shell in the container reads the command; exec, so that SIGTERM gets to train.py,
# by tini: as the first process, Python would ignore it before it trains.
printf -v arguments ' %q' "$@"
exec xpk workload create --cluster="$cluster" --workload="$name" --tpu-type="$type" \
    --num-slices="$slices" --docker-image="$image" --restart-on-exit-codes=1,75 \
    --max-restarts="${RESTARTS:-10}" --termination-grace-period-seconds=300 \
    --command="exec tini -- env HOSTS_START_SECONDS=86400 python -m sparse_tube_vit.train$arguments"
