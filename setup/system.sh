# The distribution's own tools.  Sourced by setup.sh.

apt_updated=
apt_install() {
    command -v apt-get >/dev/null || fail "apt-get is missing" "install $* by hand"
    if [ -z "$apt_updated" ]; then
        apt-get -qq update || fail "apt-get update failed" "see its words above"
        apt_updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null ||
        fail "cannot install $*" "see apt's words above"
}

# python3.11 or newer: the distribution's, or whatever else is on PATH.
find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
            "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

install_tools() {
    local missing=()
    command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
    command -v mkfs.erofs >/dev/null || missing+=(erofs-utils)
    /sbin/ldconfig -p 2>/dev/null | grep -q 'libnftables\.so\.1' && command -v nft >/dev/null || missing+=(nftables)
    command -v ip >/dev/null || missing+=(iproute2)
    command -v curl >/dev/null || missing+=(curl)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    if ! find_python >/dev/null; then
        if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            missing+=(python3-venv)
        elif apt-cache show python3-venv 2>/dev/null | grep -qE '^Version: 3\.1[1-9]'; then
            missing+=(python3 python3-venv)
        else
            missing+=(python3.11 python3.11-venv)
        fi
    fi
    [ ${#missing[@]} = 0 ] && return
    step "packages: ${missing[*]}"
    apt_install "${missing[@]}"
}
