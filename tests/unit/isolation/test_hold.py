"""What holds a mount inside, as a plain Linux program: a packet socket stands for the kernel's device."""

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fs.buckets import hold
from isolation.guest import build


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("files") / "files"
    sources = [str(build.FOLDER / name) for name in build.FILES.sources]
    compiler = shutil.which("gcc") or shutil.which("clang")
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compiler, *flags] if compiler else [sys.executable, "-m", "ziglang", "cc", "-fsanitize=undefined"]
    subprocess.run([*command, *sources, "-o", str(target)], check=True, timeout=120)
    return target


class Held:
    """A mount that is held: our ends of the device, and connections to it."""

    def __init__(self, program: Path) -> None:
        self._address = f"\0isobox-test-{os.urandom(8).hex()}"
        self.device, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        subprocess.run(
            [program, "hold", self._address[1:], ""], check=True, timeout=20, env={"ASAN_OPTIONS": "detect_leaks=0"}
        )
        with self.connect() as first:
            socket.send_fds(first, [b"d"], [theirs.fileno()])
            assert first.recv(1) == b""
        theirs.close()
        self.device.settimeout(5)

    def connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(5)
        try:
            made.connect(self._address)
        except OSError:
            made.close()
            raise
        return made

    def end(self) -> None:
        self.device.close()  # "unmounted"
        deadline = time.monotonic() + 10
        with contextlib.suppress(ConnectionRefusedError):
            while time.monotonic() < deadline:
                self.connect().close()
                time.sleep(0.02)
            pytest.fail("it does not end")


@pytest.fixture
def held(program: Path) -> Iterator[Held]:
    found = Held(program)
    yield found
    found.end()


def question(unique: int, body: bytes = b"", opcode: int = 1, node: int = 5) -> bytes:
    return struct.pack("<IIQQIIII", 40 + len(body), opcode, unique, node, 0, 0, 0, 0) + body


def answer(unique: int, body: bytes = b"") -> bytes:
    return struct.pack("<IiQ", 16 + len(body), 0, unique) + body


class Peer:
    def __init__(self, held: Held) -> None:
        self.socket = held.connect()
        self._packets = hold.Packets()
        self._had: list[tuple[int, int, int, bytes]] = []

    def next(self) -> tuple[int, int, int, bytes]:
        """(opcode, unique, node, body)."""
        while not self._had:
            data = self.socket.recv(1 << 16)
            assert data, "it hung up"
            for each in self._packets.feed(data):
                self._had.append((each.opcode, each.unique, each.node, each.body))
        return self._had.pop(0)

    def notes(self) -> dict[int, bytes]:
        found = {}
        while (told := self.next())[2]:
            assert told[:2] == (0, 0)
            found[told[2]] = told[3]
        return found


def test_questions_and_answers_pass_and_notes_stay(held: Held) -> None:
    first = Peer(held)
    assert first.notes() == {}
    held.device.send(question(7, b"name\0"))
    assert first.next() == (1, 7, 5, b"name\0")
    first.socket.sendall(hold.note(1 << 62, b"one") + hold.note(9, b"two") + hold.note(9, b"three") + answer(7, b"x"))
    assert held.device.recv(100) == answer(7, b"x")
    first.socket.sendall(hold.note(1 << 62, None))
    held.device.send(question(8, b"asked twice"))
    assert first.next()[1] == 8
    first.socket.close()
    held.device.send(question(9, bytes(100_000)))
    second = Peer(held)
    assert second.notes() == {9: b"three"}
    assert [second.next()[1] for _ in range(2)] == [8, 9]
    second.socket.sendall(answer(9) + answer(8) + answer(8))
    assert {held.device.recv(100) for _ in range(2)} == {answer(8), answer(9)}
    second.socket.close()


def test_a_ping_is_answered_behind_all_that_was_asked(held: Held) -> None:
    peer = Peer(held)
    peer.notes()
    for unique in range(2, 80):
        held.device.send(question(unique))
    peer.socket.sendall(hold.ping())
    for unique in range(2, 80):
        assert peer.next()[1] == unique
        peer.socket.sendall(answer(unique))
    assert peer.next()[:3] == (0, 1, 0)
    peer.socket.close()


def test_another_peer_takes_the_place_of_the_first(held: Held) -> None:
    first = Peer(held)
    first.notes()
    second = Peer(held)
    second.notes()
    assert first.socket.recv(1) == b""
    held.device.send(question(3))
    assert second.next()[1] == 3
    for each in (first, second):
        each.socket.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=64) | st.builds(answer, st.integers(0, 9), st.binary(max_size=20)), max_size=8))
def test_whatever_a_peer_says_it_goes_on(held: Held, said: list[bytes]) -> None:
    with contextlib.closing(held.connect()) as rude, contextlib.suppress(OSError):
        rude.sendall(b"".join(said))
    peer = Peer(held)
    peer.notes()
    peer.socket.close()
