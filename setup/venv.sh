# The virtual environment: what setup/packages.lock names, each file of it with its digest.  Sourced by setup.sh.

# What an environment was made from: it is made anew when this changes.
venv_contents() { cat "$1/pyproject.toml" "$1/setup/packages.lock"; }

install_venv() {
    local top=$1 stamp=$1/.venv/.installed python
    if [ -e "$stamp" ] && venv_contents "$top" | cmp -s - "$stamp"; then return; fi
    python=$(find_python) || fail "no Python of 3.11 or newer" "install python3.11 and its venv package"
    step "virtual environment ($("$python" --version))"
    [ -x "$top/.venv/bin/python" ] || "$python" -m venv "$top/.venv"
    local pip=("$top/.venv/bin/pip" install --quiet --quiet --disable-pip-version-check)
    "${pip[@]}" --require-hashes -r "$top/setup/packages.lock" ||
        fail "pip could not install what setup/packages.lock names" "see its words above"
    # Ours is built with what the lock gave: nothing else is fetched, nor chosen, by the build.
    "${pip[@]}" --no-build-isolation --no-deps -e "$top" ||
        fail "pip could not install isobox itself" "see its words above"
    venv_contents "$top" >"$stamp"
}
