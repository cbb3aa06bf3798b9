#!/usr/bin/env bash
# Makes this machine ready: tools, runsc, the virtual environment, a base image. Each step is skipped when it is done.
# usage: setup.sh [IMAGE...]    base images to build; `python` if none is named
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
export ISOBOX_CACHE=${ISOBOX_CACHE:-/var/cache/isobox}

step() { printf '\033[1m▸ %s\033[0m\n' "$*"; }
fail() { printf 'isobox setup: %s\n' "$1" >&2; [ -z "${2:-}" ] || printf '              %s\n' "$2" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "you are not root" "sandboxes need control groups and mounts: run this with sudo"
[ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] || fail "$(uname -s) on $(uname -m) is not supported yet" "use an x86_64 Linux machine"
kernel=$(uname -r)
printf '%s\n5.15\n' "${kernel%%-*}" | sort -V | head -1 | grep -qx 5.15 ||
    fail "Linux $kernel is too old" "use Linux 5.15 or newer (Debian 12, Ubuntu 22.04)"

mkdir -p "$ISOBOX_CACHE"
exec 9>"$ISOBOX_CACHE/setup.lock"
flock 9

# shellcheck source=setup/system.sh
. "$here/system.sh"
# shellcheck source=setup/runsc.sh
. "$here/runsc.sh"
# shellcheck source=setup/venv.sh
. "$here/venv.sh"

install_tools
install_runsc
install_venv "$top"

for image in "${@:-python}"; do
    "$top/.venv/bin/isobox" image build --quiet "$image"
done
