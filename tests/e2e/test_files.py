import os

import httpx
import pytest

from isobox import NotFound, Sandbox


def test_write_read_list_stat_remove(sandbox: Sandbox) -> None:
    info = sandbox.files.write("/home/user/deep/er/a.bin", bytes(range(256)) * 5000, mode=0o600)
    assert (info.size, info.mode, info.type) == (1_280_000, "0600", "file")
    assert sandbox.files.read("/home/user/deep/er/a.bin") == bytes(range(256)) * 5000
    sandbox.files.write("/home/user/deep/b", "text")
    listed = [entry.path for entry in sandbox.files.list("/home/user/deep", depth=3)]
    assert listed == ["/home/user/deep/b", "/home/user/deep/er", "/home/user/deep/er/a.bin"]
    assert sandbox.files.mkdir("/home/user/deep/new/folder").type == "dir"
    sandbox.files.remove("/home/user/deep", recursive=True)
    with pytest.raises(NotFound):
        sandbox.files.stat("/home/user/deep")


def test_ranges(http: httpx.Client, sandbox: Sandbox, path: str) -> None:
    sandbox.files.write("/tmp/r", b"0123456789")
    for given, status, body, range_ in (
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-100", 206, b"89", "bytes 8-9/10"),
    ):
        answer = http.get(f"{path}/files", params={"path": "/tmp/r"}, headers={"Range": given})
        assert (answer.status_code, answer.content, answer.headers["content-range"]) == (status, body, range_)
    for bad in ("bytes=10-", "bytes=5-2", "bytes=a-b", "bytes=0-1,3-4"):
        answer = http.get(f"{path}/files", params={"path": "/tmp/r"}, headers={"Range": bad})
        assert answer.status_code == 416, bad
    # RFC 9110, 14.2: a unit that a server does not know MUST be ignored.
    answer = http.get(f"{path}/files", params={"path": "/tmp/r"}, headers={"Range": "lines=1-2"})
    assert (answer.status_code, answer.content) == (200, b"0123456789")


def test_the_sandbox_decides_what_may_be_touched(sandbox: Sandbox, http: httpx.Client, path: str) -> None:
    for params, status in (
        ({"path": "/etc/shadow"}, 403),
        ({"path": "/etc"}, 409),
        ({"path": "/nope"}, 404),
        ({"path": "relative"}, 422),
        ({"path": "/home/../etc/passwd"}, 422),
        ({"path": "/a\0b"}, 422),
        ({"path": ""}, 422),
        ({"path": "/" + "x" * 5000}, 422),
        ({"path": "/" + "x" * 300}, 400),
    ):
        answer = http.get(f"{path}/files", params=params)
        assert answer.status_code == status, (params, answer.text)
        assert answer.json()["detail"]
    assert http.put(f"{path}/files", params={"path": "/etc/passwd"}, content=b"x").status_code == 403
    assert b"root" in sandbox.files.read("/etc/passwd")
    assert http.get(f"{path}/files", params={"path": "/etc/shadow", "user": "root"}).status_code == 200


def test_links_lead_nowhere_but_inside(sandbox: Sandbox) -> None:
    sandbox.exec(shell="ln -sf /etc/hostname /tmp/link; ln -sf loop /tmp/loop; mkfifo /tmp/fifo").check()
    assert sandbox.files.stat("/tmp/link").target == "/etc/hostname"
    with pytest.raises(Exception, match=r"symbolic|Too many"):
        sandbox.files.read("/tmp/loop")
    with pytest.raises(Exception, match=r"regular|Invalid"):
        sandbox.files.read("/tmp/fifo")  # and it does not hang
    sandbox.files.write("/tmp/target", "old")
    sandbox.exec(shell="ln -s /tmp/target /tmp/through").check()
    sandbox.files.write("/tmp/through", "new")
    assert sandbox.files.read("/tmp/target") == b"new"
    assert sandbox.files.stat("/tmp/through").type == "symlink"


def test_names_that_are_no_text(sandbox: Sandbox, http: httpx.Client, path: str) -> None:
    sandbox.exec(
        "python3", "-c", r"open(b'/tmp/odd/\xff\n', 'w') if not __import__('os').makedirs('/tmp/odd') else 0"
    ).check()
    entry = http.get(f"{path}/files/list", params={"path": "/tmp/odd"}).json()["entries"][0]
    import base64

    assert base64.b64decode(entry["name_b64"]) == b"/tmp/odd/\xff\n"


def test_an_upload_that_breaks_off_replaces_nothing(sandbox: Sandbox, server: object) -> None:
    sandbox.files.write("/tmp/precious", "whole")
    import socket

    from server import Server

    assert isinstance(server, Server)
    host, port = server.listen.split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            f"PUT /v1/sandboxes/{sandbox.id}/files?path=/tmp/precious HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {server.key}\r\nContent-Length: 100000\r\n\r\npartial".encode()
        )
    assert sandbox.files.read("/tmp/precious") == b"whole"
    listing = [entry.name for entry in sandbox.files.list("/tmp")]
    deadline = 50
    while any("isobox-" in name for name in listing) and deadline:
        deadline -= 1
        sandbox.exec("sleep", "0.1")
        listing = [entry.name for entry in sandbox.files.list("/tmp")]
    assert not [name for name in listing if "isobox-" in name]


def test_large_files_in_pieces(sandbox: Sandbox, tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(24 << 20))
    sandbox.files.upload(source, "/home/user/large")
    sandbox.files.download("/home/user/large", target)
    assert target.read_bytes() == source.read_bytes()
