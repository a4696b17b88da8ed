#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker of a TPU, there. It is not called by hand.
#
#   tpu_worker.sh setup TREE             code TREE, unpacked beside, and its environment
#   tpu_worker.sh start TREE ARGUMENTS   train.py's, in the background
#   tpu_worker.sh status [ARGUMENTS]     of the last run, or of the one with ARGUMENTS
#   tpu_worker.sh logs LINES all|follow [labelled]
#   tpu_worker.sh stop SECONDS save|kill|lost
#
# SLICE is the name of the worker's slice. Everything lies in ~/sparse_tube_vit:
#   code/, tree         the repository, and git's name for its content
#   venv/, uv/          its environment, and what makes it
#   log, pid            of the run; and when it has ended by itself exit_code,
#   arguments, stopping by request stopping as well
set -euo pipefail
cd ~/sparse_tube_vit

# The VMs' images have Python 3.10, and no venv. uv brings a Python with it.
readonly UV=0.13.9
readonly PYTHON="${PYTHON:-3.11.18}"

label="${SLICE:-}/${HOSTNAME##*-w-}" # hosts are called t1v-n-...-w-NUMBER

fail() {
    echo "$label $*" >&2
    exit 1
}

# running; finished, failed or stopped: so it ended; lost: with its machine; idle.
state() {
    if [ ! -f pid ]; then
        echo idle
    elif ps -ww -o args= -p "$(cat pid)" | grep -q tpu_worker.sh; then
        echo running
    elif [ ! -f exit_code ]; then
        echo lost
    elif [ "$(cat exit_code)" = 0 ]; then
        echo finished
    elif [ -f stopping ]; then
        echo stopped
    else
        echo failed
    fi
}

setup() { # TREE
    [ "$(state)" != running ] || fail "trains still: stop it, then setup again"
    rm -rf tree code
    mv new code
    if [ "$(uv/bin/uv --version 2>/dev/null | cut -d ' ' -f 2)" != "$UV" ]; then
        rm -rf uv
        python3 -m pip install --quiet --disable-pip-version-check --target uv \
            "uv==$UV" || fail "has no uv: pip failed as said above. The image needs" \
            "python3-pip, and the VM a way to the Internet (Cloud NAT, if it has no" \
            "external address)"
    fi
    uv/bin/uv venv --quiet --clear --python "$PYTHON" venv ||
        fail "has no Python $PYTHON, as uv said above"
    uv/bin/uv pip sync --quiet --python venv/bin/python code/requirements-tpu.txt
    echo "$1" >tree
    echo "$label is set up"
}

start() { # TREE ARGUMENTS
    [ "$(cat tree 2>/dev/null)" = "$1" ] ||
        fail "has other code than this repository now has: setup again"
    shift
    if [ "$(state)" = running ]; then
        [ "$*" = "$(cat arguments)" ] ||
            fail "trains something else: $(cat arguments)"
        echo "$label trains already"
        return
    fi
    rm -f exit_code stopping
    echo "$*" >arguments
    # A session and process group of its own, which the end of ssh does not end.
    setsid nohup bash code/launch/tpu_worker.sh train "$@" >>log 2>&1 </dev/null &
    echo "$!" >pid
    echo "$label trains"
}

train() { # ARGUMENTS
    local run="" shutdown="" signalled="" exit_code=0
    # Once is enough, and a signal that meets the end of the run can take its exit code.
    trap 'shutdown=yes signalled=yes
        [ -z "$run" ] || { trap "" TERM; kill -TERM "$run" 2>/dev/null || true; }' TERM
    echo "---- $(date '+%F %T') $label: train.py $*"
    # Where the TPU is not to be had jax ends the run, rather than to train on the CPU.
    export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}"
    cd code
    ../venv/bin/python -m sparse_tube_vit.train "$@" &
    run=$!
    [ -z "$shutdown" ] || kill -TERM "$run" 2>/dev/null || true # asked before it was there
    while
        signalled="" exit_code=0
        wait "$run" || exit_code=$?
        [ -n "$signalled" ] # which ended wait; the run saves now
    do :; done
    cd ..
    # Asked by none but the machine, which goes down: the run is lost, not failed.
    [ -n "$shutdown" ] && [ ! -f stopping ] || echo "$exit_code" >exit_code
    trap "" TERM
    clear_group $$
}

# Kills what is left of a run's process group. Its data workers end by themselves, which
# also frees the memory that they share: they get time for it.
clear_group() { # GROUP
    local deadline=$((SECONDS + 10))
    while pgrep -g "$1" -r D,R,S python >/dev/null && [ "$SECONDS" -lt "$deadline" ]; do
        sleep 0.2
    done
    pkill -KILL -g "$1" python || true
}

status() { # [ARGUMENTS]
    local now
    now="$(state)"
    if [ $# -gt 0 ] && [ "$now" != idle ] && [ "$*" != "$(cat arguments)" ]; then
        if [ "$now" = running ]; then now=other; else now=idle; fi
    fi
    tell "$now"
}

tell() { # STATE
    local code=""
    [ ! -f exit_code ] || code=" (exit code $(cat exit_code))"
    echo "$label $1$code: $(tail -n 1 log 2>/dev/null || true)"
}

logs() { # LINES all|follow [labelled]
    local shown=(tail -n "$1")
    [ -f log ] || fail "has no log: nothing ran yet"
    if [ "$2" = follow ] && [ "$(state)" = running ]; then
        shown+=(--pid="$(cat pid)" --follow=name)
    fi
    if [ -n "${3:-}" ]; then
        "${shown[@]}" log | sed -u "s|^|$label |"
    else
        "${shown[@]}" log
    fi
}

# save: as the cloud stops a machine, so that the run saves; kill: at once; lost: at
# once, and it counts as lost, to be started again.
stop() { # SECONDS save|kill|lost
    if [ "$(state)" != running ]; then
        tell "$(state)"
        return
    fi
    [ "$2" = lost ] || touch stopping
    if [ "$2" = save ]; then
        kill -TERM "$(cat pid)"
    else
        [ "$2" = lost ] || echo 137 >exit_code
        local trains
        trains="$(pgrep -P "$(cat pid)" python || true)"
        kill -KILL "$(cat pid)"
        [ -z "$trains" ] || kill -KILL "$trains" || true # it may have ended by now
        clear_group "$(cat pid)"
    fi
    local deadline=$((SECONDS + $1))
    while [ "$(state)" = running ]; do
        [ "$SECONDS" -lt "$deadline" ] || [ "$2" != save ] || fail "has not stopped" \
            "after $1 s. It may be saving: stop again, or stop --kill"
        sleep 0.2
    done
    if [ "$2" != lost ] && [ ! -f exit_code ]; then # it ended before it could tell how
        clear_group "$(cat pid)"
        echo 143 >exit_code
    fi
    tell "$(state)"
}

"$@"
