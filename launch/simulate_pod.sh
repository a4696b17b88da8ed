#!/usr/bin/env bash
# N processes on this machine as the N hosts of a pod, with 2 CPU devices each. They run
# the same program with the same arguments; a line begins with the number of its host.
#
#   ./launch/simulate_pod.sh N [train|evaluate] ARGUMENTS        DEVICES=2
#
#   ./launch/simulate_pod.sh 2 --config configs/moving_shapes.py --workdir runs/pod
#   ./launch/simulate_pod.sh 2 evaluate --workdir runs/pod
#
# Ends when all have ended, with 1 if any failed. SIGTERM and Ctrl-C stop all of them.
set -euo pipefail
# shellcheck source=launch/usage.sh
source "$(dirname "$0")/usage.sh"
if ! [[ "${1:-}" =~ ^[1-9][0-9]?$ ]]; then
    usage >&2
    exit 2
fi
hosts="$1" program=train
shift
case "${1:-}" in train | evaluate)
    program="$1"
    shift
    ;;
esac
# An environment that is active is used as it is.
# shellcheck source=launch/setup.sh
[ -n "${VIRTUAL_ENV:-}" ] || source "$(dirname "$0")/setup.sh"

export JAX_PLATFORMS=cpu JAX_NUM_PROCESSES="$hosts"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-2}"
port="$(python -c 'import socket; s = socket.create_server(("", 0))
print(s.getsockname()[1])')"
export JAX_COORDINATOR_ADDRESS="localhost:$port"

pids=()
signalled=
stop() {
    signalled=yes
    kill -TERM "${pids[@]}" 2>/dev/null || true
}
# A terminal's Ctrl-C reaches the hosts too, who take it once they train, and twice.
trap stop INT TERM
for ((host = 0; host < hosts; host++)); do
    JAX_PROCESS_ID="$host" python -u -m "sparse_tube_vit.$program" "$@" \
        > >(sed -u -e '/^\[Gloo\]/d' -e "s/^/[$host] /") 2>&1 &
    pids+=("$!")
    echo "[$host] process $!"
done
# Once is enough, and a signal that meets the end of a host can take its exit code.
trap 'trap "" INT TERM; stop' INT TERM
[ -z "$signalled" ] || stop # the hosts that started after it

failed=0
for host in "${!pids[@]}"; do
    while
        code=0 signalled=
        wait "${pids[host]}" 2>/dev/null || code=$?
        [ -n "$signalled" ] # which ended wait
    do :; done
    echo "[$host] ended with $code"
    [ "$code" = 0 ] || failed=1
done
exit "$failed"
