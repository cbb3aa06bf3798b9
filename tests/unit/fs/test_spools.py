from pathlib import Path

import pytest

from fs.buckets.spools import Budget, SpoolFull, Spools


def test_what_was_closed_is_found_again_and_the_rest_is_not(tmp_path: Path) -> None:
    spools = Spools(tmp_path / "s", Budget(1 << 20))
    closed, begun = spools.create(b"closed"), spools.create("höhe".encode())
    closed.write(0, b"all")
    begun.write(3, b"some")
    closed.note(upload=True)
    spools.close()
    later = Spools(tmp_path / "s", Budget(1 << 20))
    assert [(each.path, each.read(0, 9)) for each in later.left()] == [(b"closed", b"all")]
    again = later.again(begun.id)
    assert again is not None
    assert (again.path, again.read(0, 9)) == ("höhe".encode(), b"\0\0\0some")
    assert later.again("../../etc/passwd") is None
    assert later.again("0" * 32) is None
    later.drop(again)
    assert list(later.left()) == []
    later.close()
    assert len(list((tmp_path / "s").iterdir())) == 2


def test_a_budget_is_kept_and_given_back(tmp_path: Path) -> None:
    spools = Spools(tmp_path / "s", Budget(1000))
    first, second = spools.create(b"1"), spools.create(b"2")
    first.write(0, bytes(600))
    with pytest.raises(SpoolFull):
        second.write(0, bytes(500))
    with pytest.raises(SpoolFull):
        second.truncate(500)
    assert second.size == 0
    first.truncate(100)
    second.write(0, bytes(500))
    spools.drop(second)
    first.write(100, bytes(900))
    spools.close()


def test_descriptors_are_counted(tmp_path: Path) -> None:
    spools = Spools(tmp_path / "s", Budget(1000))
    made = [spools.create(b"%d" % each) for each in range(256)]
    with pytest.raises(OSError, match="Too many open files"):
        spools.create(b"more")
    spools.drop(made[0])
    spools.create(b"more")
    spools.close()


def test_one_without_a_name_goes_nowhere(tmp_path: Path) -> None:
    spools = Spools(tmp_path / "s", Budget(1000))
    gone = spools.create(b"x")
    gone.path = None
    gone.note(upload=True)
    spools.close()
    assert list(Spools(tmp_path / "s", Budget(1000)).left()) == []


def test_one_sandbox_leaves_room_for_another(tmp_path: Path) -> None:
    whole = Budget(1000)
    greedy, other = (Spools(tmp_path / name, Budget(500, whole)) for name in "ab")
    with pytest.raises(SpoolFull):
        greedy.create(b"x").write(0, bytes(501))
    greedy.create(b"y").truncate(500)
    other.create(b"z").truncate(500)
    with pytest.raises(SpoolFull):
        Spools(tmp_path / "c", Budget(500, whole)).create(b"z").truncate(1)
    greedy.close()
    Spools(tmp_path / "d", Budget(500, whole)).create(b"z").truncate(500)
