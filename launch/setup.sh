# shellcheck shell=bash
# Sourced by the other scripts: makes an environment, and activates it. .venv has
# everything pinned; .venv-newest, with $newest set, the newest versions that setup.py
# allows.
# PYTHON names the interpreter to use, 3.11 or newer; an environment of another version
# is made anew.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; $("$python" --version) is what $python is." >&2
    echo "Name another one: PYTHON=python3.12 $0" >&2
    exit 1
}
environment=.venv${newest:+-newest}
if [ -n "${PYTHON:-}" ] && [ -x "$environment/bin/python" ] &&
    [ "$("$environment/bin/python" --version)" != "$("$python" --version)" ]; then
    rm -rf "$environment"
fi
pip_install() {
    [ -x "$environment/bin/pip" ] || "$python" -m venv --clear "$environment" || return
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
if [ -n "${newest:-}" ]; then
    # Every time: there may be newer versions.
    pip_install --upgrade --upgrade-strategy eager --editable \
        '.[dev,gcs,hub,probe,train]' || exit
    "$environment/bin/python" --version
    "$environment/bin/python" -m pip freeze --exclude-editable | paste -sd ' '
else
    # Installed again only when what is to be installed changes.
    wanted="$(cat requirements.txt setup.py | cksum)"
    if [ "$(cat "$environment/installed" 2>/dev/null)" != "$wanted" ]; then
        # `set -e` of the script that sources this may be off.
        pip_install -r requirements.txt || exit
        pip_install --no-deps --editable . || exit
        echo "$wanted" >"$environment/installed"
    fi
fi
# shellcheck source=/dev/null
source "$environment/bin/activate"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# XLA on CPUs allocates the arrays of every step anew: huge pages take it less time.
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"
