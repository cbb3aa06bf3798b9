#!/usr/bin/env bash
# What the tests need beyond the service, prepared outside any test's time limit: a registry, from the distribution's
# package, unpacked and not installed; the packages of web endpoints, for images of whatever Python, whose builds reach
# no index in the tests; and the base images that tests start sandboxes from.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
cache=${ISOBOX_CACHE:-/var/cache/isobox}/testing
mkdir -p "$cache"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
if [ ! -x "$cache/docker-registry" ]; then
    apt-get -qq update
    apt-get -qq -o APT::Sandbox::User=root download docker-registry
    dpkg-deb --extract docker-registry_*.deb tree
    install -m 755 tree/usr/bin/docker-registry "$cache/docker-registry"
fi
if [ ! -d "$cache/wheels" ]; then
    for version in 3.11 3.12 3.13; do
        "$python" -m pip -qq --disable-pip-version-check download --only-binary=:all: --python-version "$version" \
            --dest wheels fastapi uvicorn websockets
    done
    mv wheels "$cache/wheels"
fi
cd "$OLDPWD"
.venv/bin/isobox image build --quiet base python node data
