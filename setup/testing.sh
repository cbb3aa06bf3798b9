#!/usr/bin/env bash
# What the tests need beyond the service: a registry, from the distribution's package, unpacked and not installed.
set -euo pipefail
cache=${ISOBOX_CACHE:-/var/cache/isobox}
target=$cache/testing/docker-registry
[ -x "$target" ] && exit 0
mkdir -p "$cache/testing"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
apt-get -qq update
apt-get -qq -o APT::Sandbox::User=root download docker-registry
dpkg-deb --extract docker-registry_*.deb tree
install -m 755 tree/usr/bin/docker-registry "$target"
