"""A bucket whose server answers as it likes."""

import errno
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from stranger import Stranger, answered, drip, stranger
from test_bucket_pages import contents, page

from fs.buckets.objects import Objects, Place
from fs.buckets.pages import Facts
from fs.errors import BucketFailed


@contextmanager
def bucket(answer: Callable[[bytes, socket.socket], None]) -> Iterator[tuple[Objects, Stranger]]:
    with stranger(answer) as where:
        objects = Objects(Place("b", "", f"http://{where.host}"), None, where.access)
        try:
            yield objects, where
        finally:
            objects.close()


def names(objects: Objects, folder: str = "") -> list[str]:
    return [key for found in objects.pages(folder) for key, _ in found.objects]


def refused(objects: Objects, number: int) -> str:
    with pytest.raises(BucketFailed) as caught:
        names(objects)
    assert caught.value.errno == number, caught.value.detail
    return caught.value.detail


def test_pages_follow_one_another() -> None:
    def answer(head: bytes, connection: socket.socket) -> None:
        asked = re.search(rb"continuation-token=(\d+)", head)
        at = int(asked[1]) if asked is not None else 0
        connection.sendall(answered(page(contents(f"d/{at}%20x"), more=str(at + 1) if at < 3 else "")))

    with bucket(answer) as (objects, where):
        assert names(objects, "d/") == [f"d/{n} x" for n in range(4)]
        assert len(where.asked) == 4
        assert b"prefix=d%2F" in where.asked[0]
        assert not objects.has_below("d/", besides="d/0 x")
        assert objects.has_below("d/", besides="d/1 x")


def test_a_listing_without_an_end_ends_with_its_sandbox() -> None:
    far = threading.Event()

    def answer(_: bytes, connection: socket.socket) -> None:
        connection.sendall(answered(page(contents("k"), more=str(len(where.asked)))))
        if len(where.asked) == 20:
            far.set()

    with bucket(answer) as (objects, where), ThreadPoolExecutor(1) as thread:
        listing = thread.submit(names, objects)
        assert far.wait(60)
        objects.abort(writes=False)
        error = listing.exception(60)
        assert isinstance(error, BucketFailed)
        assert error.errno == errno.ECANCELED
        asked = len(where.asked)
        refused(objects, errno.ECANCELED)
        assert len(where.asked) == asked


def test_a_listing_in_a_circle_is_told() -> None:
    with bucket(lambda _, connection: connection.sendall(answered(page(contents("k"), more="same")))) as (
        objects,
        where,
    ):
        assert "in a circle" in refused(objects, errno.EIO)
        assert len(where.asked) == 2


def test_more_pages_and_more_names_than_a_folder_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: bytes, connection: socket.socket) -> None:
        connection.sendall(answered(page(contents("k" * 500), more=str(len(where.asked)))))

    monkeypatch.setattr("fs.buckets.objects._PAGES_MAX", 5)
    with bucket(answer) as (objects, where):
        assert "more than 5 pages" in refused(objects, errno.EFBIG)
        monkeypatch.setattr("fs.buckets.objects._LIST_BYTES_MAX", 900)
        assert "MiB of names" in refused(objects, errno.EFBIG)
        monkeypatch.setattr("fs.buckets.objects._LIST_MAX", 1)
        assert "more than 1 names" in refused(objects, errno.EFBIG)


def test_an_answer_of_very_many_elements_is_left_after_the_first_of_them() -> None:
    body, taken = page("<a/>" * (4 << 20)), list[int]()

    def answer(_: bytes, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        view = memoryview(answered(body))
        try:
            for begin in range(0, len(view), 64 << 10):
                connection.sendall(view[begin : begin + (64 << 10)])
        finally:
            taken.append(begin)

    with bucket(answer) as (objects, where):
        assert "elements" in refused(objects, errno.EIO)
        assert len(where.asked) == 1  # such an answer is not asked for again
    assert not taken or taken[0] < len(body) // 2


def test_a_listing_that_drips_is_over_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fs.buckets.objects._LIST_S", 0.3)
    where: Stranger
    with bucket(lambda _, connection: drip(connection, where.ended, b"HTTP/1.1 200 OK\r\n\r\n<a>")) as (objects, where):
        refused(objects, errno.EIO)


def test_no_more_bytes_are_taken_than_were_asked_for() -> None:
    given = b"0123456789"
    with bucket(lambda _, connection: connection.sendall(answered(given, status="206 Partial Content"))) as (
        objects,
        _,
    ):
        assert objects.read("k", 0, 10, '"e"') == given
        with pytest.raises(BucketFailed, match="more than was asked for"):
            objects.read("k", 0, 9, '"e"')


@pytest.mark.parametrize(
    "answer",
    [
        answered(b"<Error><Code>" + b"<a/>" * (1 << 16) + b"</Code></Error>", status="400 Bad Request"),
        answered(b"", status="203 Non-Authoritative Information"),
        answered(b"", status="200 OK"),
        answered(b"not XML", status="500 Internal Server Error"),
        b"rubbish\r\n\r\n",
        b"",
    ],
)
def test_other_answers_are_an_error_of_reading(answer: bytes) -> None:
    with bucket(lambda _, connection: connection.sendall(answer)) as (objects, _):
        refused(objects, errno.EIO)


@pytest.mark.parametrize(
    ("headers", "right"),
    [
        ('Last-Modified: Fri, 02 Jan 2026 03:04:05 GMT\r\nETag: "e"\r\n', True),
        ('ETag: "e"\r\n', False),
        (f'Last-Modified: Fri, 02 Jan 2026 03:04:05 GMT\r\nETag: "{"e" * 5000}"\r\n', False),
    ],
)
def test_what_is_told_of_an_object_is_checked(headers: str, right: bool) -> None:
    sent = f"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n{headers}\r\n".encode()
    with bucket(lambda _, connection: connection.sendall(sent)) as (objects, _):
        if right:
            assert objects.head("k") == Facts(7, 1767323045, '"e"')
        else:
            with pytest.raises(BucketFailed):
                objects.head("k")
