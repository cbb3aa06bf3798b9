"""A network outside, in a namespace that a test makes: names, web servers, others. Run as a program it is what runs there."""

import asyncio
import contextlib
import datetime
import io
import json
import os
import ssl
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NETWORK = "198.18.77.0/24"
HOST = "198.18.77.1"
ADDRESSES = {
    "api.test": ["198.18.77.2"],
    "other.test": ["198.18.77.2"],  # lives at the same address
    "files.test": ["198.18.77.3"],
    "sub.wild.example": ["198.18.77.3"],
    "alias.test": ["198.18.77.3"],
    "floor.test": ["10.1.2.3"],
    "mixed.test": ["198.18.77.2", "127.0.0.1"],
    "host.test": [HOST],
    "rebinding.test": ["198.18.77.2"],
}
DNS = "198.18.77.2"
BULK = 256 << 20


def certificates(folder: Path) -> None:
    """A CA and a certificate for all names."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    for subject, public, extension, file in (
        (name("test CA"), ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=None), "ca.pem"),
        (
            name("servers"),
            key.public_key(),
            x509.SubjectAlternativeName([x509.DNSName(each) for each in [*ADDRESSES, "*.wild.example"]]),
            "server.pem",
        ),
    ):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name("test CA"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(extension, critical=file == "ca.pem")
            .sign(ca_key, hashes.SHA256())
        )
        (folder / file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(key.private_bytes(*form))


@dataclass
class Outside:
    """What runs outside, seen from the host."""

    folder: Path
    namespace: str
    device: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ISOBOX_EGRESS_DNS": f"{DNS}:53",
            "ISOBOX_EGRESS_FLOOR_HOLES": "198.18.77.0/24",
            "ISOBOX_EGRESS_TRUST": str(self.folder / "ca.pem"),
        }

    def seen(self) -> list[dict[str, object]]:
        """What came in: one object each."""
        path = self.folder / "seen"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def say(self, **names: list[str]) -> None:
        """Other addresses for names, from now on."""
        (self.folder / "names.json").write_text(json.dumps(ADDRESSES | names))


def _run(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


@contextlib.contextmanager
def outside(folder: Path) -> Iterator[Outside]:
    """The network with all that runs there; nothing is left of it."""
    namespace, device = f"outside-{os.getpid()}", f"out{os.getpid() % 100000}"
    certificates(folder)
    found = Outside(folder, namespace, device)
    found.say()
    _run(f"ip netns add {namespace}")
    try:
        _run(f"ip link add {device} type veth peer name out netns {namespace}")
        _run(f"ip addr add {HOST}/24 dev {device} && ip link set {device} up mtu 65000")
        inside = f"ip -n {namespace}"
        for n in (2, 3):
            _run(f"{inside} addr add 198.18.77.{n}/24 dev out")
        _run(f"{inside} link set lo up && {inside} link set out up mtu 65000 && {inside} route add default via {HOST}")
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, __file__, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield found
        finally:
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
    finally:
        subprocess.run(f"ip netns del {namespace}; ip link del {device}", shell=True, check=False, capture_output=True)


# ---- what runs there


class Servers:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = (folder / "seen").open("a")

    def note(self, **what: object) -> None:
        print(json.dumps(what), file=self.log, flush=True)

    def answer(self, query: bytes) -> bytes:
        labels, offset = [], 12
        while query[offset]:
            labels.append(query[offset + 1 : offset + 1 + query[offset]])
            offset += 1 + query[offset]
        question, name = query[12 : offset + 5], b".".join(labels).decode().lower()
        self.note(dns=name)
        names = json.loads((self.folder / "names.json").read_text())
        head = query[:2]
        if name not in names:
            return head + struct.pack(">HHHHH", 0x8183, 1, 0, 0, 0) + question
        records = b""
        owner = b"\xc0\x0c"
        count = len(names[name])
        if name == "alias.test":
            target = b"\x05files\x04test\x00"
            records += owner + struct.pack(">HHIH", 5, 1, 30, len(target)) + target
            owner, count = target, count + 1
        for address in names[name]:
            records += owner + struct.pack(">HHIH4s", 1, 1, 30, 4, bytes(map(int, address.split("."))))
        return head + struct.pack(">HHHHH", 0x8180, 1, count, 0, 0) + question + records

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, ssl.SSLError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *rest = head.split("\r\n")
                method, path, _ = line.split(" ")
                headers = {n.lower(): v.strip() for n, _, v in (each.partition(":") for each in rest if each)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.note(port=port, method=method, path=path, headers=headers, body=body.decode(errors="replace"))
                if "upgrade" in headers:
                    await self.websocket(reader, writer, headers)
                    break
                await self.respond(writer, path, headers, body)
        writer.close()

    async def websocket(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str]
    ) -> None:
        """Answer each short message with itself and the caller's key."""
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        while True:
            opcode, size = await reader.readexactly(2)
            mask, data = await reader.readexactly(4), await reader.readexactly(size & 127)
            data = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data)) + b" " + headers.get("x-key", "").encode()
            writer.write(bytes((opcode, len(data))) + data)
            await writer.drain()

    async def respond(self, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], body: bytes) -> None:
        kind = b"application/json"
        if path == "/bulk":
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {BULK}\r\n\r\n".encode())
            for _ in range(BULK >> 20):
                writer.write(b"x" * (1 << 20))
                await writer.drain()
            return
        if path == "/slow":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"400\r\n" + b"y" * 0x400 + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        if path == "/v1/weather":
            text = (
                b"sunny, by a caller with a key"
                if headers.get("authorization") == "Bearer weather-key-1234"
                else b"who are you?"
            )
        elif path == "/simple/tiny/":
            text = b'<a href="/tiny-1.0-py3-none-any.whl">tiny-1.0-py3-none-any.whl</a>'
            kind = b"text/html"
        elif path.endswith(".whl"):
            text, kind = wheel(), b"application/octet-stream"
        elif path == "/echo":
            text = json.dumps(headers).encode()
        elif path == "/v1/chat/completions":
            text = completion(headers, body)
        else:
            text = b"hello from outside\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % kind)
        writer.write(b"Content-Length: %d\r\n\r\n" % len(text) + text)
        await writer.drain()

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                size += len(data)
                writer.write(data[:64])
                await writer.drain()
        self.note(echo=size)
        writer.close()

    async def sink(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = 0
        with contextlib.suppress(OSError):
            while True:
                try:
                    data = await asyncio.wait_for(reader.read(1 << 20), 0.5)
                except TimeoutError:  # who was cut off inside says no farewell
                    self.note(sunk=size)
                    continue
                if not data:
                    break
                size += len(data)
        self.note(sunk=size)
        writer.close()

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome\r\n")
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()


def wheel() -> bytes:
    """A package: tiny 1.0."""
    files = {
        "tiny.py": "answer = 42\n",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files["tiny-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in [*files, "tiny-1.0.dist-info/RECORD"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


def completion(headers: dict[str, str], body: bytes) -> bytes:
    asked = json.loads(body)["messages"][-1]["content"]
    message = {"role": "assistant", "content": f"you said {asked}, your key is {headers['authorization'].split()[-1]}"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    ).encode()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, servers: Servers, port: int) -> None:
        self.servers, self.port = servers, port

    def connection_made(self, transport: object) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: object) -> None:
        if self.port == 53:
            self.transport.sendto(self.servers.answer(data), peer)  # type: ignore[attr-defined]
        else:
            self.servers.note(udp=self.port)
            self.transport.sendto(data, peer)  # type: ignore[attr-defined]


async def _main(folder: Path) -> None:
    servers, loop = Servers(folder), asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    for address in ("198.18.77.2", "198.18.77.3"):
        for port in (53, 443, 9000):
            await loop.create_datagram_endpoint(lambda port=port: _Datagrams(servers, port), (address, port))
        for port in (80, 8080):
            await asyncio.start_server(lambda r, w, port=port: servers.http(r, w, port), address, port)
        for port in (443, 8443):
            await asyncio.start_server(lambda r, w, port=port: servers.http(r, w, port), address, port, ssl=context)
        for port in (53, 853, 5432, 7000):
            await asyncio.start_server(servers.echo, address, port)
        await asyncio.start_server(servers.greet, address, 2525)
        await asyncio.start_server(servers.sink, address, 7001)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
