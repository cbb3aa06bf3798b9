# gVisor's runsc: as named by the user (ISOBOX_RUNSC), else on PATH, else the distribution's, else the official release;
# with ISOBOX_RUNSC_RELEASE=20240729 that official release.  What it was is written down, and a changed one is told.
# Sourced by setup.sh.

runsc_oldest=20240401
release_site=${ISOBOX_RUNSC_SITE:-https://storage.googleapis.com/gvisor/releases/release}

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

# The digest that gVisor publishes of a release, and the binary; by the release's full name or, as for the newest, a word.
runsc_published() { # RELEASE → sha512
    local name
    for name in "$1" "${1%%.*}"; do
        curl -fsSL --max-time 20 "$release_site/$name/x86_64/runsc.sha512" 2>/dev/null | grep -oE '^[0-9a-f]{128}' && return
    done
    return 1
}

runsc_from_release() { # FOLDER [RELEASE]
    local work=$1 wanted=${2:-latest}
    mkdir -p "$work/root/usr/bin"
    (cd "$work/root/usr/bin" &&
        curl -fsSL --retry 3 -O "$release_site/$wanted/x86_64/runsc" -O "$release_site/$wanted/x86_64/runsc.sha512" &&
        sha512sum --check --quiet runsc.sha512 && chmod 755 runsc) || return 1
    runsc_usable "$work/root/usr/bin/runsc" || return 1
    case $wanted in
        latest | "$(runsc_release "$work/root/usr/bin/runsc")"*) ;;
        *) echo "  what is published as release $wanted says that it is another" >&2; return 1 ;;
    esac
}

# What the server and doctor compare the binary with (isolation/digests.py): a line per binary, with tabs between
# digest, release, source, what stat says of the file, and its path.
record_runsc() { # PATH SOURCE
    local path known=$ISOBOX_CACHE/runsc/digests digest
    path=$(realpath "$1")
    digest=$(sha512sum "$path" | cut -d' ' -f1)
    mkdir -p "$(dirname "$known")"
    { [ ! -e "$known" ] || awk -F'\t' -v path="$path" '$5 != path' "$known"
      printf '%s\t%s\t%s\t%s\t%s\n' "$digest" "$(runsc_release "$path")" "$2" "$(stat -c '%d %i %s %.9Y %.9Z' "$path")" "$path"
    } >"$known.new"
    mv "$known.new" "$known"
}

# One that is there already: it is what it was, or else what gVisor publishes for its release, or is seen the first time.
know_runsc() { # PATH
    local path known=$ISOBOX_CACHE/runsc/digests release published source before= digest
    path=$(realpath "$1")
    if [ -e "$known" ]; then
        if grep -qF "$(printf '\t%s\t%s' "$(stat -c '%d %i %s %.9Y %.9Z' "$path")" "$path")" "$known"; then return; fi
        before=$(awk -F'\t' -v path="$path" '$5 == path {print $1}' "$known")
    fi
    digest=$(sha512sum "$path" | cut -d' ' -f1)
    if [ "$before" = "$digest" ]; then
        record_runsc "$path" "$(awk -F'\t' -v path="$path" '$5 == path {print $3}' "$known")"
        return
    fi
    release=$("$path" --version | sed -nE 's/^runsc version (release-|0\.0~)?([0-9.]+).*/\2/p')
    if ! published=$(runsc_published "$release"); then
        source="found; gVisor's digest of $release could not be had"
    elif [ "$published" = "$digest" ]; then
        source="found; as gVisor publishes $release"
    else
        source="found; not gVisor's own build of $release (a distribution's, perhaps)"
    fi
    if [ -n "$before" ] && [ "${published:-}" != "$digest" ]; then
        fail "$path is not the runsc that an earlier set-up saw" "if you changed it, delete $known and run this again; if not, find out who did"
    fi
    echo "  runsc $release: $source"
    record_runsc "$path" "$source"
}

install_runsc() {
    local target=$ISOBOX_CACHE/runsc/runsc work pinned=${ISOBOX_RUNSC_RELEASE:-}
    if [ -n "${ISOBOX_RUNSC:-}" ]; then
        runsc_usable "$ISOBOX_RUNSC" || fail "ISOBOX_RUNSC=$ISOBOX_RUNSC is not a usable runsc" "it must be release $runsc_oldest or newer"
        know_runsc "$ISOBOX_RUNSC"
        return
    fi
    if [ -z "$pinned" ] && command -v runsc >/dev/null && runsc_usable "$(command -v runsc)"; then
        know_runsc "$(command -v runsc)"
        return
    fi
    if runsc_usable "$target" 2>/dev/null && [[ -z $pinned || $pinned = "$(runsc_release "$target")"* ]]; then
        know_runsc "$target"
        return
    fi
    work=$(mktemp -d "$ISOBOX_CACHE/runsc-XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    local source="the distribution's package, signed"
    [ -n "$pinned" ] || step "runsc from the distribution's packages"
    if [ -n "$pinned" ] || ! runsc_from_distribution "$work/distribution"; then
        step "runsc from gVisor's official release"
        source="gVisor's release, as published"
        runsc_from_release "$work/release" "${pinned:-latest}" ||
            fail "no runsc to be had" "install one of release $runsc_oldest or newer and name it with ISOBOX_RUNSC"
    fi
    mkdir -p "$(dirname "$target")"
    mv "$work"/*/root/usr/bin/runsc "$target"
    rm -rf "$work"
    record_runsc "$target" "$source"
    echo "  release $(runsc_release "$target")"
}
