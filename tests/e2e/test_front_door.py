"""Strangers at the door: heads without end, half requests, bodies without a key, websockets without number."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from server import Server, until
from test_bad_input import rss_mb
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from isobox import Sandbox

OTHER = "other-key-0123456789"
HALF = b"GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\nA: "


def dial(server: Server, source: str = "127.0.0.1") -> socket.socket:
    host, port = server.listen.split(":")
    return socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0))


def answers(server: Server) -> bool:
    """Whether somebody else, on another connection, is served."""
    with server.client() as http:
        return http.get("/v1/sandboxes").status_code == 200


def flood(raw: socket.socket, piece: bytes, most: int) -> int:
    """Send until the other side wants no more: how much it took."""
    sent = 0
    try:
        while sent < most:
            sent += raw.send(piece)
    except OSError:
        pass
    return sent


def answer(raw: socket.socket) -> tuple[int, dict[str, object]]:
    """What was said before the connection was closed; it may have been reset then, for what nobody read."""
    said = b""
    try:
        while piece := raw.recv(65536):
            said += piece
    except OSError:
        pass
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, said
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("begin", [HALF, HALF[:-3], b"GET /"])
def test_a_head_without_end_is_refused_before_it_is_held(server: Server, begin: bytes) -> None:
    assert server.process is not None
    before = rss_mb(server.process.pid)
    with dial(server) as raw:
        raw.sendall(begin)
        taken = flood(raw, b"x" * 65536, 96 << 20)
        assert answers(server)
        status, document = answer(raw)
    assert status in (414, 431), document
    assert document["hint"]
    assert taken < 16 << 20, "what the kernel had room for"
    assert rss_mb(server.process.pid) - before < 16


def test_the_body_of_nobody_is_not_read(server: Server) -> None:
    assert server.process is not None
    before = rss_mb(server.process.pid)
    for path in ("/v1/sandboxes", "/v1/uploads/sha256:" + "0" * 64, "/healthz"):
        for length in (b"Content-Length: 1000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3b9aca00\r\n"):
            with dial(server) as raw:
                raw.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode() + length)
                status = int(raw.recv(65536).split()[1])
                assert status == (405 if path == "/healthz" else 401)
                assert flood(raw, b"x" * 65536, 96 << 20) < 16 << 20
    assert rss_mb(server.process.pid) - before < 16


@pytest.fixture
def narrow(own_server: Server) -> Iterator[Server]:
    """A server with room for few."""
    own_server.state.mkdir()
    (own_server.state / "keys").write_text(f"other {OTHER}\n")
    own_server.environment |= {
        "ISOBOX_CONNECTIONS": "40",
        "ISOBOX_CONNECTIONS_PER_ADDRESS": "16",
        "ISOBOX_WEBSOCKETS": "6",
        "ISOBOX_WEBSOCKETS_PER_KEY": "4",
        "ISOBOX_NETWORK": "0",
        "ISOBOX_POOL_FLOOR": "0",
    }
    own_server.start()
    yield own_server
    assert "Traceback" not in own_server.log()
    assert '"level": "error"' not in own_server.log()


def still_open(sockets: list[socket.socket]) -> int:
    """Those that the server has neither answered nor closed."""
    ended, _, _ = select.select(sockets, [], [], 0)
    return len(sockets) - len(ended)


@pytest.mark.parametrize("sources", [1, 20])
@pytest.mark.parametrize("half", [b"", HALF])
def test_half_requests_push_out_each_other(narrow: Server, sources: int, half: bytes) -> None:
    with ExitStack() as stack:
        waiting = []
        for n in range(200):
            waiting.append(stack.enter_context(dial(narrow, f"127.0.0.{2 + n % sources}")))
            waiting[-1].sendall(half)
        assert answers(narrow)
        until(lambda: still_open(waiting) <= (16 if sources == 1 else 40))
        with dial(narrow, "127.0.0.2") as newest:
            newest.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert newest.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_half_a_request_has_its_time(own_server: Server) -> None:
    own_server.environment |= {"ISOBOX_HEAD_TIMEOUT_S": "0.5", "ISOBOX_NETWORK": "0", "ISOBOX_POOL_FLOOR": "0"}
    own_server.start()
    with dial(own_server) as half, dial(own_server) as nothing:
        half.sendall(HALF)
        assert answer(half)[1]["code"] == "head_timeout"
        assert nothing.recv(10) == b""
    assert answers(own_server)


def test_websockets_of_a_key_are_counted(narrow: Server) -> None:
    with Sandbox.create("base", url=narrow.url, api_key=narrow.key) as mine, ExitStack() as stack:
        theirs = stack.enter_context(Sandbox.create("base", url=narrow.url, api_key=OTHER))

        def opened(sandbox: Sandbox, key: str) -> object:
            url = f"{narrow.url.replace('http', 'ws')}/v1/sandboxes/{sandbox.id}/events"
            return connect(url, additional_headers={"Authorization": f"Bearer {key}"})

        first = [stack.enter_context(opened(mine, narrow.key)) for _ in range(4)]  # type: ignore[arg-type]
        with pytest.raises(InvalidStatus) as refused:
            opened(mine, narrow.key)
        assert refused.value.response.status_code == 429
        assert json.loads(refused.value.response.body)["code"] == "too_many_websockets"
        assert answers(narrow)
        for _ in range(2):  # another key has room, up to what the server has
            stack.enter_context(opened(theirs, OTHER))  # type: ignore[arg-type]
        with pytest.raises(InvalidStatus) as full:
            opened(theirs, OTHER)
        assert full.value.response.status_code == 503
        first[0].close()

        def again() -> bool:
            try:
                stack.enter_context(opened(mine, narrow.key))  # type: ignore[arg-type]
            except InvalidStatus:
                return False
            return True

        until(again)


def test_a_websockets_pings_are_counted(narrow: Server) -> None:
    with Sandbox.create("base", url=narrow.url, api_key=narrow.key) as sandbox:
        url = f"{narrow.url.replace('http', 'ws')}/v1/sandboxes/{sandbox.id}/events"
        headers = {"Authorization": f"Bearer {narrow.key}"}
        with connect(url, additional_headers=headers) as flooding, pytest.raises(ConnectionClosed):
            for n in range(1_000_000):
                flooding.ping(b"%d" % n)
        assert sandbox.exec("echo", "on").stdout == "on\n"


def test_an_empty_key_is_nobodys_and_refuses_the_start(narrow: Server) -> None:
    for line in (b"", b"Authorization:\r\n", b"Authorization: Bearer\r\n", b"Authorization: Bearer \r\n"):
        with dial(narrow) as raw:
            raw.sendall(b"GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + line + b"\r\n")
            assert answer(raw)[0] == 401
    narrow.stop()
    for name in ("api-key", "operator-key"):
        kept = (narrow.state / name).read_text()
        (narrow.state / name).write_text("")
        with pytest.raises(AssertionError, match=f"(?s){name}: there is no key.*delete the file"):
            narrow.start()
        assert narrow.process is not None
        assert narrow.process.wait(30) == 1
        narrow._close()
        (narrow.state / name).write_text(kept)
