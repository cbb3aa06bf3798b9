# The virtual environment.  Sourced by setup.sh.

install_venv() {
    local top=$1 stamp=$1/.venv/.installed python
    if [ -e "$stamp" ] && cmp -s "$stamp" "$top/pyproject.toml"; then return; fi
    python=$(find_python) || fail "no Python of 3.11 or newer" "install python3.11 and its venv package"
    step "virtual environment ($("$python" --version))"
    [ -x "$top/.venv/bin/python" ] || "$python" -m venv "$top/.venv"
    "$top/.venv/bin/pip" install --quiet --quiet --disable-pip-version-check -e "$top[dev]" ||
        fail "pip could not install what pyproject.toml names" "see its words above"
    cp "$top/pyproject.toml" "$stamp"
}
