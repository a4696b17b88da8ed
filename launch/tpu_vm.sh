#!/usr/bin/env bash
# Trains on Cloud TPU VMs, a single one or pods of them, from this machine by gcloud.
#
#   ./launch/tpu_vm.sh create NAME --accelerator_type TYPE --config FILE
#       makes a TPU VM now, or fails where there is no room for it
#   ./launch/tpu_vm.sh queue NAME --accelerator_type TYPE --config FILE [--wait]
#       asks for it by a queued resource; --wait returns when it is there
#   ./launch/tpu_vm.sh setup NAME
#       brings the committed code and the pinned environment to every worker
#   ./launch/tpu_vm.sh run NAME --config FILE --workdir gs://... [--config.key=VALUE]
#       trains on every worker, beyond this session; the same command resumes
#   ./launch/tpu_vm.sh logs NAME [--worker N|SLICE/N|all] [--lines 50] [--no_follow]
#   ./launch/tpu_vm.sh status NAME
#       the resource's state, and whether the run lives, on every worker
#   ./launch/tpu_vm.sh stop NAME [--timeout_seconds 600] [--kill]
#       the run saves and stops; --kill: ends a hung one without saving
#   ./launch/tpu_vm.sh delete NAME [--quiet]
#   ./launch/tpu_vm.sh watch NAME (options of queue and of run) [--poll_seconds 60]
#                            [--restarts 3] [--then_delete]
#       queue, setup and run, again after each preemption, until the run is done; a run
#       that fails is resumed, up to 3 times without an hour of training in between
#
# Options of all:
#   --zone ZONE --project PROJECT  gcloud's defaults if absent
#   --slices N                     a queued pod of N slices, on which config.mesh.slices
#                                  is N; repeat it in every command
#   --ssh_flag=--FLAG              for gcloud's ssh and scp: --internal-ip,
#                                  --tunnel-through-iap
#   --dry_run                      prints every command and calls none
# Of create, queue and watch:
#   --spot                         may be preempted, costs less
#   --runtime_version VERSION      the VM's image, if not the usual one of TYPE
#   --create_flag=--FLAG=VALUE     for gcloud: --network, --service-account, --reserved
#   --no_preflight                 does not compile FILE for TYPE first, to see that it
#                                  fits; --config is then not needed
#   --preflight_flag=--FLAG        for preflight: --classes=HEAD=N
# Of setup, run and watch:
#   --dirty                        uncommitted changes of tracked files go along
set -euo pipefail
# shellcheck source=launch/usage.sh
source "$(dirname "$0")/usage.sh"
cd "$(dirname "$0")/.."

readonly WORKER=launch/tpu_worker.sh # what the workers do, on them
readonly ON_WORKER=sparse_tube_vit   # its directory, in the home there

# Chips' layouts by the number in the accelerator type: chips on v5e and v6e, cores,
# two a chip, on v4 and v5p.
readonly FLAT="1:1x1 4:2x2 8:2x4 16:4x4 32:4x8 64:8x8 128:8x16 256:16x16"
readonly CUBES="8:2x2x1 16:2x2x2 32:2x2x4 64:2x4x4 128:4x4x4 256:4x4x8 512:4x8x8
    1024:8x8x8 1536:8x8x12 2048:8x8x16 4096:8x16x16"
readonly MORE_CUBES="384:4x4x12 640:4x4x20 768:4x8x12 8192:16x16x16 12288:16x16x24"

fail() { # NAME MESSAGE
    local name="$1"
    shift
    echo "$name: $*" >&2
    exit 1
}

misuse() { # NAME MESSAGE: the same of a wrong command line
    (fail "$@") || exit 2
}

# ---- options

parse() {
    accelerator_type="" config="" workdir="" zone="" project="" runtime_version=""
    slices=1 worker=0 lines=50 timeout_seconds=600 poll_seconds=60 restarts=3
    spot=false waiting=false follow=true dirty=false dry_run=false quiet=false
    preflight=true then_delete=false killing=false iap=false
    # Never empty, which bash 3 would object to: what is given follows.
    overrides=(--) create_flags=(--) preflight_flags=(--) ssh_flags=(--)
    local option value
    while [ $# -gt 0 ]; do
        option="${1%%=*}"
        case "$1" in # --spot=false would else ask for spot
            --spot=* | --wait=* | --no_follow=* | --no_preflight=* | --dirty=* | \
                --dry_run=* | --kill=* | --quiet=* | --then_delete=*)
                misuse UnknownOption "$1: $option takes no value." ;;
        esac
        case "$option" in
            --spot) spot=true ;;
            --wait) waiting=true ;;
            --no_follow) follow=false ;;
            --no_preflight) preflight=false ;;
            --dirty) dirty=true ;;
            --dry_run) dry_run=true ;;
            --kill) killing=true ;;
            --quiet) quiet=true ;;
            --then_delete) then_delete=true ;;
            --config.*) overrides+=("$1") ;;
            --accelerator_type | --config | --workdir | --zone | --project | \
                --runtime_version | --slices | --worker | --lines | \
                --timeout_seconds | --poll_seconds | --restarts | --create_flag | \
                --preflight_flag | --ssh_flag)
                if [ "$option" != "$1" ]; then
                    value="${1#*=}"
                elif [ $# -gt 1 ]; then
                    value="$2"
                    shift
                else
                    misuse MissingValue "$option is given without its value."
                fi
                case "$option" in
                    --create_flag) create_flags+=("$value") ;;
                    --preflight_flag) preflight_flags+=("$value") ;;
                    --ssh_flag) ssh_flags+=("$value") ;;
                    *) printf -v "${option#--}" %s "$value" ;;
                esac
                ;;
            *)
                misuse UnknownOption "$1 is no option; see $0 --help."
                ;;
        esac
        shift
    done
    local number
    for number in slices lines timeout_seconds poll_seconds restarts; do
        [[ "${!number}" =~ ^(0|[1-9][0-9]*)$ ]] || # 08 would be octal
            misuse NotANumber "--$number ${!number} is not a whole number."
    done
    [ "$slices" -ge 1 ] || misuse NotANumber "--slices $slices: there is at least one."
    if [ "$slices" -gt 1 ]; then
        overrides=(-- "--config.mesh.slices=$slices" "${overrides[@]:1}")
    fi
    [[ "$worker" =~ ^(all|([0-9]+/)?[0-9]+)$ ]] ||
        misuse NotAWorker "--worker $worker is not a number, SLICE/NUMBER or all."
}

need() { # OPTION VALUE
    [ -n "$2" ] ||
        misuse MissingOption "$command needs $1; see $0 --help."
}

# Sets project, zone, nodes and the flags with which gcloud finds them.
locate() {
    [[ "$name" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
        misuse BadName "$name: small letters, digits and hyphens, a letter first."
    $dry_run && [ -n "$project" ] && [ -n "$zone" ] || command -v gcloud >/dev/null ||
        fail NoGcloud "gcloud is not on PATH. Install the Google Cloud CLI, then" \
            "gcloud auth login."
    project="${project:-$(gcloud config get-value project 2>/dev/null || true)}"
    [ -n "$project" ] ||
        fail NoProject "give --project, or gcloud config set project PROJECT."
    zone="${zone:-$(gcloud config get-value compute/zone 2>/dev/null || true)}"
    [ -n "$zone" ] ||
        fail NoZone "give --zone, or gcloud config set compute/zone ZONE."
    where=(--zone="$zone" --project="$project")
    local flag i
    ssh_where=("${where[@]}")
    for flag in "${ssh_flags[@]:1}"; do
        ssh_where+=("$flag")
        [ "$flag" != --tunnel-through-iap ] || iap=true
    done
    nodes=("$name") # as queued resources call theirs
    if [ "$slices" -gt 1 ]; then
        nodes=()
        for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
    fi
}

# Sets topology, as preflight calls it, and runtime_version, of accelerator_type.
look_up_accelerator() {
    local chip="${accelerator_type%-*}" size="${accelerator_type##*-}"
    local image layouts known sizes=""
    case "$chip" in
        v4) image=tpu-ubuntu2204-base layouts="$CUBES" ;;
        v5litepod) chip=v5e image=v2-alpha-tpuv5-lite layouts="$FLAT" ;;
        v5p) image=v2-alpha-tpuv5 layouts="$CUBES $MORE_CUBES" ;;
        v6e) image=v2-alpha-tpuv6e layouts="$FLAT" ;;
        *) misuse UnknownAccelerator "$accelerator_type is none of v4-N, v5litepod-N" \
            "(v5e), v5p-N and v6e-N. TPU7x is to be had through GKE (launch/gke)." ;;
    esac
    topology=""
    for known in $layouts; do
        sizes="$sizes ${known%:*}"
        [ "${known%:*}" != "$size" ] || topology="$chip:${known#*:}"
    done
    [ -n "$topology" ] || misuse UnknownAccelerator "$accelerator_type: there are" \
        "${accelerator_type%-*}-N of N =$sizes."
    runtime_version="${runtime_version:-$image}"
}

check_config() {
    need --config "$config"
    [ -f "${config%%:*}" ] || fail NoConfigFile "${config%%:*} does not exist in $PWD."
}

# ---- commands, called or, with --dry_run, printed

quoted() { # prints its arguments as a shell reads them
    local word line="" quote="'\\''"
    for word in "$@"; do
        case "$word" in
            "" | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$quote}'" ;;
        esac
        line="$line $word"
    done
    printf '%s\n' "${line# }"
}

note() { # what happens, or in a dry run when the next command is called
    if $dry_run; then echo "# $*"; else echo "$*" >&2; fi
}

# Calls gcloud. What it says passes through; its failure ends the command with what to
# do. 255 is ssh's own failure, as while a VM still boots: tried three times in all.
call() {
    if $dry_run; then
        quoted gcloud "$@"
        return
    fi
    local errors status attempt
    errors="$(mktemp)"
    for attempt in 1 2 3; do
        status=0
        { gcloud "$@" 2>&1 >&3 | tee "$errors" >&2; } 3>&1 || status=$?
        if [ "$status" != 255 ] || [ "$attempt" = 3 ]; then break; fi
        echo "ssh failed; again in $((attempt * 10)) seconds." >&2
        sleep $((attempt * 10))
    done
    said="$(sed -n '/^ERROR/,$p' "$errors")" # gcloud itself, not a worker
    rm "$errors"
    [ "$status" = 0 ] || explain "$status" "$@"
}

explain() { # STATUS GCLOUD-ARGUMENTS: ends the command with a named error, by $said
    local status="$1" called
    shift
    called="gcloud $(quoted "$@" | cut -c 1-120)"
    case "$said" in
        *"no more capacity"* | *STOCKOUT* | *"nsufficient capacity"*)
            fail NoCapacity "$zone has no $accelerator_type free now. queue waits for" \
                "it; another zone may have it." ;;
        *[Qq]uota*)
            fail QuotaExceeded "$project may not have that many in $zone, as said" \
                "above. Ask for more on the console's quota page, or take a smaller" \
                "type; --spot has a quota of its own." ;;
        *ALREADY_EXISTS* | *"already exists"*)
            fail AlreadyExists "there is a $name in $zone. Go on with setup and run," \
                "or delete it first." ;;
        *UNAUTHENTICATED* | *"active account"* | *eauthenticat*)
            fail NotLoggedIn "gcloud has no valid account: gcloud auth login." ;;
        *PERMISSION_DENIED* | *SERVICE_DISABLED*)
            fail PermissionDenied "the account may not do this in $project. It needs" \
                "the role roles/tpu.admin, and the project the API: gcloud services" \
                "enable tpu.googleapis.com." ;;
        *"has terminal state"*)
            fail Preempted "the VM was taken away, as said above. delete $name, queue" \
                "it again, setup, and run resumes; watch does this by itself." ;;
        *NOT_FOUND*)
            fail NotFound "$zone in $project has no such resource. Check --zone and" \
                "--slices; create and queue make one." ;;
    esac
    case " $* " in
        *" ssh "* | *" scp "*)
            case "$status" in
                255) fail SshFailed "no connection in 3 tries. status tells whether" \
                    "the VM is READY. A key with a passphrase must be in the agent:" \
                    "ssh-add ~/.ssh/google_compute_engine. A VM without an external" \
                    "address needs --ssh_flag=--tunnel-through-iap." ;;
                127) fail NotSetUp "a worker of $name has no code yet: setup $name." ;;
            esac
            fail WorkerFailed "at least one worker failed, with exit code $status;" \
                "its words are above. The command can be given again." ;;
    esac
    fail GcloudFailed "exit code $status of: $called"
}

tpu_vm() { # ssh or scp, and its arguments; the first release of gcloud's has no IAP
    if $iap; then
        call alpha compute tpus tpu-vm "$@" "${ssh_where[@]}"
    else
        call compute tpus tpu-vm "$@" "${ssh_where[@]}"
    fi
}

# Calls FUNCTION NODE ARGUMENTS for all slices at once; fails if it fails for one.
on_every_slice() {
    local node process processes="" failed=false
    for node in "${nodes[@]}"; do
        if $dry_run; then
            "$1" "$node" "${@:2}"
        else
            "$1" "$node" "${@:2}" &
            processes="$processes $!"
        fi
    done
    for process in $processes; do
        wait "$process" || failed=true
    done
    ! $failed || exit 1
}

ask_slice() { # NODE ARGUMENTS: launch/tpu_worker.sh on all workers of one slice
    local node="$1"
    shift
    tpu_vm ssh "$node" --worker=all \
        --command="SLICE=$node bash $ON_WORKER/code/$WORKER $(quoted "$@")"
}

ask_workers() {
    on_every_slice ask_slice "$@"
}

# ---- the resource

preflight() {
    if ! $preflight; then return; fi
    check_config
    local check=(python -m sparse_tube_vit.preflight
        --config "$config" --topology "$topology")
    check+=("${overrides[@]:1}" "${preflight_flags[@]:1}")
    if $dry_run; then
        quoted "${check[@]}"
        return
    fi
    echo "Compiling $config for $topology, to see that it fits" >&2
    (
        # shellcheck source=launch/setup.sh
        source launch/setup.sh &&
            { python -c "import libtpu" 2>/dev/null ||
                python -m pip install --quiet --disable-pip-version-check \
                    -r requirements-tpu.txt; } &&
            "${check[@]}" >&2
    ) || fail PreflightFailed "$config cannot train on $accelerator_type, as said" \
        "above; nothing was made. Change the config, or skip this by --no_preflight."
}

create() {
    need --accelerator_type "$accelerator_type"
    [ "$slices" = 1 ] ||
        misuse NotByCreate "several slices are to be had by queue alone."
    look_up_accelerator
    preflight
    local flags=("${where[@]}" --accelerator-type="$accelerator_type"
        --version="$runtime_version")
    if $spot; then flags+=(--spot); fi
    flags+=("${create_flags[@]:1}")
    call compute tpus tpu-vm create "$name" "${flags[@]}"
    note "$name is there, and costs from now on. Next: setup $name"
}

queue() {
    need --accelerator_type "$accelerator_type"
    look_up_accelerator
    preflight
    request
    if $waiting; then
        wait_for_queue
    else
        note "$name is in the queue; status tells its state, delete takes it out."
    fi
}

request() {
    local flags=("${where[@]}" --accelerator-type="$accelerator_type"
        --runtime-version="$runtime_version")
    if [ "$slices" = 1 ]; then
        flags+=(--node-id="$name")
    else
        flags+=(--node-count="$slices" --node-prefix="$name")
    fi
    if $spot; then flags+=(--spot); fi
    flags+=("${create_flags[@]:1}")
    call compute tpus queued-resources create "$name" "${flags[@]}"
}

queue_state() { # prints it; nothing where there is no queued resource of this name
    call compute tpus queued-resources list "${where[@]}" \
        --filter="name~\"/$name\$\"" --format="value(state.state)"
}

node_states() { # prints NODE STATE [HEALTH] for every slice that there is
    local any="${nodes[*]}" # its quotes are for gcloud, as is the \$
    call compute tpus tpu-vm list "${where[@]}" --filter="name~\"/(${any// /|})\$\"" \
        --format="value(name.basename(),state,health)"
}

wait_for_queue() {
    local state before=""
    if $dry_run; then
        note "until it says ACTIVE:"
        queue_state
        return
    fi
    while :; do
        state="$(queue_state)"
        [ "$state" = "$before" ] || echo "$name: ${state:-gone}" >&2
        before="$state"
        case "$state" in
            ACTIVE) return ;;
            FAILED | SUSPENDING | SUSPENDED | DELETING | "") queue_failed "$state" ;;
        esac
        sleep "$poll_seconds"
    done
}

queue_failed() { # STATE
    call compute tpus queued-resources describe "$name" "${where[@]}" >&2
    fail QueueFailed "the request for $name is ${1:-gone}; gcloud tells above why." \
        "delete $name, then queue again."
}

remove() {
    local flags=("${where[@]}" --quiet) state node # quiet: does not ask
    if $dry_run; then
        queue_state
        note "if there is such a queued resource:"
        call compute tpus queued-resources delete "$name" --force "${flags[@]}"
        [ "$slices" = 1 ] || return 0
        note "if there is none:"
        call compute tpus tpu-vm delete "$name" "${flags[@]}"
        return
    fi
    state="$(queue_state)" || exit # also where watch goes on after a failure
    if [ -n "$state" ]; then
        call compute tpus queued-resources delete "$name" --force "${flags[@]}"
    else
        for node in "${nodes[@]}"; do
            call compute tpus tpu-vm delete "$node" "${flags[@]}"
        done
    fi
}

confirm() {
    if $dry_run || $quiet || [ ! -t 0 ]; then return; fi
    read -r -p "Delete $name, with all that is not saved elsewhere? [y/N] "
    [ "$REPLY" = y ] || fail NotDeleted "$name is as it was."
}

# ---- the code and the run on it

# Sets tree, the name that git gives to the content that goes to the workers.
find_tree() {
    git rev-parse --verify HEAD >/dev/null 2>&1 ||
        fail NotARepository "the code gets to the workers by git; clone the repository."
    if $dirty; then
        local index
        index="$(mktemp)"
        cp "$(git rev-parse --git-path index)" "$index"
        GIT_INDEX_FILE="$index" git add --update
        tree="$(GIT_INDEX_FILE="$index" git write-tree)"
        rm "$index"
    elif [ -n "$(git status --porcelain --untracked-files=no)" ]; then
        git status --short --untracked-files=no >&2
        fail UncommittedChanges "the workers get what is committed; this is not." \
            "Commit it, or send it along by --dirty."
    else
        tree="$(git rev-parse 'HEAD^{tree}')"
    fi
}

setup_slice() { # NODE ARCHIVE
    local node="$1" new="$ON_WORKER/new"
    tpu_vm scp "$2" "$node:$ON_WORKER.tar.gz" --worker=all
    tpu_vm ssh "$node" --worker=all --command="rm -rf $new && mkdir -p $new && \
tar -xzf $ON_WORKER.tar.gz -C $new && SLICE=$node bash $new/$WORKER setup $tree"
}

setup_tree() { # the one that find_tree found
    local archive="${TMPDIR:-/tmp}/sparse_tube_vit_$tree.tar.gz"
    if $dry_run; then
        quoted git archive --format=tar.gz --output="$archive" "$tree"
    else
        git archive --format=tar.gz --output="$archive" "$tree"
    fi
    on_every_slice setup_slice "$archive"
    rm -f "$archive"
}

setup() {
    find_tree
    setup_tree
    note "Every worker of $name is set up. Next: run $name"
}

check_run() { # sets tree, and train.py's arguments
    check_config
    need --workdir "$workdir"
    case "$workdir" in
        gs://* | /*) ;;
        *) fail WorkdirNotShared "--workdir $workdir would be another one on every" \
            "worker, and gone with it: give gs://..., or the path of a shared disk." ;;
    esac
    find_tree
    git cat-file -e "$tree:${config%%:*}" 2>/dev/null || fail UncommittedChanges \
        "${config%%:*} is not in git, and the workers get what is: commit it."
    # jax writes compiled programs on the first host alone: the others find them there.
    arguments=(--config "$config" --workdir "$workdir"
        "--config.compilation_cache=$workdir/compiled" "${overrides[@]:1}")
}

run() {
    check_run
    if $dry_run; then
        ask_workers status
    else
        local states
        states="$(ask_workers status)"
        [ "$(summary "$states")" != partly ] || {
            echo "$states" >&2
            fail PartlyRunning "$name trains on some workers and not on others. Where" \
                "one was lost the others end soon; else stop $name, then run again."
        }
    fi
    ask_workers start "$tree" "${arguments[@]}"
    note "$name trains into $workdir, without this session. See logs, status, stop."
}

logs() {
    local node="${nodes[0]}" how=all
    if $follow; then how=follow; fi
    if [ "$worker" = all ]; then
        ask_workers logs "$lines" "$how" labelled
        return
    fi
    if [[ "$worker" == */* ]]; then
        [ "${worker%/*}" -lt "$slices" ] ||
            misuse NotAWorker "--worker $worker: --slices is $slices;" \
                "they count from 0."
        node="${nodes[${worker%/*}]}"
    fi
    tpu_vm ssh "$node" --worker="${worker#*/}" \
        --command="SLICE=$node bash $ON_WORKER/code/$WORKER logs $lines $how"
}

status() {
    if $dry_run; then
        queue_state
        node_states
        note "if all are READY:"
        ask_workers status
        return
    fi
    local queued states node
    queued="$(queue_state)"
    states="$(node_states)"
    [ -z "$queued" ] || echo "queued resource $name: $queued"
    [ -z "$states" ] || echo "$states"
    [ -n "$queued$states" ] ||
        fail NotFound "$zone in $project has no $name; create and queue make one."
    for node in "${nodes[@]}"; do
        grep -q "^${node}[[:space:]]*READY" <<<"$states" || {
            [ "$queued$states" != ACTIVE ] ||
                fail OtherSlices "no VM is called $node: give --slices as to queue."
            echo "$node is not READY: nothing can run on it now."
            return
        }
    done
    ask_workers status
}

stop() {
    local how=save
    if $killing; then how="kill"; fi
    ask_workers stop "$timeout_seconds" "$how"
}

# ---- watching

# Each time that it looks, it takes the one step that is next, from what there is. So it
# can itself be ended and called again at any time.
watch() {
    need --accelerator_type "$accelerator_type"
    check_run
    look_up_accelerator
    if $dry_run; then
        note "once:"
        preflight
        note "every $poll_seconds seconds:"
        queue_state
        note "where there is no queued resource:"
        request
        note "where it is ACTIVE:"
        node_states
        ask_workers status "${arguments[@]}"
        note "where the workers are READY and this does not run:"
        setup_tree
        ask_workers start "$tree" "${arguments[@]}"
        note "where some have hung since another was lost:"
        ask_workers stop 0 lost
        note "where it was preempted, and with --then_delete when the run is done:"
        remove
        return
    fi
    local state before=""
    looks_blind=0 looks_partly=0 looks_failed=0 starts_failed=0 attempts_failed=0
    seen=false seconds_trained=0 runs_failed=0
    state="$(queue_state)" # the first look has to succeed
    [ -n "$state" ] || preflight
    while :; do
        if state="$(queue_state)"; then
            looks_blind=0
        else
            looks_blind=$((looks_blind + 1)) state=unknown
            [ "$looks_blind" -lt 10 ] ||
                fail WatchBlind "gcloud did not answer 10 times in a row. The run" \
                    "goes on if it did; watch again once gcloud works."
        fi
        [ "$state" = "$before" ] || tell "queued resource: ${state:-none}"
        before="$state"
        case "$state" in
            "") attempt request ;;
            ACTIVE) attend ;;
            SUSPENDED) preempted ;;
            FAILED) queue_failed "$state" ;;
        esac
        sleep "$poll_seconds"
    done
}

preempted() {
    tell "preempted; asking for it again"
    attempt remove
}

# Calls FUNCTION; the next look decides what is to be done if it fails, up to 10 times in
# a row.
attempt() {
    if ("$@"); then
        attempts_failed=0
        return
    fi
    attempts_failed=$((attempts_failed + 1))
    [ "$attempts_failed" -lt 10 ] ||
        fail WatchFailed "that failed 10 times in a row, as said above. Mend what it" \
            "names, and watch again."
    tell "that failed; the next look decides"
}

tell() {
    echo "$(date '+%F %T') $name: $*" >&2
}

attend() { # the run, while the queued resource is ACTIVE
    local now states state
    now="$(node_states)" || return 0 # the next look decides
    if [[ "$now" =~ PREEMPTED|TERMINATED ]]; then
        preempted
        return
    fi
    [ "$(grep -c "[[:space:]]READY" <<<"$now")" = "$slices" ] || {
        tell "not all READY: $(tr '\t\n' ' ,' <<<"$now")"
        return
    }
    states="$(ask_workers status "${arguments[@]}")" || states=""
    state="$(summary "$states")"
    case "$state" in
        running)
            seen=true looks_partly=0 looks_failed=0 starts_failed=0
            seconds_trained=$((seconds_trained + poll_seconds))
            [ "$seconds_trained" -lt 3600 ] || runs_failed=0
            ;;
        partly)
            looks_partly=$((looks_partly + 1))
            tell "trains on some workers only"
            [ "$looks_partly" -lt 3 ] || attempt ask_workers stop 0 lost
            ;;
        finished)
            tell "the run is done"
            $then_delete || {
                tell "it still costs: delete $name"
                exit 0
            }
            attempt remove
            [ "$attempts_failed" != 0 ] || exit 0
            ;;
        failed | stopped)
            # From before this watch, it is resumed. A preemption may show itself as a
            # failed run first: a second look decides.
            looks_failed=$((looks_failed + 1))
            if ! $seen; then
                resume
            elif [ "$state" = stopped ]; then
                fail RunStopped "$name was stopped by hand; watch again resumes it."
            elif [ "$looks_failed" -ge 2 ]; then
                echo "$states" >&2
                runs_failed=$((runs_failed + 1))
                [ "$runs_failed" -le "$restarts" ] ||
                    fail RunFailed "the run ended with an error $runs_failed times," \
                        "with all of $name there; see logs $name. It still costs:" \
                        "delete $name"
                tell "the run ended with an error, with all of $name there"
                looks_failed=0
                resume
            fi
            ;;
        *) resume ;; # new, lost, or not to be asked, as when it is being lost
    esac
}

resume() {
    starts_failed=$((starts_failed + 1))
    [ "$starts_failed" -le 5 ] ||
        fail StartFailed "the run did not start 5 times in a row, as said above." \
            "$name still costs: delete $name"
    tell "setting up, and starting or resuming the run"
    if (setup_tree && ask_workers start "$tree" "${arguments[@]}"); then
        seen=true seconds_trained=0
    else
        tell "that failed; the next look decides"
    fi
}

# Of all workers' states: a run is lost where one is, whatever became of the others.
summary() { # LINES of NODE/WORKER STATE ...
    local states
    states=" $(awk '$1 ~ /\// {print $2}' <<<"$1" | tr -d ':' | sort -u | tr '\n' ' ')"
    case "$states" in
        " running ") echo running ;;
        *" running "*) echo partly ;;
        *" lost "* | *" idle "*) echo lost ;;
        *" failed "*) echo failed ;;
        *" stopped "*) echo stopped ;;
        " finished ") echo finished ;;
        *) echo unknown ;;
    esac
}

command="${1:-}"
name="${2:-}"
case "$command" in
    create | queue | setup | run | logs | status | stop | delete | watch) ;;
    "")
        usage >&2
        exit 2
        ;;
    *) misuse UnknownCommand "$command; see $0 --help." ;;
esac
[[ -n "$name" && "$name" != -* ]] || misuse MissingName "$0 $command NAME: which TPU?"
parse "${@:3}"
locate
case "$command" in
    delete) confirm && remove ;;
    *) "$command" ;;
esac
