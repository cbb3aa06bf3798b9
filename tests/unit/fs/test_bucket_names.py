from hypothesis import given
from hypothesis import strategies as st

from fs.buckets import names

NAMES = st.one_of(st.binary(max_size=300), st.text(max_size=20).map(lambda text: text.encode(errors="surrogatepass")))


@given(st.lists(NAMES, max_size=6))
def test_a_path_leads_nowhere_but_down(parts: list[bytes]) -> None:
    path = b""
    for name in parts:
        below = names.child(path, name)
        if below is None:
            return
        assert below == (path + b"/" if path else b"") + name
        assert names.parent(below) == path
        assert not {b"", b".", b".."} & set(below.split(b"/"))
        path = below
    assert names.is_path(path) or not path


@given(st.binary(max_size=60))
def test_only_notes_of_our_own_are_believed(path: bytes) -> None:
    notes: dict[int, bytes | None] = {}
    paths = names.Paths(notes.__setitem__)
    assert paths.learn(names.number(path), path) == names.is_path(path)
    assert not paths.learn(names.number(path) ^ 1, path)


def test_numbers_are_noted_once_and_bounded() -> None:
    notes: list[tuple[int, bytes | None]] = []
    paths = names.Paths(lambda number, path: notes.append((number, path)))
    first = paths.number(b"a")
    assert paths.number(b"a") == first != names.ROOT
    assert notes == [(first, b"a")]
    assert paths.path(first) == b"a"
    assert paths.path(names.ROOT) == b""
    assert paths.number(b"") == names.ROOT
    for each in range(50_000):
        paths.number(b"x%d" % each)
    assert paths.path(first) is None
    assert (first, None) in notes
    assert not paths.learn(names.number(b"one more"), b"one more")


def test_what_cannot_be_a_name_is_not_shown() -> None:
    keys = ["in/", "in/a", "in/..", "in/" + "x" * 256, "in/both"]
    folders = ["in/d/", "in//", "in/./", "in/both/"]
    assert names.shown(keys, folders, "in/") == (["a", "both"], ["d"])
