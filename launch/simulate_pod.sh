#!/usr/bin/env bash
# N processes on this machine as the N hosts of a pod, with 2 CPU devices each. They run
# the same program with the same arguments; lines begin with the number of their host.
#
#   ./launch/simulate_pod.sh N [MODULE] --config FILE --workdir DIR [...]
#
# MODULE is train or evaluate. Ends when all have ended, with 1 if any failed. SIGTERM and
# Ctrl-C are passed on to all. DEVICES=4 gives each host 4 devices.
set -euo pipefail
case "${1:-}" in
[1-9] | [1-9][0-9]) hosts="$1" ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
shift
module=train
case "${1:-}" in
train | evaluate)
    module="$1"
    shift
    ;;
esac
# An activated environment is used as it is.
[ -n "${VIRTUAL_ENV:-}" ] || source "$(dirname "$0")/setup.sh"

export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES:-2} ${XLA_FLAGS:-}"
export JAX_NUM_PROCESSES="$hosts"
port="$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"
export JAX_COORDINATOR_ADDRESS="localhost:$port"

set -m # every host in a process group of its own: Ctrl-C reaches it from here alone
pids=()
for ((host = 0; host < hosts; host++)); do
    JAX_PROCESS_ID="$host" python -u -m "sparse_tube_vit.$module" "$@" \
        > >(sed -u -e '/^\[Gloo\]/d' -e "s/^/[$host] /") 2>&1 &
    pids+=("$!")
    echo "[$host] process $!"
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM
trap 'kill -INT "${pids[@]}" 2>/dev/null || true' INT

failed=0
for ((host = 0; host < hosts; host++)); do
    while
        code=0
        wait "${pids[host]}" || code=$?
        kill -0 "${pids[host]}" 2>/dev/null
    do :; done # a signal ended the wait, not the host
    echo "[$host] ended with $code"
    [ "$code" = 0 ] || failed=1
done
exit "$failed"
