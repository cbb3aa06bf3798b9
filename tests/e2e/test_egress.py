"""What leaves a sandbox and what does not: the real kernel, the real runsc, servers in a namespace of the test's own."""

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from outside import HOST, Outside, outside
from server import Server, until

from agent_examples import fenced_agent, scripted_model
from isobox import Sandbox
from isobox.cli import net as net_commands
from netpolicy.floor import BLOCK
from netpolicy.plan import Place, tag_of
from netpolicy.presets import from_urls, machine_indexes

pytestmark = pytest.mark.timeout(180)
ALLOWED: dict[str, Any] = {
    "allow": [
        {"host": "api.test"},
        {"host": "*.wild.example", "ports": [80]},
        {"host": "files.test", "ports": [443, 2525, 5432, 7000, 8080, 8443]},
        {"cidr": "198.18.77.3/32", "ports": [8080]},
        {"host": "floor.test"},
        {"host": "mixed.test"},
        {"host": "host.test"},
        {"host": "rebinding.test"},
    ]
}
PYTHON = "import socket; s = socket.create_connection({to!r}, 5); s.sendall({send!r}); print(s.recv(99))"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with outside(tmp_path_factory.mktemp("outside")) as found:
        yield found


@pytest.fixture(scope="module")
def egress(net: Outside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("egress")
    (folder / "presets.json").write_text(
        json.dumps({"hello": {"allow": [{"host": "api.test"}, {"host": "files.test"}]}})
    )
    operator = {
        "ISOBOX_EGRESS_PRESETS": str(folder / "presets.json"),
        "ISOBOX_EGRESS_DENY": '[{"host": "denied.test"}, {"cidr": "198.18.77.3/32", "ports": [9]}]',
    }
    settings = {"ISOBOX_POOL_FLOOR": "1", "ISOBOX_POOL_CEILING": "1", **net.environment, **operator}
    running = Server(folder / "state", **settings).start()
    yield running
    running.end()
    problems = [line for line in running.log().splitlines() if '"level": "error"' in line or "Traceback" in line]
    assert not problems, problems[:5]
    assert not (running.state / "gateway.log").read_text()


@pytest.fixture(scope="module")
def box(egress: Server) -> Iterator[Sandbox]:
    with Sandbox.create(url=egress.url, api_key=egress.key, timeout_s=900, network=ALLOWED) as found:
        yield found


@pytest.fixture
def audit(egress: Server, box: Sandbox) -> Callable[..., list[dict[str, Any]]]:
    """The records that came since the test began, once there are as many as expected."""
    with egress.client() as http:
        path = f"/v1/sandboxes/{box.id}/network/log"
        begin = http.get(path, params={"limit": 1000}).json()["next"]

    def records(*, at_least: int = 1, event: str | None = None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []

        def look() -> bool:
            nonlocal found
            with egress.client() as http:
                found = http.get(path, params={"from": begin, "limit": 1000}).json()["records"]
            found = [each for each in found if event is None or each["event"] == event]
            return len(found) >= at_least

        until(look, timeout=5)
        return found

    return records


def reach(box: Sandbox, to: tuple[str, int], send: bytes = b"hello\n") -> str:
    """What a program inside gets from a TCP port, or the name of its error."""
    done = box.exec("python3", "-c", PYTHON.format(to=to, send=send), timeout_s=20)
    return done.stdout.strip() if done.exit_code == 0 else (done.error.name if done.error else done.stderr)


def own(server: Server, number: int) -> str:
    """An address of the server's share: 1 is the gateway's, sandboxes' follow."""
    return str(IPv4Network(json.loads((server.state / "network.json").read_text())["share"])[number])


def last(net: Outside) -> dict[str, Any]:
    """The newest request that came in outside."""
    return [each for each in net.seen() if "path" in each][-1]


# ---- names


def test_an_allowed_name_is_reached_by_http_and_by_tls(box: Sandbox, audit: Any) -> None:
    assert box.exec("curl", "-sS", "-m5", "http://api.test/").stdout == "hello from outside\n"
    assert box.exec("curl", "-sSk", "-m5", "https://api.test/").stdout == "hello from outside\n"
    assert box.exec("curl", "-sS", "-m5", "http://SUB.wild.example./").stdout == "hello from outside\n"
    flows = audit(at_least=3, event="closed")
    assert [(each["name"], each["port"], each["verdict"]) for each in flows] == [
        ("api.test", 80, "allow"),
        ("api.test", 443, "allow"),
        ("sub.wild.example", 80, "allow"),
    ]
    assert all(each["tx_bytes"] > 0 and each["rx_bytes"] > 0 for each in flows)


@pytest.mark.parametrize("name", ["other.test", "wild.example", "test", "api.test.evil.test", "xn--bcher-kva.test"])
def test_a_name_that_no_rule_allows_does_not_exist(box: Sandbox, audit: Any, net: Outside, name: str) -> None:
    began = time.monotonic()
    done = box.exec("python3", "-c", f"import socket; socket.getaddrinfo({name!r}, 80)")
    assert time.monotonic() - began < 3, "at once, not after a time-out"
    assert done.error is not None
    assert done.error.name == "socket.gaierror"
    refused = audit(event="dns")
    assert len(refused) == 1, "an attempt is one record"
    assert (refused[0]["verdict"], refused[0]["name"], refused[0]["rule"]) == ("refuse", name, "default")
    assert name in refused[0]["hint"]
    assert not [each for each in net.seen() if each.get("dns") == name], "nothing went upstream"


@pytest.mark.parametrize("name", ["floor.test", "mixed.test"])
def test_an_allowed_name_that_leads_below_the_floor_leads_nowhere(box: Sandbox, audit: Any, name: str) -> None:
    done = box.exec("python3", "-c", f"import socket; print(socket.gethostbyname({name!r}))")
    assert done.exit_code == 1
    assert audit(event="dns")[0]["rule"] == "floor"


def test_another_host_at_the_same_address_is_not_reached(box: Sandbox, audit: Any, net: Outside) -> None:
    box.exec("curl", "-sSk", "-m5", "https://api.test/")
    tls = box.exec("curl", "-sSk", "-m5", "--connect-to", "other.test:443:api.test:443", "https://other.test/")
    assert tls.exit_code == 35
    assert "unrecognized name" in tls.stderr
    plain = box.exec("curl", "-sS", "-m5", "-H", "Host: other.test", "http://api.test/")
    assert json.loads(plain.stdout)["code"] == "egress_refused"
    refused = audit(at_least=2, event="refused")
    assert [(each.get("sni"), each.get("host")) for each in refused] == [("other.test", None), (None, "other.test")]
    assert not [each for each in net.seen() if (each.get("headers") or {}).get("host") == "other.test"]  # type: ignore[attr-defined]


def test_a_second_request_for_another_host_does_not_get_through(box: Sandbox, net: Outside) -> None:
    two = b"GET /one HTTP/1.1\r\nHost: api.test\r\n\r\nGET /two HTTP/1.1\r\nHost: other.test\r\n\r\n"
    script = (
        f"import socket; s = socket.create_connection(('api.test', 80), 5)\ns.sendall({two!r})\nwhile s.recv(999): pass"
    )
    box.exec("python3", "-c", script, timeout_s=20)
    paths = [each.get("path") for each in net.seen()]
    assert "/two" not in paths


def test_a_name_without_a_pin_is_refused(box: Sandbox, audit: Any) -> None:
    # The address is known from elsewhere: nobody inside asked for the name.
    done = box.exec("curl", "-sSk", "-m5", "--resolve", "rebinding.test:443:198.18.77.3", "https://rebinding.test/")
    assert done.exit_code == 35
    assert audit(event="refused")[0]["rule"] == "pin"


def test_only_tls_goes_to_443_and_only_http_to_80(box: Sandbox, audit: Any) -> None:
    assert reach(box, ("api.test", 443), b"SSH-2.0-x\r\n" * 10) in ("ConnectionResetError", "b''")
    assert reach(box, ("api.test", 80), b"\x16\x03\x01 no request\r\n\r\n") != "b'hello"
    assert [each["rule"] for each in audit(at_least=2, event="refused")] == ["protocol", "protocol"]


def test_other_protocols_go_where_a_rule_names_the_port(box: Sandbox, audit: Any) -> None:
    assert reach(box, ("files.test", 7000)) == r"b'hello\n'"
    script = "import socket; s = socket.create_connection(('files.test', 2525), 5); print(s.recv(99))"
    assert "220 welcome" in box.exec("python3", "-c", script).stdout
    # TLS and HTTP on a port of their own are looked at all the same.
    assert box.exec("curl", "-sSk", "-m5", "https://files.test:8443/").stdout == "hello from outside\n"
    assert box.exec("curl", "-sS", "-m5", "http://files.test:8080/").stdout == "hello from outside\n"
    other = box.exec("curl", "-sSk", "-m5", "--connect-to", "api.test:8443:files.test:8443", "https://api.test:8443/")
    assert other.exit_code == 35
    assert reach(box, ("api.test", 7000)) in ("ConnectionResetError", "b''")


def test_one_address_per_name_and_only_its_own_types(box: Sandbox, audit: Any, net: Outside) -> None:
    script = """
import socket, struct
def ask(name, type, class_=1, count=1):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)
    q = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\\0" + struct.pack(">HH", type, class_)
    s.sendto(struct.pack(">HHHHHH", 7, 0x100, count, 0, 0, 0) + q * count, ("10.200.0.1", 53))
    head = struct.unpack(">HHHHHH", s.recv(4096)[:12]); return head[1] & 15, head[3]
for type in (1, 28, 65, 64, 16, 15, 255, 252, 12):
    print(type, *ask("api.test", type))
print("class", *ask("api.test", 1, 3)); print("two", *ask("api.test", 1, 1, 2))
"""
    lines = box.exec("python3", "-c", script).stdout.splitlines()
    assert lines[:4] == ["1 0 1", "28 0 0", "65 0 0", "64 0 0"]
    assert [line.split()[1] for line in lines[4:9]] == ["5"] * 5
    assert lines[9:] == ["class 3 0", "two 1 0"]
    alias = box.exec("python3", "-c", "import socket; print(socket.gethostbyname('alias.test'))")
    assert alias.exit_code == 1, "no rule allows it"


def test_names_are_resolved_over_tcp_as_well(box: Sandbox) -> None:
    script = """
import socket, struct
s = socket.create_connection(("10.200.0.1", 53), 5)
q = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\\x03api\\x04test\\0" + struct.pack(">HH", 1, 1)
s.sendall(struct.pack(">H", len(q)) + q); print(socket.inet_ntoa(s.recv(999)[-4:]))
"""
    assert box.exec("python3", "-c", script).stdout.strip() == "198.18.77.2"


@pytest.mark.parametrize("port", [80, 443])
def test_a_websocket_goes_through_an_upgrade(egress: Server, port: int) -> None:
    policy = {
        "allow": [{"host": "api.test"}],
        "inject": [{"host": "api.test", "header": "X-Key", "secret": "upgraded"}],
    }
    script = f"""
import socket, ssl
s = socket.create_connection(("api.test", {port}), 5)
if {port} == 443: s = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt").wrap_socket(s, server_hostname="api.test")
s.sendall(b"GET /ws HTTP/1.1\\r\\nHost: api.test\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n")
head = b""
while b"\\r\\n\\r\\n" not in head: head += s.recv(999)
print(head.split()[1].decode())
for n in range(3):
    s.sendall(b"\\x82\\x86\\0\\0\\0\\0ping %d" % n); print(s.recv(99))
"""
    key = b"*" * 14 if port == 443 else b""
    pongs = [repr(b"\x82" + bytes([7 + len(key)]) + b"ping %d " % n + key) for n in range(3)]
    with egress.client() as http:
        http.put("/v1/secrets/upgraded", json={"value": "a-secret-value"}).raise_for_status()
        with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine:
            done = mine.exec("python3", "-c", script, timeout_s=20)
            assert done.stdout.split("\n")[:4] == ["101", *pongs], done.stderr
        http.delete("/v1/secrets/upgraded")


def test_open_but_for_some_names(egress: Server, net: Outside) -> None:
    policy = {"default": "allow", "deny": [{"host": "other.test"}, {"cidr": "198.18.77.3/32", "ports": [5432]}]}
    with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine:
        assert mine.exec("curl", "-sSk", "-m5", "https://api.test/").stdout == "hello from outside\n"
        assert mine.exec("curl", "-sS", "-m5", "http://198.18.77.2:8080/").stdout == "hello from outside\n"
        assert mine.exec("getent", "hosts", "other.test").exit_code == 2
        hidden = mine.exec("curl", "-sSk", "-m5", "--connect-to", "other.test:443:api.test:443", "https://other.test/")
        assert hidden.exit_code == 35
        assert reach(mine, ("198.18.77.3", 7000)) == r"b'hello\n'"
        assert reach(mine, ("198.18.77.3", 5432)) == "ConnectionRefusedError"
        assert reach(mine, ("198.18.77.3", 53)) == "ConnectionRefusedError"
        script = """
import socket
for port in (9000, 443):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1); s.sendto(b"x", ("198.18.77.3", port))
    try: print(s.recv(9))
    except TimeoutError: print("silence")
"""
        assert mine.exec("python3", "-c", script).stdout.split() == ["b'x'", "silence"], "QUIC hides names"


def test_code_in_a_context_is_told_as_well(box: Sandbox) -> None:
    done = box.run(
        "import socket\ntry: socket.create_connection(('203.0.113.9', 81))\nexcept OSError as e: print(type(e).__name__)"
    )
    assert done.stdout == "ConnectionRefusedError\n"
    told = [event for event in box.process(done.id) if event.type == "network"]
    assert told
    assert told[0].info["destination"] == "203.0.113.9"


# ---- addresses and protocols


def test_a_cidr_rule_allows_its_address_and_port_alone(box: Sandbox, audit: Any) -> None:
    assert box.exec("curl", "-sS", "-m5", "http://198.18.77.3:8080/").stdout == "hello from outside\n"
    # The port is a host rule's, but no name was asked for.
    assert reach(box, ("198.18.77.2", 5432)) in ("ConnectionResetError", "b''")
    assert audit(event="refused")[0]["rule"] in ("pin", "default")
    flows = audit(event="flow")
    assert flows[0]["rule"].startswith("allow[3] cidr 198.18.77.3/32")


def test_the_end_of_a_connection_by_cidr_rule_is_written_down_with_its_bytes(egress: Server) -> None:
    policy = {"allow": [{"cidr": "198.18.77.3/32", "ports": [8080]}]}
    with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine:
        assert mine.exec("curl", "-sS", "-m5", "http://198.18.77.3:8080/").exit_code == 0
    with egress.client() as http:
        records = http.get(f"/v1/sandboxes/{mine.id}/network/log").json()["records"]
    assert [each["event"] for each in records] == ["flow", "closed"]
    assert records[1]["rule"].startswith("allow[0] cidr")
    assert records[1]["tx_bytes"] > 100
    assert records[1]["rx_bytes"] > 100


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("1.1.1.1", 853),
        ("8.8.8.8", 53),
        ("127.0.0.1", 9),
        ("169.254.169.254", 81),
        ("10.200.0.1", 4443),
        ("10.200.0.1", 8700),
        (HOST, 22),
        ("own gateway", 4443),
        ("neighbour", 22),
        ("203.0.113.1", 22),
    ],
)
def test_other_addresses_answer_with_a_refusal_at_once(
    egress: Server, box: Sandbox, audit: Any, address: str, port: int
) -> None:
    address = {"own gateway": own(egress, 1), "neighbour": own(egress, 3)}.get(address, address)
    began = time.monotonic()
    assert reach(box, (address, port)) == "ConnectionRefusedError"
    assert time.monotonic() - began < 3
    if address != "127.0.0.1":
        refused = audit(event="refused")
        assert len(refused) == 1
        assert refused[0]["port"] == port


def test_the_api_is_out_of_reach(box: Sandbox, egress: Server) -> None:
    port = int(egress.url.rpartition(":")[2])
    for address in ("10.200.0.1", HOST, own(egress, 1)):
        assert reach(box, (address, port)) == "ConnectionRefusedError"


def test_udp_icmp_and_ipv6_go_nowhere(box: Sandbox, audit: Any, net: Outside) -> None:
    before = len(net.seen())
    script = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.5)
for to in (("198.18.77.2", 443), ("198.18.77.3", 9000), ("8.8.8.8", 53)):
    s.sendto(b"x", to)
try: s.recv(9); print("answered")
except TimeoutError: print("silence")
try: socket.create_connection(("2001:db8::1", 80), 2)
except OSError as e: print("ipv6", type(e).__name__)
i = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
i.sendto(b"\\x08\\0\\0\\0\\0\\0\\0\\1", ("198.18.77.2", 0)); i.settimeout(0.5)
try: i.recv(99); print("pong")
except TimeoutError: print("silence")
"""
    done = box.exec("python3", "-c", script, timeout_s=20)
    lines = done.stdout.splitlines()
    assert lines[0] == "silence", done.stderr
    assert lines[1].startswith("ipv6"), done.stderr
    assert lines[2:] == ["silence"], done.stderr
    refused = audit(at_least=4, event="refused")
    assert [(each["proto"], each.get("port")) for each in refused] == [
        ("udp", 443),
        ("udp", 9000),
        ("udp", 53),
        ("icmp", None),
    ]
    assert not [each for each in net.seen()[before:] if "udp" in each]


def test_neighbours_cannot_see_each_other(egress: Server, box: Sandbox) -> None:
    with Sandbox.create(url=egress.url, api_key=egress.key, network="open") as other:
        listening = box.start("python3", "-c", "import socket; s = socket.create_server(('0.0.0.0', 9999)); s.accept()")
        time.sleep(0.3)
        for last in range(2, 8):
            assert reach(other, (own(egress, last), 9999)) == "ConnectionRefusedError"
        assert reach(other, ("10.200.0.2", 9999)) == "ConnectionRefusedError", "that is itself"
        listening.kill()
        assert other.exec("curl", "-sS", "-m5", "http://198.18.77.2:8080/").stdout == "hello from outside\n"
        assert reach(other, ("198.18.77.3", 53)) == "ConnectionRefusedError", "other resolvers are closed even so"


def test_closed_is_the_default(egress: Server, net: Outside) -> None:
    with Sandbox.create(url=egress.url, api_key=egress.key) as closed:
        assert closed.info.raw["network"]["default"] == "deny"
        assert reach(closed, ("198.18.77.3", 8080)) == "ConnectionRefusedError"
        assert closed.exec("getent", "hosts", "api.test").exit_code == 2


# ---- what programs and people are told


def test_an_exec_and_the_sandbox_are_told_what_was_refused(egress: Server, box: Sandbox) -> None:
    process = box.start(shell="curl -sS -m5 http://forbidden.test/; sleep 0.2")
    told = [event for event in process if event.type == "network"]
    assert told
    assert told[0].info["name"] == "forbidden.test"
    assert '"host": "forbidden.test"' in told[0].info["hint"]
    with egress.client() as http, http.stream("GET", f"/v1/sandboxes/{box.id}/events") as stream:
        for line in stream.iter_lines():
            if "forbidden.test" in line:
                assert json.loads(line.partition(":")[2])["type"] == "network"
                break


def test_an_operators_preset_and_what_he_denies(egress: Server, net: Outside) -> None:
    net.say(**{"denied.test": ["198.18.77.2"]})
    policy = {"preset": "hello", "allow": [{"host": "denied.test"}], "deny": [{"host": "files.test"}]}
    with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine:
        assert mine.exec("curl", "-sSk", "-m5", "https://api.test/").exit_code == 0
        assert mine.exec("getent", "hosts", "files.test").exit_code == 2, "the policy's own deny goes before the preset"
        assert mine.exec("getent", "hosts", "denied.test").exit_code == 2
        assert next(each["rule"] for each in mine.network_log() if each.get("name") == "denied.test") == "operator"
        assert mine.network()["asked"]["preset"] == "hello"
        mine.set_network("hello")
        assert mine.exec("curl", "-sSk", "-m5", "https://files.test/").exit_code == 0


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"allow": [{"host": "*"}]}, "wildcard"),
        ({"allow": [{"host": "*.com"}]}, "too wide"),
        ({"allow": [{"host": "1.2.3.4"}]}, "cidr"),
        ({"allow": [{"host": "a b"}]}, "host name"),
        ({"allow": [{"cidr": "10.0.0.1/8"}]}, "allow[0]"),
        ({"allow": [{"cidr": "2001:db8::/32"}]}, "IPv4"),
        ({"allow": [{"host": "a.test", "cidr": "1.1.1.1"}]}, "either"),
        ({"allow": [{"host": "a.test", "ports": [0]}]}, "ports"),
        ({"allow": [{"host": "a.test", "ports": ["9-1"]}]}, "allow[0]"),
        ({"allow": [{"host": "a.test", "proto": "udp"}]}, "cidr rule"),
        ({"inject": [{"host": "a.test", "env": "K", "secret": "s"}]}, "no rule allows"),
        ({"allow": [{"host": "a.test"}], "inject": [{"host": "a.test", "env": "K", "secret": "no"}]}, "no secret"),
        ({"allow": [{"host": "a.test"}], "inject": [{"host": "a.test", "header": "Host", "secret": "s"}]}, "header"),
        ({"limits": {"tx_bytes": 0}}, "limits"),
        ({"preset": "nonsense"}, "preset"),
        ("nonsense", "known are"),
        ({"allow": "all"}, "allow"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_with_the_place(
    egress: Server, box: Sandbox, policy: Any, words: str
) -> None:
    with egress.client() as http:
        before = http.get(f"/v1/sandboxes/{box.id}/network").json()
        for answer in (
            http.put(f"/v1/sandboxes/{box.id}/network", json=policy),
            http.post("/v1/sandboxes", json={"network": policy}),
        ):
            assert answer.status_code == 422, answer.text
            assert words in answer.json()["detail"] + answer.json()["hint"], answer.text
        assert http.get(f"/v1/sandboxes/{box.id}/network").json() == before


# ---- changes while it runs


def downloading(box: Sandbox, url: str) -> Any:
    """A download that goes on and writes down how far it is."""
    process = box.start(shell=f"rm -f /tmp/got; curl -sSkN {url} -o /tmp/got; echo ended $?")
    until(lambda: box.exec(shell="stat -c %s /tmp/got 2>/dev/null || echo 0").stdout.strip() not in ("0", ""))
    return process


@pytest.mark.parametrize("url", ["https://api.test/slow", "http://api.test/slow", "http://198.18.77.3:8080/slow"])
def test_a_policy_that_is_taken_back_stops_a_download(egress: Server, url: str) -> None:
    with Sandbox.create(url=egress.url, api_key=egress.key, network=ALLOWED) as mine, egress.client() as http:
        process = downloading(mine, url)
        answer = http.put(f"/v1/sandboxes/{mine.id}/network", json={"allow": [{"host": "files.test"}]})
        assert answer.status_code == 200, answer.text
        size = "stat -c %s /tmp/got"
        first = mine.exec(shell=size).stdout
        time.sleep(0.5)
        assert mine.exec(shell=size).stdout == first, "not a byte after the answer"
        assert "ended" in process.wait().stdout
        again = mine.exec("curl", "-sSk", "-m5", url)
        assert again.exit_code != 0
        assert mine.exec("curl", "-sSk", "-m5", "https://files.test/").exit_code == 0


def test_what_stays_allowed_goes_on_through_a_change(egress: Server) -> None:
    with Sandbox.create(url=egress.url, api_key=egress.key, network=ALLOWED) as mine, egress.client() as http:
        streams = [downloading(mine, "https://api.test/slow")]
        stronger = ALLOWED | {"deny": [{"host": "files.test"}]}
        assert http.put(f"/v1/sandboxes/{mine.id}/network", json=stronger).status_code == 200
        size = "stat -c %s /tmp/got"
        first = int(mine.exec(shell=size).stdout)
        until(lambda: int(mine.exec(shell=size).stdout) > first)
        assert mine.exec("getent", "hosts", "files.test").exit_code == 2
        for each in streams:
            each.kill()


def test_the_gateway_comes_back_and_nothing_gets_out_meanwhile(egress: Server, box: Sandbox) -> None:
    def gateways() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    line = (entry / "cmdline").read_bytes()
                    if (
                        b"netpolicy.gateway.process" in line
                        and entry.stat().st_uid == Place(tag_of(egress.state), BLOCK).gateway_uid
                    ):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    process = downloading(box, "https://api.test/slow")
    running = gateways()
    assert running, "it runs as nobody"
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    assert "ended" in process.wait().stdout
    until(lambda: box.exec("curl", "-sSk", "-m5", "https://api.test/").exit_code == 0)
    assert not set(gateways()) & set(running)


# ---- limits


def upload_until_cut(egress: Server, net: Outside, quota: int) -> int:
    """How many bytes arrive outside of an upload that a quota cuts off."""
    policy = {"allow": [{"cidr": "198.18.77.3/32", "ports": [7001]}], "limits": {"tx_bytes": quota}}
    script = """
import socket
s = socket.create_connection(("198.18.77.3", 7001), 5); n = 0
try:
    while n < 32 << 20: n += s.send(b"x" * 65536)
except OSError as e: print(type(e).__name__)
"""
    before = len([each for each in net.seen() if "sunk" in each])
    with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine, egress.client() as http:
        done = mine.exec("python3", "-c", script, timeout_s=30)
        assert done.stdout.strip() in ("ConnectionResetError", "BrokenPipeError")
        http.delete(f"/v1/sandboxes/{mine.id}")
        log = http.get(f"/v1/sandboxes/{mine.id}/network/log").json()["records"]
    assert next(each["rule"] for each in log if each["event"] == "refused") == "limit tx_bytes"
    until(lambda: len([each for each in net.seen() if "sunk" in each]) >= before + 2)  # told twice: no more comes
    return int(str([each for each in net.seen() if "sunk" in each][-1]["sunk"]))


def carried(net: Outside) -> int:
    """Bytes that this machine sent on the link to the outside, frames' own headers included."""
    return int(Path(f"/sys/class/net/{net.device}/statistics/tx_bytes").read_text())


def test_a_byte_quota_is_exact(egress: Server, net: Outside) -> None:
    quota = 8 << 20
    frames = (quota // 1400) * 14  # what is counted is what the network carries, without the headers of its frames
    before = carried(net)
    arrived = upload_until_cut(egress, net, quota)
    sent = carried(net) - before
    assert arrived <= quota
    # Of the link, not of what arrived: a busy guest sends some of it twice, and both times count.
    assert quota - (64 << 10) <= sent <= quota + frames + (64 << 10), (
        f"{sent} of {quota} were carried, {arrived} arrived"
    )


def test_connections_and_their_rate_are_limited(egress: Server) -> None:
    policy = {"allow": [{"cidr": "198.18.77.3/32", "ports": [7000]}], "limits": {"connections": 3}}
    script = """
import socket
kept = []
for n in range(6):
    try: kept.append(socket.create_connection(("198.18.77.3", 7000), 5))
    except OSError as e: print(type(e).__name__)
print(len(kept))
"""
    with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine, egress.client() as http:
        assert mine.exec("python3", "-c", script, timeout_s=30).stdout.split() == ["ConnectionRefusedError"] * 3 + ["3"]
        policy["limits"] = {"new_connections_per_s": 2}
        assert http.put(f"/v1/sandboxes/{mine.id}/network", json=policy).status_code == 200
        time.sleep(1.1)
        assert int(mine.exec("python3", "-c", script, timeout_s=30).stdout.split()[-1]) in (2, 3)


def test_bandwidth_is_limited(egress: Server) -> None:
    policy = {
        "allow": [{"cidr": "198.18.77.3/32", "ports": [7000]}],
        "limits": {"tx_bytes_per_s": 1 << 20},
    }
    script = """
import socket, time
s = socket.create_connection(("198.18.77.3", 7000), 5); s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
t = time.monotonic()
for n in range(48): s.sendall(b"x" * 65536)
s.shutdown(socket.SHUT_WR)
while s.recv(65536): pass
print(time.monotonic() - t)
"""
    with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine:
        assert float(mine.exec("python3", "-c", script, timeout_s=60).stdout) > 1.5, "3 MiB at 1 MiB a second"


def test_questions_are_limited(egress: Server) -> None:
    policy = {"allow": [{"host": "api.test"}], "limits": {"dns_per_s": 5}}
    script = """
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); codes = []
for n in range(12):
    s.sendto(struct.pack(">HHHHHH", n, 0x100, 1, 0, 0, 0) + b"\\x03api\\x04test\\0\\0\\1\\0\\1", ("10.200.0.1", 53))
    codes.append(s.recv(999)[3] & 15)
print(codes.count(0), codes.count(5))
"""
    with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine:
        good, refused = map(int, mine.exec("python3", "-c", script).stdout.split())
        assert 5 <= good <= 7
        assert refused == 12 - good


# ---- many at once, copies, restarts


def test_sandboxes_with_policies_of_their_own_keep_them(egress: Server) -> None:
    boxes = [
        Sandbox.create(
            url=egress.url,
            api_key=egress.key,
            network={"allow": [{"cidr": f"198.18.77.{2 + n % 2}/32", "ports": [8080]}]},
        )
        for n in range(6)
    ]
    try:
        results: dict[int, tuple[int, int]] = {}

        def look(n: int) -> None:
            codes = [boxes[n].exec("curl", "-sS", "-m5", f"http://198.18.77.{last}:8080/").exit_code for last in (2, 3)]
            results[n] = (codes[0], codes[1])  # type: ignore[assignment]

        threads = [threading.Thread(target=look, args=(n,)) for n in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert results == {n: ((0, 7) if n % 2 == 0 else (7, 0)) for n in range(6)}
    finally:
        for each in boxes:
            each.terminate()
            each.close()


def test_a_fork_has_a_slot_and_the_policy_of_its_own(egress: Server) -> None:
    with Sandbox.create(url=egress.url, api_key=egress.key, network=ALLOWED) as mine, egress.client() as http:
        process = mine.start(
            "python3",
            "-c",
            "import socket, time\n"
            "s = socket.create_connection(('files.test', 7000), 5); s.sendall(b'a'); print(s.recv(9), flush=True)\n"
            "time.sleep(2)\n"
            "try: s.sendall(b'b'); print(s.recv(9), flush=True)\n"
            "except ConnectionError: print('reset', flush=True)\n",
        )
        until(lambda: b"b'a'" in process.output())
        children = http.post(f"/v1/sandboxes/{mine.id}/fork", json={"count": 2}).json()
        assert not children["errors"], children
        for child in children["sandboxes"]:
            execs = http.get(f"/v1/sandboxes/{child['id']}/execs").json()["execs"]
            path = f"/v1/sandboxes/{child['id']}/execs/{execs[0]['id']}"
            until(lambda path=path: http.get(path).json()["state"] == "exited")  # type: ignore[misc]
            # Which ConnectionError the first send meets is the release's own way.
            assert http.get(f"{path}/output").text == "reset\n", "what was open is reset"
            answer = http.post(
                f"/v1/sandboxes/{child['id']}/exec", json={"argv": ["curl", "-sSk", "-m5", "https://api.test/"]}
            ).json()
            assert answer["stdout"] == "hello from outside\n", answer
            refused = http.post(
                f"/v1/sandboxes/{child['id']}/exec", json={"argv": ["curl", "-sS", "-m5", "http://203.0.113.1:81/"]}
            ).json()
            assert refused["outcome"]["exit_code"] == 7
        # The children's policies are their own.
        first, second = (child["id"] for child in children["sandboxes"])
        assert http.put(f"/v1/sandboxes/{first}/network", json="none").status_code == 200
        curl = {"argv": ["curl", "-sSk", "-m5", "https://api.test/"]}
        assert http.post(f"/v1/sandboxes/{first}/exec", json=curl).json()["outcome"]["exit_code"] == 6
        assert http.post(f"/v1/sandboxes/{second}/exec", json=curl).json()["outcome"]["exit_code"] == 0
        for id_ in (first, second):
            http.delete(f"/v1/sandboxes/{id_}")


def test_a_pause_and_a_snapshot_go_on_under_the_policy_of_now(egress: Server) -> None:
    with Sandbox.create(url=egress.url, api_key=egress.key, network=ALLOWED) as mine, egress.client() as http:
        path = f"/v1/sandboxes/{mine.id}"
        snapshot = http.post(f"{path}/snapshots", json={}).json()
        assert http.post(f"{path}/pause").status_code == 200
        assert http.put(f"{path}/network", json={"allow": [{"host": "files.test"}]}).status_code == 200
        assert http.post(f"{path}/resume").status_code == 200
        assert mine.exec("curl", "-sSk", "-m5", "https://api.test/").exit_code == 6
        assert mine.exec("curl", "-sSk", "-m5", "https://files.test/").exit_code == 0
        made = http.post("/v1/sandboxes", json={"snapshot": snapshot["id"]}).json()
        curl = {"argv": ["curl", "-sSk", "-m5", "https://api.test/"]}
        assert http.post(f"/v1/sandboxes/{made['id']}/exec", json=curl).json()["outcome"]["exit_code"] == 0
        http.delete(f"/v1/sandboxes/{made['id']}")
        made = http.post("/v1/sandboxes", json={"snapshot": snapshot["id"], "network": "none"}).json()
        assert http.post(f"/v1/sandboxes/{made['id']}/exec", json=curl).json()["outcome"]["exit_code"] == 6
        http.delete(f"/v1/sandboxes/{made['id']}")
        http.delete(f"/v1/snapshots/{snapshot['id']}")


def test_a_killed_server_leaves_networks_at_work(net: Outside, own_server: Server) -> None:
    own_server.environment |= {"ISOBOX_POOL_CEILING": "0", **net.environment}
    own_server.start()
    policy = ALLOWED | {"limits": {"tx_bytes": 1 << 30}}
    with Sandbox.create(url=own_server.url, api_key=own_server.key, network=policy) as mine:
        streams = downloading(mine, "https://api.test/slow")
        own_server.kill()
        time.sleep(1.0)
        own_server.start()
        size = "stat -c %s /tmp/got"
        first = int(mine.exec(shell=size).stdout)
        until(lambda: int(mine.exec(shell=size).stdout) > first)
        assert mine.exec("curl", "-sS", "-m5", "http://198.18.77.3:8080/").exit_code == 0
        assert mine.exec("curl", "-sS", "-m5", "http://203.0.113.1:81/").exit_code == 7
        with own_server.client() as http:
            records = http.get(f"/v1/sandboxes/{mine.id}/network/log").json()["records"]
        assert [each["seq"] for each in records] == list(range(1, len(records) + 1))
        assert len([each for each in records if each["event"] == "dns"]) == 1, "no record twice"
        streams.kill()


# ---- credentials

SECRET = "sk-proj-T3BlbkFJabcdefghijklmnopqrstuvwxyz0123456789"


def test_a_credential_is_used_and_found_nowhere(egress: Server, net: Outside, tmp_path: Path) -> None:
    with egress.client() as http:
        answer = http.put("/v1/secrets/model", json={"value": SECRET})
        assert answer.status_code == 200
        assert SECRET not in answer.text + http.get("/v1/secrets").text + http.get("/v1/secrets/model").text
        policy = {
            "allow": [{"host": "api.test"}, {"host": "files.test"}],
            "inject": [
                {"host": "api.test", "env": "MODEL_KEY", "secret": "model"},
                {"host": "files.test", "header": "X-Api-Key", "format": "key {secret}", "secret": "model",
                 "methods": ["GET"], "path_prefix": "/v1", "budget": 2},
            ],
        }  # fmt: skip
        with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine:
            mark = mine.exec(shell="printf %s $MODEL_KEY").stdout
            assert mark.startswith("sk-proj-")
            assert len(mark) == len(SECRET)
            assert mark != SECRET
            bearer = "Authorization: Bearer " + mark
            done = mine.exec("curl", "-sS", "-m5", "-H", bearer, "https://api.test/echo")
            assert done.exit_code == 0, done.stderr
            assert "*" * len(SECRET) in done.stdout, "what the host echoes cannot be read"
            assert last(net)["headers"]["authorization"] == f"Bearer {SECRET}"
            mine.exec("curl", "-sS", "-m5", "-u", f"me:{mark}", "https://api.test/x")
            basic = base64.b64encode(f"me:{SECRET}".encode()).decode()
            assert last(net)["headers"]["authorization"] == f"Basic {basic}"
            # To another host the placeholder stays what it is, and its use is written down.
            mine.exec("curl", "-sS", "-m5", "-H", bearer, "https://files.test/v2/x")
            assert last(net)["headers"]["authorization"] == f"Bearer {mark}"
            assert "x-api-key" not in last(net)["headers"]
            # By header: method, path and budget.
            for path, code in (("/v1/a", 0), ("/v1/b", 0), ("/v1/c", 403)):
                done = mine.exec("curl", "-sS", "-m5", "-H", "X-Api-Key: mine", f"https://files.test{path}")
                if code:
                    assert json.loads(done.stdout)["status"] == 403
                    assert "budget" in done.stdout
                else:
                    assert last(net)["headers"]["x-api-key"] == f"key {SECRET}"
            twisted = mine.exec("curl", "-sS", "-m5", "--path-as-is", "https://files.test/v2/../v1/x")
            assert json.loads(twisted.stdout)["status"] == 403
            fronted = mine.exec("curl", "-sS", "-m5", "-H", "Host: files.test", "https://api.test/")
            assert json.loads(fronted.stdout)["code"] == "egress_refused"
            openai = mine.exec("python3", "-c", OPENAI, timeout_s=30)
            assert "*" * 20 in openai.stdout, openai.stderr
            snapshot = http.post(f"/v1/sandboxes/{mine.id}/snapshots", json={}).json()
            everywhere = mine.exec(shell="env; cat /proc/*/environ; grep -r T3BlbkFJ /etc /home /tmp; true").stdout
            assert SECRET not in everywhere
            log = http.get(f"/v1/sandboxes/{mine.id}/network/log", params={"limit": 1000}).text
            assert SECRET not in log
            assert '"secret"' in log
            found = [
                str(path) for path in egress.state.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
            ]
            assert not found, "neither in specs nor snapshots, logs or the database"
            assert http.delete("/v1/secrets/model").status_code == 204
            gone = mine.exec("curl", "-sS", "-m5", "-H", bearer, "https://api.test/echo")
            assert "gone" in gone.stdout
        http.delete(f"/v1/snapshots/{snapshot['id']}")


OPENAI = """
import json, os, urllib.request
request = urllib.request.Request(
    "https://api.test/v1/chat/completions",
    json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode(),
    {"Authorization": "Bearer " + os.environ["MODEL_KEY"], "Content-Type": "application/json"},
)
print(json.load(urllib.request.urlopen(request, timeout=10))["choices"][0]["message"]["content"])
"""


@pytest.mark.parametrize("value", ["", "short", "with space", "line\nbreak", 7, None])
def test_a_secret_that_cannot_be_one_is_refused(egress: Server, value: Any) -> None:
    with egress.client() as http:
        assert http.put("/v1/secrets/bad", json={"value": value}).status_code == 422
        assert http.get("/v1/secrets/bad").status_code == 404
        assert http.delete("/v1/secrets/bad").status_code == 404


def test_a_host_that_cannot_prove_itself_gets_no_credential(egress: Server, net: Outside) -> None:
    net.say(**{"unproven.test": ["198.18.77.2"]})
    with egress.client() as http:
        http.put("/v1/secrets/other", json={"value": "another-secret-value"})
        policy = {
            "allow": [{"host": "unproven.test"}],
            "inject": [{"host": "unproven.test", "header": "X-Key", "secret": "other"}],
        }
        with Sandbox.create(url=egress.url, api_key=egress.key, network=policy) as mine:
            before = len(net.seen())
            assert mine.exec("curl", "-sSk", "-m5", "https://unproven.test/").exit_code != 0
            assert not [each for each in net.seen()[before:] if "path" in each]
            closed = http.get(f"/v1/sandboxes/{mine.id}/network/log").json()["records"][-1]
            assert "certificate" in closed["reason"]
        http.delete("/v1/secrets/other")


# ---- agents, indexes, the command line


def test_an_agent_behind_a_policy(egress: Server, net: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBOX_URL", egress.url)
    monkeypatch.setenv("ISOBOX_API_KEY", egress.key)
    shown: list[str] = []
    with egress.client() as http, scripted_model.serving() as url, OpenAI(base_url=url, api_key="none") as client:
        http.put("/v1/secrets/weather", json={"value": "weather-key-1234"}).raise_for_status()
        words = fenced_agent.run(
            client,
            "scripted",
            index="http://files.test:8080/simple",
            api="https://api.test/v1/weather",
            package="tiny",
            elsewhere="https://paste.test/",
            show=shown.append,
        )
        http.delete("/v1/secrets/weather")
    assert words == "The API says: sunny, by a caller with a key", "\n".join(shown)
    assert any("no rule allows the name paste.test" in line for line in shown)
    assert "weather-key-1234" not in "\n".join(shown)


def test_packages_are_installed_through_the_preset(egress: Server, own_server: Server) -> None:
    if not from_urls(machine_indexes()).allow:
        pytest.skip("this machine has no package index configured (isobox doctor: packages)")
    own_server.environment["ISOBOX_POOL_CEILING"] = "0"
    own_server.start()
    bundle = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    with Sandbox.create(
        url=own_server.url, api_key=own_server.key, network="packages", env={"PIP_CERT": "/tmp/ca.pem"}
    ) as mine:
        mine.files.write("/tmp/ca.pem", Path(os.environ.get("PIP_CERT", bundle)).read_bytes())
        install = (
            "pip install --user --break-system-packages --quiet six && python3 -c 'import six; print(six.__name__)'"
        )
        done = mine.exec(shell=install, timeout_s=90)
        assert done.stdout == "six\n", done.stderr
        assert mine.exec("getent", "hosts", "example.com").exit_code == 2


def isobox(server: Server, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key}
    command = [sys.executable, "-m", "isobox.cli.main", *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def test_the_command_line(egress: Server) -> None:
    id_ = isobox(egress, "create", "--network", "none").stdout.strip()
    try:
        assert isobox(egress, "net", "allow", id_, "api.test", "198.18.77.3:8080").stdout == "policy 2 is in force\n"
        shown = json.loads(isobox(egress, "net", "show", id_).stdout)
        assert shown["allow"] == [
            {"host": "api.test", "ports": [80, 443]},
            {"cidr": "198.18.77.3/32", "ports": [8080], "proto": "tcp"},
        ]
        assert (
            isobox(egress, "exec", id_, "--", "curl", "-sS", "-m5", "http://api.test/").stdout == "hello from outside\n"
        )
        assert isobox(egress, "net", "deny", id_, "api.test").returncode == 0
        assert isobox(egress, "exec", id_, "--", "curl", "-sS", "-m5", "http://api.test/").returncode == 6
        lines = isobox(egress, "net", "log", id_).stdout.splitlines()
        assert any("flow api.test:80 (198.18.77.2) [allow[0]" in line for line in lines), lines
        # The kernel does not tell how long what it forwarded was open.
        ended = {"event": "closed", "at": "2026-01-01T00:00:00.000Z", "verdict": "allow", "rule": "allow[0] cidr"}
        by_number = net_commands.line({**ended, "destination": "192.0.2.1", "port": 9, "tx_bytes": 5, "rx_bytes": 7})
        assert by_number == "00:00:00.000 closed 192.0.2.1:9 sent 5 received 7 bytes [allow[0] cidr]"
        assert any("refused api.test" in line and "take deny[0] out" in line for line in lines), lines
        wrong = isobox(egress, "net", "allow", id_, "*.com")
        assert (wrong.returncode, "too wide" in wrong.stderr) == (1, True), wrong.stderr
        assert isobox(egress, "net", "set", id_, "nonsense").returncode == 1
        assert isobox(egress, "secret", "set", "cli", stdin="a-secret-value\n").stdout == "cli is stored\n"
        assert isobox(egress, "secret", "ls").stdout.startswith("cli  ")
        assert isobox(egress, "secret", "rm", "cli").returncode == 0
        assert isobox(egress, "secret", "rm", "cli").returncode == 1
    finally:
        isobox(egress, "kill", id_)
