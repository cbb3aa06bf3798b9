# gVisor's runsc: as named by the user, else on PATH, else the distribution's, else the official release.
# Sourced by setup.sh.

runsc_oldest=20240401
release_site=https://storage.googleapis.com/gvisor/releases/release/latest/x86_64

runsc_release() { # PATH → 20240729, or nothing
    "$1" --version 2>/dev/null | sed -nE 's/^runsc version (release-|0\.0~)?([0-9]{8}).*/\2/p'
}

runsc_usable() { # PATH, how to speak of it
    local release
    [ -x "$1" ] || return 1
    release=$(runsc_release "$1")
    if [ -z "$release" ]; then
        echo "  $1 does not tell its release: not used" >&2
        return 1
    elif [ "$release" -lt $runsc_oldest ]; then
        echo "  $1 is release $release, older than $runsc_oldest: not used" >&2
        return 1
    fi
}

# Debian's and Ubuntu's package; on a release whose own is too old, that of its backports suite, from the mirror that
# this machine's apt sources name.  Unpacked, not installed: nothing else on the machine changes.
runsc_from_distribution() {
    local work=$1 codename uri key=/usr/share/keyrings/debian-archive-keyring.gpg
    command -v apt-get >/dev/null || return 1
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mkdir -p "$work"/{lists/partial,cache/archives/partial,sources}
    local isolated=(-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    if [ "$(. /etc/os-release && echo "$ID")" = debian ]; then
        uri=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 2>/dev/null | awk -v c="$codename" '$1 == c {print $2; exit}')
        [ -n "$uri" ] && [ -e "$key" ] || return 1
        echo "deb [signed-by=$key] $uri $codename-backports main" >"$work/sources/backports.list"
        isolated+=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources")
    fi
    (cd "$work" && apt-get -qq "${isolated[@]}" update && apt-get -qq "${isolated[@]}" download runsc) >&2 || return 1
    dpkg-deb -x "$work"/runsc_*.deb "$work/root" && runsc_usable "$work/root/usr/bin/runsc"
}

runsc_from_release() {
    local work=$1
    mkdir -p "$work/root/usr/bin"
    (cd "$work/root/usr/bin" &&
        curl -fsSL --retry 3 -O "$release_site/runsc" -O "$release_site/runsc.sha512" &&
        sha512sum --check --quiet runsc.sha512 && chmod 755 runsc) || return 1
    runsc_usable "$work/root/usr/bin/runsc"
}

install_runsc() {
    local target=$ISOBOX_CACHE/runsc/runsc work
    if [ -n "${ISOBOX_RUNSC:-}" ]; then
        runsc_usable "$ISOBOX_RUNSC" || fail "ISOBOX_RUNSC=$ISOBOX_RUNSC is not a usable runsc" "it must be release $runsc_oldest or newer"
        return
    fi
    if command -v runsc >/dev/null && runsc_usable "$(command -v runsc)"; then return; fi
    if runsc_usable "$target" 2>/dev/null; then return; fi
    work=$(mktemp -d "$ISOBOX_CACHE/runsc-XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    step "runsc from the distribution's packages"
    if ! runsc_from_distribution "$work/distribution"; then
        step "runsc from gVisor's official release"
        runsc_from_release "$work/release" ||
            fail "no runsc to be had" "install one of release $runsc_oldest or newer and name it with ISOBOX_RUNSC"
    fi
    mkdir -p "$(dirname "$target")"
    mv "$work"/*/root/usr/bin/runsc "$target"
    rm -rf "$work"
    echo "  release $(runsc_release "$target")"
}
