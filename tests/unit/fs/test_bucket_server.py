"""What whoever is root inside may say to a bucket's server, in place of the program that holds the mount."""

import asyncio
import errno
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fs import fuse
from fs.buckets.hold import HoldViolation
from fs.buckets.names import Paths, number
from fs.buckets.objects import Objects, Place
from fs.buckets.server import Server
from fs.buckets.share import Share
from fs.buckets.spools import Budget, Spools
from fs.guarded import Access

NEVER_ASKED = "127.0.0.1:9"
OPCODES = [each for each in range(1, 60) if each not in fuse.SILENT]
FILES = st.integers(1 << 63, (1 << 64) - 1)
NOTES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"[" * 5000, b"{", b"[]", b'{"path":"\\ud800"}', b'{"path":"x","size":Infinity,"mtime":0,"etag":""}']
    ),
    st.sampled_from([b'{"path":"../x","size":1,"mtime":0,"etag":""}', b'{"path":"x","spool":"../../etc/passwd"}']),
)


def packet(opcode: int, unique: int, node: int, body: bytes) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 0, 0, 0) + body


class Said:
    """A connection on which that is said, until so many answers came."""

    def __init__(self, packets: list[bytes], answers: int) -> None:
        self._packets = packets
        self._answers = answers
        self._all = asyncio.Event()
        self.heard: list[tuple[int, int]] = []
        """By question: the errno of its answer."""

    async def receive(self) -> bytes:
        if self._packets:
            return self._packets.pop(0)
        async with asyncio.timeout(10):
            await self._all.wait()
        return b""

    async def send(self, data: bytes) -> bool:
        while data:
            size, error, unique = struct.unpack_from("<IiQ", data)
            if unique:  # else a note
                self.heard.append((unique, -error))
            data = data[size:]
        if len(self.heard) == self._answers:
            self._all.set()
        return True


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture(scope="module")
def objects() -> Objects:
    """A bucket that nothing is asked of."""
    place = Place("bucket", "", f"http://{NEVER_ASKED}", "us-east-1")
    return Objects(place, None, Access(plain=frozenset({NEVER_ASKED})))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    notes=st.lists(st.tuples(FILES, NOTES), max_size=4),
    asked=st.lists(
        st.tuples(st.sampled_from(OPCODES), st.integers(2, (1 << 63) - 1), st.binary(max_size=64)), max_size=8
    ),
)
def test_every_question_is_answered_and_none_does_harm(
    notes: list[tuple[int, bytes]],
    asked: list[tuple[int, int, bytes]],
    objects: Objects,
    threads: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    failures: list[str] = []
    told = [(fuse.READ, 5, struct.pack("<QQII", file, 0, 0, 0)) for file, _ in notes]
    questions = [packet(opcode, 1 + at, node, body) for at, (opcode, node, body) in enumerate(told + asked)]

    async def run() -> list[tuple[int, int]]:
        server = Server(
            objects,
            Spools(tmp_path / "spools", Budget(1 << 20)),
            read_only=False,
            owner=0,
            on_failure=lambda path, detail: failures.append(detail),
            requests=threads,
            fetches=threads,
            share=Share(),
        )
        connection = Said([packet(0, 0, *note) for note in notes] + questions, len(questions))
        if questions:
            await server.serve(connection)
        await server.close()
        return connection.heard

    heard = asyncio.run(run())
    assert sorted(unique for unique, _ in heard) == list(range(1, len(questions) + 1))
    assert errno.EIO not in {error for _, error in heard}, heard
    assert not failures
    assert not (tmp_path / "spools").exists()


def served(objects: Objects, threads: ThreadPoolExecutor, folder: Path, connection: Said) -> Server:
    """A server that has heard all that is said."""
    server = Server(
        objects,
        Spools(folder / "spools", Budget(1 << 20)),
        read_only=False,
        owner=0,
        on_failure=lambda path, detail: None,
        requests=threads,
        fetches=threads,
        share=Share(),
    )

    async def run() -> None:
        await server.serve(connection)
        await server.close()

    asyncio.run(run())
    return server


class Silent(Said):
    """Says all, and hangs up."""

    def __init__(self, packets: list[bytes]) -> None:
        super().__init__(packets, 1 << 30)

    async def receive(self) -> bytes:
        return self._packets.pop(0) if self._packets else b""


def test_notes_of_many_mebibytes_are_refused_at_the_first(
    objects: Objects, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    connection = Silent([packet(0, 0, (1 << 63) + n, b"[" + b"[]," * (1 << 18) + b"0]") for n in range(44)])
    with pytest.raises(HoldViolation, match="a note of"):
        served(objects, threads, tmp_path, connection)
    assert len(connection._packets) == 43


def test_notes_are_kept_as_bytes_and_no_more_than_a_few_mebibytes_of_them(
    objects: Objects, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    note = b"[" + b"[]," * 5000 + b"0]"
    connection = Silent([packet(0, 0, (1 << 63) + n, note) for n in range(500)])
    server = served(objects, threads, tmp_path, connection)
    assert (4 << 20) - len(note) < server._noted_bytes <= 4 << 20
    assert all(type(each) is bytes for each in server._noted.values())


def test_paths_that_are_noted_are_bounded_in_bytes() -> None:
    paths, dropped = Paths(lambda number, text: dropped.append(number) if text is None else None), list[int]()
    for n in range(10_000):
        paths.number(b"/".join([b"n" * 250] * 4) + str(n).encode())
    assert len(dropped) > 1000
    assert paths.path(dropped[-1]) is None
    last = b"/".join([b"n" * 250] * 4) + b"9999"
    assert paths.path(number(last)) == last
