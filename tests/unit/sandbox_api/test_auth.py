"""Keys: nobody is let in by an empty one, whatever happened to its file."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_api.auth import OPERATOR, Caller, Entry, Keys, key_of, key_problem, parse_keys
from sandbox_api.problems import Problem
from sandbox_api.services.secrets import Seal
from sandbox_api.settings import SettingsError

GOOD = "a-key-of-more-than-twenty-characters"


def load(state: Path, **files: str | bytes) -> Keys:
    for name, text in files.items():
        (state / name.replace("_", "-")).write_bytes(text if isinstance(text, bytes) else text.encode())
    return Keys.load(state)


def test_the_first_start_makes_keys_that_differ(tmp_path: Path) -> None:
    keys = load(tmp_path)
    first, operator = ((tmp_path / name).read_text().strip() for name in ("api-key", "operator-key"))
    assert keys.caller(first) == Caller("default")
    assert keys.caller(operator) == OPERATOR
    assert (tmp_path / "operator-key").stat().st_mode & 0o777 == 0o600
    assert Keys.load(tmp_path).caller(first) == Caller("default")  # the second one takes what is there


@pytest.mark.parametrize("name", ["api_key", "operator_key"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "   ",
        "short",
        "x" * 19,
        f"{GOOD}\n{GOOD}",
        f"{GOOD} {GOOD}",
        "schlüssel" * 4,
        b"\xff" * 40,
        b"\0" * 40,
    ],
)
def test_a_file_without_a_whole_key_refuses_the_start(tmp_path: Path, name: str, text: str | bytes) -> None:
    with pytest.raises(SettingsError) as failed:
        load(tmp_path, **{name: text})
    assert str(tmp_path / name.replace("_", "-")) in failed.value.detail
    assert failed.value.hint


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("acme", ":1", "TENANT KEY"),
        ("acme ", ":1", "TENANT KEY"),
        (f"acme {GOOD} more", ":1", "TENANT KEY"),
        (f"# the first\n\nacme {GOOD}\nother short", ":4", "5 characters"),
        (f"ac/me {GOOD}", ":1", "not a tenant's name"),
        (f".acme {GOOD}", ":1", "not a tenant's name"),
        (f"{'a' * 64} {GOOD}", ":1", "not a tenant's name"),
        (f"acme {GOOD}\nother {GOOD}", ":2", "that of"),
        (f"acme {GOOD}\nacme {GOOD}", ":2", "that of"),
        (f"acme {'ä' * 30}", ":1", "ASCII"),
    ],
)
def test_a_line_that_cannot_be_used_refuses_the_start(tmp_path: Path, text: str, place: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as failed:
        load(tmp_path, keys=text)
    assert failed.value.detail.startswith(f"{tmp_path}/keys{place}: ")


@pytest.mark.parametrize("name", ["api_key", "operator_key"])
def test_a_tenants_key_is_not_anothers_and_not_the_operators(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="the key is that of"):
        load(tmp_path, **{name: GOOD, "keys": f"acme {GOOD}"})


def test_a_tenant_may_have_several_keys(tmp_path: Path) -> None:
    keys = load(tmp_path, keys=f"acme {GOOD}-1\nacme {GOOD}-2\ndefault {GOOD}-3")
    assert [keys.caller(f"{GOOD}-{n}").tenant for n in (1, 2, 3)] == ["acme", "acme", "default"]


def test_a_full_disk_at_the_first_start_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="No space left"):
        Keys.load(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["", "short"])
def test_no_table_of_keys_holds_an_empty_one(key: str) -> None:
    with pytest.raises(SettingsError):
        Keys([Entry(Caller("acme"), key, "here")])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer "},
        {b"authorization": b"bearer \t "},
        {b"authorization": b"Basic " + GOOD.encode()},
        {b"sec-websocket-protocol": b"isobox.key."},
        {b"sec-websocket-protocol": b"isobox.key. , isobox.v1"},
    ],
)
def test_no_credential_is_nobodys(headers: dict[bytes, bytes]) -> None:
    assert key_of(headers) is None
    with pytest.raises(Problem) as refused:
        Keys([Entry(Caller("acme"), GOOD, "here")]).caller(key_of(headers))
    assert refused.value.status == 401


@given(st.text(max_size=40))
def test_only_the_key_itself_opens(key: str) -> None:
    keys = Keys([Entry(Caller("acme"), GOOD, "here")])
    if key == GOOD:
        assert keys.caller(key) == Caller("acme")
    else:
        with pytest.raises(Problem):
            keys.caller(key.encode(errors="replace").decode())


@given(st.text(max_size=200))
def test_whatever_a_file_says_each_entry_is_whole(text: str) -> None:
    try:
        entries = parse_keys(text, "here")
    except SettingsError as error:
        assert error.hint
        return
    assert all(entry.caller.tenant and not key_problem(entry.key) for entry in entries)


# ---- the key that seals secrets


@pytest.mark.parametrize("size", [0, 1, 16, 24, 31, 33])
def test_a_seal_that_is_cut_short_refuses_the_start(tmp_path: Path, size: int) -> None:
    (tmp_path / "secrets.key").write_bytes(b"k" * size)
    with pytest.raises(SettingsError, match=f"secrets.key has {size} bytes"):
        Seal.load(tmp_path)


def test_a_seal_is_made_once(tmp_path: Path) -> None:
    sealed = Seal.load(tmp_path).close("text", "here")
    assert Seal.load(tmp_path).open(sealed, "here") == "text"
