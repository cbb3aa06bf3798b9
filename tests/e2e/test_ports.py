"""Programs that listen inside, reached from outside."""

import socket as sockets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from server import Server, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from isobox import Sandbox

PROGRAM = """
import hashlib, http.server, json, socket, socketserver, struct, base64, sys, threading, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def reply(self, body, status=200, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            out = b""
            while size := int(self.rfile.readline(), 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))
    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        if self.path.startswith("/echo"):
            return self.reply(json.dumps({"path": self.path, "headers": dict(self.headers)}).encode(), Set_Cookie="a=b; Path=/")
        if self.path == "/redirect":
            return self.reply(b"", 302, Location="/elsewhere")
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(4):
                data = f"data: {n}\\n\\n".encode()
                self.wfile.write(f"{len(data):x}\\r\\n".encode() + data + b"\\r\\n")
                self.wfile.flush()
                time.sleep(0.3)
            return self.wfile.write(b"0\\r\\n\\r\\n")
        if self.path == "/slow":
            time.sleep(2)
        if self.path == "/garbage":
            return self.wfile.write(b"this is no HTTP\\r\\n\\r\\n")
        if self.path == "/nothing":
            self.close_connection = True
            return
        self.reply(b"hello")
    do_HEAD = do_GET
    def do_POST(self):
        body = self.body()
        self.reply(json.dumps({"size": len(body), "sha": hashlib.sha256(body).hexdigest(), "method": self.command}).encode())
    do_PUT = do_PATCH = do_DELETE = do_POST
    def websocket(self):
        if self.path == "/refuse":
            return self.reply(b"no", 403)
        accept = base64.b64encode(hashlib.sha1((self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept)
        if "chat" in self.headers.get("Sec-WebSocket-Protocol", ""):
            self.send_header("Sec-WebSocket-Protocol", "chat")
        self.end_headers()
        self.say(1, json.dumps([self.headers.get("Sec-WebSocket-Protocol", ""), self.headers.get("Authorization", "")]).encode())
        while True:
            head = self.rfile.read(2)
            if len(head) < 2: return
            size = head[1] & 127
            if size == 126: size = struct.unpack(">H", self.rfile.read(2))[0]
            elif size == 127: size = struct.unpack(">Q", self.rfile.read(8))[0]
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(size)))
            if head[0] & 15 == 8:
                self.say(8, data)
                self.close_connection = True
                return
            if data == b"bye":
                self.say(8, struct.pack(">H", 4001))
                self.close_connection = True
                return
            self.say(head[0] & 15, data)
    def say(self, opcode, data):
        head = bytes([0x80 | opcode])
        head += bytes([len(data)]) if len(data) < 126 else bytes([126]) + struct.pack(">H", len(data))
        self.wfile.write(head + data)
        self.wfile.flush()

class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 64

def raw():
    listener = socket.create_server(("127.0.0.1", 9000), backlog=64)
    def serve(c):
        kind = c.recv(1)
        if kind == b"e":
            while data := c.recv(65536): c.sendall(data)
        elif kind == b"f":
            for _ in range(64): c.sendall(b"x" * (1 << 20))
        elif kind == b"c":
            n = 0
            while data := c.recv(1 << 20): n += len(data)
            c.sendall(str(n).encode())
        c.close()
    while True:
        c, _ = listener.accept()
        threading.Thread(target=serve, args=(c,), daemon=True).start()

threading.Thread(target=raw, daemon=True).start()
Server(("127.0.0.1", 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def serving(server: Server) -> Iterator[Sandbox]:
    with Sandbox.create(url=server.url, api_key=server.key, timeout_s=600) as sandbox:
        sandbox.files.write("/home/user/serve.py", PROGRAM)
        sandbox.exec(shell="python3 ~/serve.py > /tmp/out 2>&1 &")
        yield sandbox


@pytest.fixture
def port(serving: Sandbox, http: httpx.Client) -> str:
    path = f"/v1/sandboxes/{serving.id}/ports/8000"
    assert http.get(f"{path}/wait").json() == {"port": 8000, "listening": True}
    return path


def dial(server: Server, path: str, **options: object) -> ClientConnection:
    headers = {"Authorization": f"Bearer {server.key}"}
    return connect(f"ws{server.url[4:]}{path}", additional_headers=headers, proxy=None, max_size=None, **options)  # type: ignore[arg-type]


def test_what_listens_is_listed_and_awaited(http: httpx.Client, serving: Sandbox, port: str) -> None:
    listed = http.get(f"/v1/sandboxes/{serving.id}/ports").json()["ports"]
    assert {"port": 8000, "address": "127.0.0.1"} in listed
    began = time.monotonic()
    absent = http.get(f"/v1/sandboxes/{serving.id}/ports/4000/wait", params={"timeout_s": 0.3}).json()
    assert absent == {"port": 4000, "listening": False}
    assert time.monotonic() - began < 5
    closed = http.get(f"/v1/sandboxes/{serving.id}/ports/4000/")
    assert (closed.status_code, closed.json()["code"]) == (502, "port_closed")
    for number in ("0", "65536", "http"):
        assert http.get(f"/v1/sandboxes/{serving.id}/ports/{number}/").status_code in (404, 422)


def test_a_request_passes_both_ways(server: Server, http: httpx.Client, port: str) -> None:
    answer = http.get(f"{port}/echo/a%2Fb?x=1&y=%20", headers={"X-Own": "1", "Cookie": "c=d"})
    seen = answer.json()
    seen["headers"] = {name.title(): value for name, value in seen["headers"].items()}
    assert seen["path"] == "/echo/a%2Fb?x=1&y=%20"
    assert seen["headers"]["X-Own"] == "1"
    assert seen["headers"]["Host"] == "localhost:8000"
    assert seen["headers"]["X-Forwarded-Prefix"] == port
    assert server.key not in answer.text
    assert answer.headers["set-cookie"] == f"a=b; Path={port}/"
    assert answer.headers["content-security-policy"].startswith("sandbox ")
    assert http.get(f"{port}/redirect", follow_redirects=False).headers["location"] == f"{port}/elsewhere"
    assert http.get(port).text == "hello"
    assert http.head(f"{port}/").headers["content-length"] == "5"
    forwarded = http.get(f"{port}/echo", headers={"X-Isobox-Forward-Authorization": "Basic own"}).json()
    assert forwarded["headers"]["authorization"] == "Basic own"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_bodies_are_streamed_with_and_without_a_length(http: httpx.Client, port: str, method: str) -> None:
    data = bytes(range(256)) * 4096
    assert http.request(method, f"{port}/", content=data).json() == {
        "size": len(data), "sha": __import__("hashlib").sha256(data).hexdigest(), "method": method
    }  # fmt: skip
    if method == "POST":
        assert http.post(f"{port}/", content=iter([data[:1000], data[1000:]])).json()["size"] == len(data)


def test_events_come_as_they_are_sent(http: httpx.Client, port: str) -> None:
    began, seen = time.monotonic(), []
    with http.stream("GET", f"{port}/events") as answer:
        for line in answer.iter_lines():
            if line:
                seen.append((line, time.monotonic() - began))
    assert [line for line, _ in seen] == [f"data: {n}" for n in range(4)]
    assert seen[-1][1] - seen[0][1] > 0.6


def test_many_at_once(http: httpx.Client, port: str) -> None:
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda _: http.get(f"{port}/").text, range(60))) == ["hello"] * 60


@pytest.mark.parametrize("path", ["garbage", "nothing"])
def test_an_answer_that_is_none_is_told(http: httpx.Client, port: str, path: str) -> None:
    answer = http.get(f"{port}/{path}")
    assert (answer.status_code, answer.json()["code"]) == (502, "bad_answer")


def test_who_leaves_early_leaves_nothing(server: Server, http: httpx.Client, port: str) -> None:
    with server.client() as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.get(f"{port}/slow", timeout=0.3)
    assert http.get(f"{port}/").text == "hello"


def test_websockets_pass(server: Server, port: str) -> None:
    with dial(server, f"{port}/any", subprotocols=["isobox.key.nonsense", "chat"]) as socket:
        assert socket.subprotocol == "chat"
        assert socket.recv() == '["chat", ""]', "neither key came through"
        socket.send("text")
        assert socket.recv() == "text"
        socket.send(b"\x00\xff" * 20000)
        assert socket.recv() == b"\x00\xff" * 20000
        socket.send("bye")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4001
    with pytest.raises(InvalidStatus) as refused:
        dial(server, f"{port}/refuse")
    assert refused.value.response.status_code in (403, 502)


def test_raw_bytes_pass(server: Server, serving: Sandbox, port: str) -> None:
    path = f"/v1/sandboxes/{serving.id}/ports/9000/tcp"
    with dial(server, path, compression=None) as socket:
        socket.send(b"e")
        socket.send(b"hello")
        assert socket.recv() == b"hello"
    with dial(server, path, compression=None) as socket:
        socket.send(b"f")
        size = 0
        with pytest.raises(ConnectionClosed):
            while True:
                size += len(socket.recv())
        assert size == 64 << 20
    with dial(server, path, compression=None) as socket:
        socket.send(b"c")
        for _ in range(20):
            socket.send(b"x" * 1_000_000)
        socket.send(b"")
        assert socket.recv() == b"20000000"
    with pytest.raises(InvalidStatus):
        dial(server, f"/v1/sandboxes/{serving.id}/ports/9001/tcp")


def test_connections_end_in_copies_and_go_on_in_the_original(
    server: Server, http: httpx.Client, serving: Sandbox, port: str
) -> None:
    path = f"/v1/sandboxes/{serving.id}/ports/9000/tcp"
    with dial(server, path, compression=None) as socket:
        socket.send(b"ebefore")
        assert socket.recv() == b"before"
        child = http.post(f"/v1/sandboxes/{serving.id}/fork", json={}).json()["sandboxes"][0]["id"]
        socket.send(b"after")
        assert socket.recv() == b"after"
        there = f"/v1/sandboxes/{child}"
        established = "grep -c ' 01 ' /proc/net/tcp || true"
        until(lambda: http.post(f"{there}/exec", json={"shell": established}).json()["stdout"].strip() == "0")
        assert http.get(f"{there}/ports/8000/").text == "hello"
        http.delete(there)


def test_a_request_wakes_what_was_frozen_or_parked(own_server: Server) -> None:
    own_server.environment |= {"ISOBOX_FREEZE_AFTER_S": "0.3", "ISOBOX_PARK_AFTER_S": "1"}
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox, own_server.client() as http:
        sandbox.exec(shell="cd /; python3 -m http.server 8000 > /dev/null 2>&1 &")
        path = f"/v1/sandboxes/{sandbox.id}"
        assert http.get(f"{path}/ports/8000/wait").json()["listening"]
        for _ in range(2):
            until(lambda: http.get(path).json()["paused_by"] == "idle")
            with ThreadPoolExecutor(4) as threads:
                assert (
                    list(threads.map(lambda _: http.get(f"{path}/ports/8000/etc/hostname").status_code, range(4)))
                    == [200] * 4
                )


def test_a_port_forwarded_by_the_command_line(server: Server, serving: Sandbox, port: str) -> None:
    import os
    import subprocess
    import sys

    environment = os.environ | {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key}
    command = [
        sys.executable,
        "-m",
        "isobox.cli.main",
        "ports",
        "forward",
        serving.id,
        "9000",
        "--listen",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        local = int(line.split(" ")[0].rpartition(":")[2])
        found: list[bytes] = []

        def talk() -> None:
            with sockets.create_connection(("127.0.0.1", local)) as connection:
                connection.sendall(b"c" + b"y" * 300_000)
                connection.shutdown(sockets.SHUT_WR)
                found.append(connection.recv(100))

        threads = [threading.Thread(target=talk) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert found == [b"300000"] * 3
        process.terminate()
        process.wait(timeout=10)
