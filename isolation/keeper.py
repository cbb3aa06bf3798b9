"""The server's side of the keeper (keeper_process.py)."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from common import processes
from common.unixsocket import address
from isolation import keeper_process
from isolation.errors import IsolationError

_FDS: Final = 2
_ANSWER_WITHIN_S: Final = 10.0
_REVIVALS: Final = 5


class Keeper:
    """The server's connection to its keeper, which it starts when there is none.

    Calls are a few microseconds on a local socket, so they are made where they stand, without an await. Should the
    keeper be killed, the next call starts another one and hands it everything again.
    """

    def __init__(self, path: Path, owner: str = "") -> None:
        """owner: the id of the state directory (common/owners.py), by which others know whose keeper it is."""
        self._path = path
        self._owner = owner
        self._socket: socket.socket | None = None
        self._held: dict[str, tuple[int, ...]] = {}

    def connect(self) -> None:
        """Connect, starting a keeper if none listens; IsolationError if that fails."""
        if self._try_connect():
            return
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # of one that was killed; the state directory's lock makes us its only user
        if self._owner:  # one that cannot be reached (its socket was removed) would keep sandboxes from ending
            processes.end(processes.KEEPER, self._owner)
        log = os.open(self._path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            started = subprocess.run(
                [sys.executable, "-I", "-S", keeper_process.__file__, str(self._path), self._owner],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                timeout=_ANSWER_WITHIN_S,
                check=False,
            )
        finally:
            os.close(log)
        if started.returncode or not self._try_connect():
            raise IsolationError("the keeper did not start", hint=f"see {self._path.with_suffix('.log')}")

    def _try_connect(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with address(str(self._path)) as short:
                connection.connect(short)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return False
        connection.settimeout(_ANSWER_WITHIN_S)
        self._socket = connection
        return True

    def close(self) -> None:
        """Leave; the keeper stays as long as it holds something."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _call(self, word: str, fds: tuple[int, ...] = ()) -> None:
        try:
            self._exchange(word, fds)
        except ConnectionError:
            self.revive()
            self._exchange(word, fds)

    def revive(self) -> None:
        """After the keeper was killed: another one, that holds all that the old one did."""
        for attempt in range(_REVIVALS):
            try:
                self.close()
                self.connect()
                for name, fds in self._held.items():
                    self._exchange(f"put {name}", fds)
                return
            except ConnectionError:  # it may still have taken our connection while it was dying
                if attempt == _REVIVALS - 1:
                    raise
                time.sleep(0.02)

    def _exchange(self, word: str, fds: tuple[int, ...]) -> None:
        if self._socket is None:
            raise ConnectionResetError("no keeper")
        socket.send_fds(self._socket, [word.encode()], fds)
        if self._socket.recv(16) != b"ok":
            raise ConnectionResetError("the keeper went away")

    def put(self, name: str, fds: tuple[int, int]) -> None:
        """Have the keeper hold (to_guest, from_guest) under name."""
        self._call(f"put {name}", fds)
        self._held[name] = fds

    def drop(self, name: str) -> None:
        """Have it close them."""
        self._held.pop(name, None)
        self._call(f"drop {name}")

    def take_all(self) -> dict[str, tuple[int, int]]:
        """Copies of all that it holds, by name; it goes on holding them."""
        assert self._socket is not None
        self._socket.sendall(b"list")
        found: dict[str, tuple[int, int]] = {}
        while True:
            packet, fds, _, _ = socket.recv_fds(self._socket, 256, 8)
            if packet == b"end" or not packet:
                break
            if len(fds) == _FDS:
                found[packet.decode()] = (fds[0], fds[1])
        self._held.update(found)
        return found

    async def watch(self) -> None:
        """Revive the keeper whenever it dies."""
        loop = asyncio.get_running_loop()
        while (connection := self._socket) is not None:
            gone = loop.create_future()
            loop.add_reader(connection.fileno(), _gone, connection, gone)
            try:
                await gone
            finally:
                loop.remove_reader(connection.fileno())
            if self._socket is connection:
                self.revive()


def _gone(connection: socket.socket, gone: "asyncio.Future[None]") -> None:
    # Answers are read where the call stands, so what is readable here can only be the end.
    try:
        if connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return
    except BlockingIOError:
        return
    except ConnectionError:
        pass
    if not gone.done():
        gone.set_result(None)
