"""What a sandbox may take of the server by its buckets."""

import asyncio
import struct

from hypothesis import given
from hypothesis import strategies as st

from fs.buckets.folders import Folder, OpenFolders
from fs.buckets.share import Ahead, InFlight

NAMES = st.lists(st.tuples(st.binary(min_size=1, max_size=255), st.integers(0, (1 << 64) - 1), st.booleans()))


def read_all(folder: Folder, room: int) -> list[tuple[bytes, int, bool]]:
    found: list[tuple[bytes, int, bool]] = []
    while data := folder.read(len(found), room):
        assert len(data) <= room
        while data:
            node, number, length, kind = struct.unpack_from("<QQII", data)
            found.append((data[24 : 24 + length], node, kind == 4))
            assert number == len(found)
            data = data[24 + length + -length % 8 :]
    return found


@given(names=NAMES, room=st.integers(280, 4096))
def test_a_folder_is_read_as_it_was_listed(names: list[tuple[bytes, int, bool]], room: int) -> None:
    folder = Folder(names)
    assert read_all(folder, room) == names
    assert folder.read(len(names) + 7, room) == b""
    assert folder.size <= sum(24 + len(name) + 7 + 4 for name, _, _ in names) + 4


def folder_of(count: int, mark: str) -> Folder:
    return Folder([(f"{mark}{n:06}".encode(), n, False) for n in range(count)])


def test_twenty_thousand_names_take_a_mebibyte_and_the_same_folder_is_kept_once() -> None:
    folders = OpenFolders()
    for number in range(1000):
        folders.open(number, folder_of(20_000, "a") if number in (0, 999) else folders.get(0) or folder_of(1, "x"))
    assert folders.size < 1 << 20
    assert folders.get(999) is folders.get(0)
    for number in range(1000):
        folders.close(number)
    assert folders.size == 0
    assert folders.get(0) is None


@given(
    st.lists(st.tuples(st.sampled_from(["open", "close"]), st.integers(0, 20), st.integers(0, 30)), max_size=100),
)
def test_open_folders_never_take_more_than_they_may(steps: list[tuple[str, int, int]]) -> None:
    folders = OpenFolders(limit=2000)
    number = 0
    for deed, which, count in steps:
        if deed == "open":
            number += 1
            folders.open(number, folder_of(count, f"{which}"))
            assert folders.get(number) is not None
        else:
            folders.close(which)
        there = {id(folders.get(each)): folders.get(each) for each in folders}
        assert folders.size == sum(each.size for each in there.values() if each is not None)
        assert folders.size <= 2000 or len(list(folders)) == 1


def test_readers_that_hold_most_make_room_for_others() -> None:
    ahead, forgotten = Ahead(limit=100), list[str]()
    for name in ("a", "b", "c"):
        ahead.hold(name, 40, lambda name=name: forgotten.append(name))  # type: ignore[misc]
    assert (forgotten, ahead.size) == (["a"], 80)
    ahead.hold("b", 30, lambda: forgotten.append("b"))
    ahead.hold("d", 40, lambda: forgotten.append("d"))
    assert (forgotten, ahead.size) == (["a", "c"], 70)
    ahead.hold("big", 1000, lambda: forgotten.append("big"))
    assert ahead.size == 1000
    ahead.hold("big", 0, lambda: None)
    assert ahead.size == 0


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=40))
def test_whoever_asks_for_more_than_there_is_room_waits(wanted: list[tuple[int, bool]]) -> None:
    """A second value of True: whoever asks gives up while waiting."""

    async def run() -> None:
        flight, given_to, most = InFlight(limit=50), list[int](), 0

        async def ask(size: int) -> None:
            await flight.take(size)
            given_to.append(size)

        tasks = [asyncio.get_running_loop().create_task(ask(size)) for size, _ in wanted]
        await asyncio.sleep(0)
        for task, (_, gives_up) in zip(tasks, wanted, strict=True):
            if gives_up and not task.done():
                task.cancel()
        await asyncio.sleep(0)
        done = 0
        while given_to[done:]:
            most = max(most, flight.size)
            flight.give(given_to[done])
            done += 1
            for _ in range(3):
                await asyncio.sleep(0)
        assert all(task.done() for task in tasks)
        assert flight.size == 0
        assert most <= max([50, *(size for size, _ in wanted)])

    asyncio.run(run())
