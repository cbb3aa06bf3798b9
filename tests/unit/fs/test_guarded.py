"""Requests to hosts that strangers named, and that answer as they like."""

import gzip
import socket
import threading

import httpx
import pytest
from stranger import Stranger, answered, drip, stranger

from fs.errors import ImageInvalid, StoreUnreachable
from fs.guarded import Access, Guarded


def get(http: Guarded, where: Stranger, path: str = "/") -> bytes:
    with http.stream("GET", f"http://{where.host}{path}") as answer:
        return b"".join(answer.iter_raw())


def test_a_request_is_answered_over_a_checked_connection() -> None:
    with stranger(lambda _, connection: connection.sendall(answered(b"hello"))) as where:
        http = Guarded(where.access)
        assert get(http, where) == b"hello"
        assert f"host: {where.host}".encode() in where.asked[0].lower()
        assert b"accept-encoding: identity" in where.asked[0].lower()
        with pytest.raises(ImageInvalid, match="private address"):
            get(Guarded(Access()), where)
        http.close()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Long: "])
def test_an_answer_that_drips_is_over_at_the_deadline(head: bytes) -> None:
    where: Stranger
    with stranger(lambda _, connection: drip(connection, where.ended, head)) as where:
        http = Guarded(where.access)
        with http.deadline(0.3), pytest.raises((StoreUnreachable, httpx.HTTPError)):
            get(http, where)
        http.close()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nten bytes"])
def test_a_thread_that_waits_for_an_answer_is_ended_by_another(head: bytes) -> None:
    waits, ends = threading.Event(), list[str]()

    def answer(_: bytes, connection: socket.socket) -> None:
        connection.sendall(head)
        waits.set()
        connection.recv(1)  # until whoever asked hangs up

    with stranger(answer) as where:
        http = Guarded(where.access)

        def ask() -> None:
            try:
                get(http, where)
            except (StoreUnreachable, httpx.HTTPError) as error:
                ends.append(str(error))

        asking = threading.Thread(target=ask)
        asking.start()
        assert waits.wait(30)
        http.abort()
        asking.join(30)
        assert len(ends) == 1
        with pytest.raises((StoreUnreachable, httpx.HTTPError), match="aborted"):
            get(http, where)
        assert len(where.asked) == 1
        http.close()


def test_nothing_is_decompressed_on_the_way() -> None:
    bomb = gzip.compress(gzip.compress(bytes(1 << 20)))
    sent = answered(bomb, headers="Content-Encoding: gzip, gzip\r\n")
    with stranger(lambda _, connection: connection.sendall(sent)) as where:
        http = Guarded(where.access)
        assert get(http, where) == bomb
        http.close()


@pytest.mark.parametrize(
    "place", ["http://[::1", "http://" + "a" * 64 + ".test/", "http://a..b/", "ftp://x/", "/loop", "http://x:99999999/"]
)
def test_a_redirect_to_nowhere_is_refused(place: str) -> None:
    sent = answered(b"", status="302 Found", headers=f"Location: {place}\r\n")
    with stranger(lambda _, connection: connection.sendall(sent)) as where:
        http = Guarded(where.access)
        with pytest.raises((ImageInvalid, StoreUnreachable)):
            get(http, where)
        http.close()


def test_an_answer_in_crumbs_is_left() -> None:
    def answer(_: bytes, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")

    with stranger(answer) as where:
        http = Guarded(where.access)
        with pytest.raises(StoreUnreachable, match="crumbs"):
            get(http, where)
        http.close()
