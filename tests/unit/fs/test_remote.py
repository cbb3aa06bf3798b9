"""Stores elsewhere that answer as they like."""

import socket
from collections.abc import Callable

import pytest
from stranger import Stranger, answered, drip, stranger

from fs.errors import StoreUnreachable
from fs.store import remote
from fs.store.remote import Bucket, Peer

Read = Callable[[Stranger], Callable[[str, int, int], bytes]]


def of_a_node(where: Stranger) -> Callable[[str, int, int], bytes]:
    return Peer(f"http://{where.host}", "key").read


@pytest.fixture(params=["node", "bucket"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Read:
    def of_a_bucket(where: Stranger) -> Callable[[str, int, int], bytes]:
        for name, value in {
            "ACCESS_KEY_ID": "a",
            "SECRET_ACCESS_KEY": "b",
            "ENDPOINT_URL": f"http://{where.host}",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        return Bucket("b", "").read

    return of_a_node if request.param == "node" else of_a_bucket


def test_what_was_asked_for_is_read_and_no_more(read: Read) -> None:
    with stranger(lambda _, connection: connection.sendall(answered(b"0123456789", status="206 Partial"))) as where:
        assert read(where)("packs/x", 0, 10) == b"0123456789"
        with pytest.raises(StoreUnreachable, match="more than was asked for"):
            read(where)("packs/x", 0, 9)


def test_an_answer_that_drips_is_left(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WHOLE_S", 0.2)
    monkeypatch.setattr(remote, "_WHOLE_BYTES_S", 1 << 30)
    monkeypatch.setattr(remote, "_PIECE", 1)
    where: Stranger

    def answer(_: bytes, connection: socket.socket) -> None:
        drip(connection, where.ended)

    with stranger(answer) as where, pytest.raises(StoreUnreachable, match="too slowly"):
        read(where)("packs/x", 0, 1 << 20)


def test_what_a_node_compresses_stays_so() -> None:
    sent = answered(b"0123456789", headers="Content-Encoding: gzip\r\n")
    with stranger(lambda _, connection: connection.sendall(sent)) as where:
        assert of_a_node(where)("packs/x", 0, 10) == b"0123456789"
