# shellcheck shell=bash
# Sourced by the other scripts, before all else: prints the comment at a script's head
# where -h or --help is its first argument, and ends it; `usage` prints it elsewhere.
script="$(cd "$(dirname "$0")" && pwd)/${0##*/}"
usage() {
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$script"
}
case "${1:-}" in -h | --help)
    usage
    exit 0
    ;;
esac
