"""What a listing inside prints, which may be anything."""

import contextlib
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation import files
from isolation.errors import HelperBroken
from isolation.files import Entry, EntryParser, FileFailed, parse_entries

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)


def line(name: bytes, size: int = 1) -> bytes:
    return b"\0".join([b"file", b"644", b"0", b"0", b"%d" % size, b"5", name, b""]) + b"\0"


def parsed(raw: bytes, step: int) -> list[Entry]:
    parser = EntryParser()
    for begin in range(0, len(raw), step):
        parser.feed(raw[begin : begin + step])
    return parser.end()


@given(names=st.lists(NAMES, max_size=20), step=st.integers(1, 300))
def test_a_listing_is_the_same_however_it_is_cut(names: list[bytes], step: int) -> None:
    raw = b"".join(line(name) for name in names)
    assert parsed(raw, step) == (parse_entries(raw) if raw else [])
    if raw:
        with pytest.raises(HelperBroken):
            parsed(raw[:-1], step)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_rubbish_is_a_violation(raw: bytes, step: int) -> None:
    with contextlib.suppress(HelperBroken):
        for entry in parsed(raw, step):
            assert entry.type in ("file", "dir", "symlink", "other")


def test_what_no_listing_prints_is_noticed_at_once() -> None:
    parser = EntryParser()
    with pytest.raises(HelperBroken):
        parser.feed(bytes(400_000))
    parser = EntryParser()
    with pytest.raises(HelperBroken):
        for _ in range(100):
            parser.feed(b"n" * 4096)
    assert parser._fed < 1 << 20


def test_no_more_names_and_bytes_are_listed_than_a_listing_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_ENTRIES_MAX", 10)
    assert len(parsed(b"".join(line(b"%d" % n) for n in range(10)), 100)) == 10
    with pytest.raises(FileFailed, match="more than 10 names") as caught:
        parsed(b"".join(line(b"%d" % n) for n in range(11)), 100)
    assert caught.value.errno == errno.E2BIG
    monkeypatch.setattr(files, "_LISTING_MAX", 100)
    with pytest.raises(FileFailed, match="list less deeply"):
        parsed(b"".join(line(b"%d" % n) for n in range(9)), 100)
