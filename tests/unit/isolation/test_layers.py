"""Threads that pass on what a program inside prints, which root inside may stop."""

import contextlib
import os
import threading
from collections.abc import Callable

import pytest

from isolation import layers


def ends(work: Callable[[threading.Event], None]) -> None:
    """That work comes to its end once nobody wants it, whoever has the pipe's other end."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    over.set()
    thread.join(30)
    assert not thread.is_alive()


def test_whoever_waits_for_what_never_comes_ends() -> None:
    from_guest, guest_out = os.pipe()
    ends(lambda over: layers._drain(from_guest, None, 1 << 20, over))
    os.close(guest_out)


def test_whoever_feeds_what_takes_nothing_ends() -> None:
    guest_in, to_guest = os.pipe()
    source = os.memfd_create("layer")
    os.truncate(source, 10 << 20)
    ends(lambda over: layers._feed(source, to_guest, over))
    os.close(guest_in)
    os.close(source)


def test_all_that_is_printed_arrives_and_no_more_than_is_allowed() -> None:
    data, target = os.urandom(300_000), os.memfd_create("layer")
    for most in (len(data), len(data) - 1):
        from_guest, guest_out = os.pipe()

        def write(guest_out: int = guest_out) -> None:
            with contextlib.suppress(BrokenPipeError):
                view = memoryview(data)
                while view:
                    view = view[os.write(guest_out, view) :]
            os.close(guest_out)

        writing = threading.Thread(target=write)
        writing.start()
        if most == len(data):
            layers._drain(from_guest, target, most, threading.Event())
            assert os.pread(target, len(data) + 1, 0) == data
            writing.join()
        else:
            with pytest.raises(layers._TooLarge):
                layers._drain(from_guest, None, 1000, threading.Event())
            writing.join()
    os.close(target)


def test_all_that_is_fed_arrives() -> None:
    guest_in, to_guest = os.pipe()
    source, data = os.memfd_create("layer"), os.urandom(3_000_000)
    os.pwrite(source, data, 0)
    found: list[bytes] = []

    def read() -> None:
        with os.fdopen(guest_in, "rb") as file:
            found.append(file.read())

    reading = threading.Thread(target=read)
    reading.start()
    layers._feed(source, to_guest, threading.Event())
    reading.join()
    assert found == [data]
    os.close(source)
