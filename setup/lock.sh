#!/usr/bin/env bash
# `make lock`: chooses the packages that `make setup` installs anew, within what pyproject.toml allows, for Linux and every
# Python from 3.11 on, and writes them down with their digests.  Of an index there is nothing in the lock: it is whatever
# pip is set up with.
# usage: lock.sh [uv's options, for example --upgrade-package NAME]    without any: newest of all
set -euo pipefail
cd "$(dirname "$0")/.."
lock=setup/packages.lock
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uv
[ $# != 0 ] || set -- --upgrade
"$work/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --extra dev pyproject.toml setup/build.in --output-file "$lock" "$@"
sed -i '1i # Made by setup/lock.sh (`make lock`) from pyproject.toml and setup/build.in: not to be edited.' "$lock"
echo "$lock: $(grep -c == "$lock") packages"
