# shellcheck shell=bash
# Sourced by the other scripts: makes .venv with everything pinned, and activates it.
# PYTHON names the interpreter to use, 3.11 or newer.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; $("$python" --version) is what $python is." >&2
    echo "Name another one: PYTHON=python3.12 $0" >&2
    exit 1
}
# Installed again only when what is to be installed changes.
wanted="$(cat requirements.txt setup.py | cksum)"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    [ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        -r requirements.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --no-deps --editable .
    echo "$wanted" >.venv/installed
fi
# shellcheck source=/dev/null
source .venv/bin/activate
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
