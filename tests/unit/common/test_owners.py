import os
import shutil
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import owners
from common.owners import Owner, Standing


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "_LOCK", tmp_path / "machine.lock")


def state(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir()
    return made


@given(st.text(max_size=300), st.integers(0, 1 << 22), st.text(alphabet="0123456789abcdef", max_size=4))
def test_a_record_reads_as_it_was_written(path: str, pid: int, tag: str) -> None:
    owner = Owner("own" + "a" * 26, path.encode("utf-8", "replace").decode(), pid, tag, "198.19.4.0/22")
    assert len(owner.encode()) == len(Owner(owner.id, "/").encode()), "one write replaces another's whole"
    assert Owner.parse(owner.encode().decode()) == owner


@given(st.text() | st.from_regex(r'\{"id": .*\}') | st.just("[1]") | st.just('{"id": "../x"}'))
def test_what_is_no_record_is_none(text: str) -> None:
    assert Owner.parse(text) is None


def test_an_owner_lives_waits_and_is_gone(tmp_path: Path) -> None:
    folder, mine = tmp_path / "owners", state(tmp_path, "state")
    claim = owners.claim(mine, folder=folder)
    id_ = claim.owner.id
    claim.note(tag="ab12", share="198.19.4.0/22")
    assert owners.owners(folder=folder)[id_] == (claim.owner, Standing.LIVING)
    claim.release(nothing_left=False)
    assert owners.owners(folder=folder)[id_] == (claim.owner, Standing.WAITING)
    again = owners.claim(mine, folder=folder)
    assert (again.owner.id, again.owner.tag) == (id_, "ab12"), "what it had, it has"
    again.release(nothing_left=False)
    shutil.rmtree(mine)
    assert owners.owners(folder=folder)[id_][1] is Standing.GONE
    state(tmp_path, "state")
    anew = owners.claim(mine, folder=folder)
    assert anew.owner.id != id_
    assert owners.owners(folder=folder)[id_][1] is Standing.GONE, "begun anew, it is another"
    anew.release(nothing_left=True)
    assert set(owners.owners(folder=folder)) == {id_}


def _die_with_a_claim(mine: str, folder: str, lock: str) -> None:
    owners._LOCK = Path(lock)
    owners.claim(Path(mine), folder=Path(folder))
    os._exit(9)  # as a server that is killed


def test_whatever_ends_a_server_its_record_tells(tmp_path: Path) -> None:
    folder, mine = tmp_path / "owners", state(tmp_path, "state")
    child = get_context("fork").Process(target=_die_with_a_claim, args=(str(mine), str(folder), str(owners._LOCK)))
    child.start()
    child.join()
    assert [standing for _, standing in owners.owners(folder=folder).values()] == [Standing.WAITING]


def test_a_copy_of_a_directory_gets_an_identity_of_its_own(tmp_path: Path) -> None:
    folder, mine = tmp_path / "owners", state(tmp_path, "state")
    first = owners.claim(mine, folder=folder)
    shutil.copytree(mine, tmp_path / "copy")
    second = owners.claim(tmp_path / "copy", folder=folder)
    assert first.owner.id != second.owner.id
    assert owners.read_identity(tmp_path / "copy") == second.owner.id
    first.release(nothing_left=True)
    second.release(nothing_left=True)


def test_a_moved_directory_keeps_its_identity(tmp_path: Path) -> None:
    folder, mine = tmp_path / "owners", state(tmp_path, "state")
    first = owners.claim(mine, folder=folder)
    first.release(nothing_left=False)
    mine.rename(tmp_path / "moved")
    second = owners.claim(tmp_path / "moved", folder=folder)
    assert (second.owner.id, second.owner.state) == (first.owner.id, str(tmp_path / "moved"))
    second.release(nothing_left=True)


@pytest.mark.parametrize("broken", ["", "own", "own" + "!" * 26, "\udcff"])
def test_a_lost_identity_is_the_recorded_one_where_the_state_is_not_new(tmp_path: Path, broken: str) -> None:
    folder, mine = tmp_path / "owners", state(tmp_path, "state")
    claim = owners.claim(mine, folder=folder)
    claim.release(nothing_left=False)
    (mine / owners.IDENTITY).write_bytes(broken.encode(errors="surrogateescape"))  # the disk was full
    (mine / "isobox.db").touch()
    assert owners.identify(mine, folder=folder) == claim.owner.id
    assert owners.read_identity(mine) == claim.owner.id


def test_many_at_once_each_get_their_own(tmp_path: Path) -> None:
    folder, claims = tmp_path / "owners", []
    threads = [
        Thread(target=lambda n=n: claims.append(owners.claim(state(tmp_path, f"state{n}"), folder=folder)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({claim.owner.id for claim in claims}) == 8
    for claim in claims:
        claim.release(nothing_left=True)
    assert owners.owners(folder=folder) == {}
