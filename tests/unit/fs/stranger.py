"""A server of HTTP that answers as it likes."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fs.guarded import Access

Answer = Callable[[bytes, socket.socket], None]
"""Is given the head of a request, and the connection to answer it by; what it leaves open is closed."""

HEAD_MAX: Final = 64 << 10


class Stranger:
    """See the module; a thread for each connection, one request each."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.access = Access(plain=frozenset({self.host}))
        self.asked: list[bytes] = []
        self.ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            head = b""
            try:
                while b"\r\n\r\n" not in head and len(head) < HEAD_MAX:
                    if not (data := connection.recv(4096)):
                        return
                    head += data
                self.asked.append(head)
                self._answer(head, connection)
            except OSError:  # whoever asked has hung up
                return

    def close(self) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def stranger(answer: Answer) -> Iterator[Stranger]:
    running = Stranger(answer)
    try:
        yield running
    finally:
        running.close()


def answered(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n".encode() + body


def drip(connection: socket.socket, ended: threading.Event, head: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
    """A byte now and then, for as long as somebody listens."""
    connection.sendall(head)
    while not ended.wait(0.01):
        connection.sendall(b"a")
