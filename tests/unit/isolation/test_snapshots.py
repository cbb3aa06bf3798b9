import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation.errors import SnapshotUnusable
from isolation.snapshots import MEMORY, Copy, Maker, SnapshotFolder, cpu_features, misfit

HERE = Maker("20240729.0", "systrap", ("avx", "sse2"))


def sealed(folder: SnapshotFolder, name: str = "one") -> str:
    copy = folder.blank()
    try:
        for n, fd in enumerate(copy.emptied()):
            os.write(fd, bytes([n]) * 5000 * (n + 1))
        return folder.seal(name, copy, HERE).digest
    finally:
        copy.close()


def test_what_was_sealed_is_what_is_opened_each_reader_at_its_own_pace(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path / "s")
    digest = sealed(folder)
    assert {path.name for path in (tmp_path / "s" / "one").iterdir()} == {*MEMORY, "manifest.json"}
    opened = SnapshotFolder(tmp_path / "s").open("one", digest, HERE)
    with opened.reading() as first, opened.reading() as second:
        assert [os.read(fd, 1 << 20) for fd in first] == [bytes([n]) * 5000 * (n + 1) for n in range(3)]
        assert [os.read(fd, 10) for fd in second] == [bytes([n]) * 10 for n in range(3)]
    opened.close()


@pytest.mark.parametrize("name", MEMORY)
@pytest.mark.parametrize("deed", ["cut", "flip", "longer", "missing", "link"])
def test_what_was_touched_is_refused(tmp_path: Path, name: str, deed: str) -> None:
    folder = SnapshotFolder(tmp_path / "s")
    digest = sealed(folder)
    folder.open("one", digest, HERE).close()
    path = tmp_path / "s" / "one" / name
    raw = path.read_bytes()
    if deed == "cut":
        path.write_bytes(raw[:-1])
    elif deed == "flip":
        path.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    elif deed == "longer":
        path.write_bytes(raw + b"x")
    elif deed == "missing":
        path.unlink()
    else:
        path.unlink()
        (tmp_path / "same").write_bytes(raw)
        path.symlink_to(tmp_path / "same")
    for each in (folder, SnapshotFolder(tmp_path / "s")):
        with pytest.raises((SnapshotUnusable, OSError)):
            each.open("one", digest, HERE)


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path / "s")
    digest = sealed(folder)
    path = tmp_path / "s" / "one" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"systrap", b"ptrace "))
    with pytest.raises(SnapshotUnusable, match="manifest"):
        folder.open("one", digest, HERE)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (Maker("20250101.0", "systrap", ("avx", "sse2")), "20240729.0"),
        (Maker("20240729.0", "kvm", ("avx", "sse2")), "kvm"),
        (Maker("20240729.0", "systrap", ("sse2",)), "lacks avx"),
    ],
)
def test_another_machine_is_told_why_not(tmp_path: Path, other: Maker, why: str) -> None:
    folder = SnapshotFolder(tmp_path / "s")
    digest = sealed(folder)
    with pytest.raises(SnapshotUnusable, match=why):
        folder.open("one", digest, other)
    richer = Maker(HERE.release, HERE.platform, (*HERE.cpu, "avx512f"))
    folder.open("one", digest, richer).close()


def test_a_copy_leaves_nothing_and_reclaim_takes_what_nobody_knows(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path / "s")
    Copy(tmp_path / "s").close()
    assert not list((tmp_path / "s").iterdir())
    digest = sealed(folder)
    sealed(folder, "two")
    (tmp_path / "s" / "three.partial").mkdir()
    assert sorted(folder.reclaim({"one"})) == ["three.partial", "two"]
    folder.open("one", digest, HERE).close()
    folder.remove("one")
    folder.remove("one")
    assert not list((tmp_path / "s").iterdir())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_a_strange_manifest_never_fits(value: object) -> None:
    assert misfit({"format": 1, "maker": value}, HERE)
    assert misfit({"format": value}, HERE) or value == 1


def test_cpu_features_are_those_of_the_first_processor() -> None:
    assert cpu_features("processor: 0\nflags\t\t: sse2 avx\nprocessor: 1\nflags: sse2\n") == ("avx", "sse2")
    assert cpu_features("") == ()
