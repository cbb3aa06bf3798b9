"""The file API beyond single files: archives, edits, moves, copies, watches, pages, names that are no text."""

import asyncio
import gzip
import io
import json
import tarfile
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import pytest
import websockets
import zstandard
from server import Server

from isobox import Sandbox

HOME = "/home/user"


def code(answer: httpx.Response) -> str:
    return str(answer.json()["code"])


def tar(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(contents), 0o640, 1_000_000_000
            archive.addfile(info, io.BytesIO(contents))
        for info in more:
            archive.addfile(info)
    return raw.getvalue()


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def read_tar(raw: bytes) -> dict[str, bytes | str]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        found: dict[str, bytes | str] = {}
        for each in archive:
            file = archive.extractfile(each) if each.isreg() else None
            found[each.name] = file.read() if file else each.linkname or "/"
        return found


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("how", ["tar", "tar.gz", "tar.zst"])
def test_a_tree_goes_in_and_out(http: httpx.Client, path: str, pack: Any, how: str) -> None:
    long = "/".join(["d" * 60] * 4) + "/" + "n" * 120
    files = {"a": b"1", "deep/er/b": b"2" * 300_000, long: b"3", "empty": b""}
    folder = f"{HOME}/tree-{how}-{id(pack)}"
    raw = tar(
        files,
        member("link", tarfile.SYMTYPE, "a"),
        member("fifo", tarfile.FIFOTYPE),
        member("same", tarfile.LNKTYPE, "a"),
    )
    answer = http.put(f"{path}/files/archive", params={"path": folder}, content=pack(raw))
    assert answer.status_code == 201, answer.text
    assert answer.json()["type"] == "dir"
    back = http.get(f"{path}/files/archive", params={"path": folder, "format": how})
    body = zstandard.ZstdDecompressor().decompressobj().decompress(back.content) if how == "tar.zst" else back.content
    found = read_tar(body)
    assert {name: found[name] for name in files} == files
    assert found["link"] == "a"
    assert found["same"] == b"1"
    stat = http.get(f"{path}/files/stat", params={"path": f"{folder}/a"}).json()
    assert (stat["mode"], stat["uid"]) == ("0640", 1000)
    assert stat["modified_at"].startswith("2001-09-09")


def test_one_file_as_an_archive_and_what_is_not_there(http: httpx.Client, path: str) -> None:
    http.put(f"{path}/files", params={"path": f"{HOME}/one"}, content=b"x")
    assert read_tar(http.get(f"{path}/files/archive", params={"path": f"{HOME}/one"}).content) == {"one": b"x"}
    assert code(http.get(f"{path}/files/archive", params={"path": f"{HOME}/none"})) == "file_not_found"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (tar({"../out": b"1"}), "archive_invalid"),
        (tar({"a/../../out": b"1"}), "archive_invalid"),
        (tar({"a/..": b"1"}), "archive_invalid"),
        (tar({}, member("x", tarfile.LNKTYPE, "../../etc/passwd")), "archive_invalid"),
        (gzip.compress(tar({"a": b"1"}))[:-12], "archive_invalid"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "archive_invalid"),
        (tar({"a": b"1" * 5000})[:3000], "archive_invalid"),
        (tar({}, member("dev", tarfile.BLKTYPE)), "not_a_file"),
    ],
)
def test_archives_that_are_refused(http: httpx.Client, path: str, body: bytes, expected: str) -> None:
    answer = http.put(f"{path}/files/archive", params={"path": f"{HOME}/refused"}, content=body)
    assert code(answer) == expected, answer.text
    assert http.get(f"{path}/files/stat", params={"path": f"{HOME}/out"}).status_code == 404


def test_what_is_empty_comes_back_however_large_it_is(http: httpx.Client, path: str) -> None:
    """A few KiB that become very much are no bomb where they are a file: the sandbox's disk is the bound."""
    packed = zstandard.ZstdCompressor().compress(tar({"hollow": bytes(64 << 20)}))
    assert len(packed) < 16 << 10
    http.put(f"{path}/files/archive", params={"path": f"{HOME}/large"}, content=packed).raise_for_status()
    there = http.get(f"{path}/files/stat", params={"path": f"{HOME}/large/hollow"}).raise_for_status().json()
    assert there["size"] == 64 << 20
    http.request("DELETE", f"{path}/files", params={"path": f"{HOME}/large", "recursive": True}).raise_for_status()


def test_edits_are_all_or_none(http: httpx.Client, path: str) -> None:
    name = f"{HOME}/code.py"
    http.put(f"{path}/files", params={"path": name, "mode": "0755"}, content=b"a = 1\nb = 1\nprint(a, b)\n")

    def edit(*edits: dict[str, Any]) -> httpx.Response:
        return http.post(f"{path}/files/edit", json={"path": name, "edits": list(edits)})

    answer = edit(
        {"old": "a = 1", "new": "a = 2"}, {"old": "a = 2\n", "new": "a = 3\n"}, {"old": "b", "new": "c", "count": 2}
    )
    assert answer.status_code == 200, answer.text
    assert (answer.json()["replaced"], answer.json()["file"]["mode"]) == (4, "0755")
    text = http.get(f"{path}/files", params={"path": name}).text
    assert text == "a = 3\nc = 1\nprint(a, c)\n"
    wrong = edit({"old": "a = 3", "new": "x"}, {"old": "1", "new": "2", "count": 2})
    assert code(wrong) == "edit_mismatch"
    assert "stands there 1 times (lines 2), not 2" in wrong.json()["detail"]
    assert http.get(f"{path}/files", params={"path": name}).text == text
    assert (
        code(http.post(f"{path}/files/edit", json={"path": HOME, "edits": [{"old": "a", "new": "b"}]}))
        == "is_a_directory"
    )


def test_moves_and_copies(http: httpx.Client, path: str) -> None:
    base = f"{HOME}/mc"
    http.put(
        f"{path}/files/archive",
        params={"path": f"{base}/src"},
        content=tar({"a": b"1", "d/b": b"2"}, member("l", tarfile.SYMTYPE, "a")),
    )

    def post(what: str, **body: Any) -> httpx.Response:
        return http.post(f"{path}/files/{what}", json=body)

    def names(folder: str) -> list[str]:
        entries = http.get(f"{path}/files/list", params={"path": folder, "depth": 5}).json()["entries"]
        return [each["path"].removeprefix(folder + "/") for each in entries]

    assert post("copy", path=f"{base}/src", to=f"{base}/new/copy").json()["type"] == "dir"
    assert names(f"{base}/new/copy") == ["a", "d", "d/b", "l"]
    assert code(post("copy", path=f"{base}/src", to=f"{base}/new/copy")) == "file_exists"
    over = post("copy", path=f"{base}/src/d", to=f"{base}/new/copy", overwrite=True)
    assert over.status_code == 201, over.text
    assert names(f"{base}/new/copy") == ["b"]
    assert code(post("copy", path=base, to=f"{base}/src/inside")) == "not_a_file"
    assert post("move", path=f"{base}/src", to=f"{base}/moved").json()["path"] == f"{base}/moved"
    assert code(post("move", path=f"{base}/src", to=f"{base}/x")) == "file_not_found"
    assert code(post("move", path=f"{base}/moved/a", to=f"{base}/moved/d")) == "file_exists"
    assert post("move", path=f"{base}/moved", to="/tmp/elsewhere").status_code == 200  # another file system
    assert names("/tmp/elsewhere") == ["a", "d", "d/b", "l"]
    assert post("chmod", path="/tmp/elsewhere", mode="750", recursive=True).json()["mode"] == "0750"
    assert http.get(f"{path}/files/stat", params={"path": "/tmp/elsewhere/d/b"}).json()["mode"] == "0750"
    assert code(post("chmod", path="/etc/passwd", mode="777")) == "permission_denied"
    assert code(post("move", path="/etc/passwd", to=f"{base}/p")) == "permission_denied"


def test_a_huge_folder_in_pages(http: httpx.Client, sandbox: Sandbox, path: str) -> None:
    sandbox.exec("sh", "-c", f"mkdir {HOME}/huge && cd {HOME}/huge && seq -w 1 5000 | xargs touch").check()
    found: list[str] = []
    cursor = None
    while True:
        page = http.get(
            f"{path}/files/list",
            params={"path": f"{HOME}/huge", "limit": 1500} | ({"cursor": cursor} if cursor else {}),
        ).json()
        found += [each["name"] for each in page["entries"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == [f"{number:04d}" for number in range(1, 5001)]
    assert code(http.get(f"{path}/files/list", params={"path": HOME, "limit": 5, "depth": 2})) == "invalid_request"
    assert code(http.get(f"{path}/files/list", params={"path": HOME, "cursor": "%"})) == "invalid_request"


def test_names_that_are_no_text(http: httpx.Client, path: str) -> None:
    raw = quote_from_bytes(b"/home/user/\xff\xfe name")
    assert http.put(f"{path}/files?path={raw}", content=b"odd").status_code == 201
    assert http.get(f"{path}/files?path={raw}").content == b"odd"
    entries = http.get(f"{path}/files/list", params={"path": HOME}).json()["entries"]
    (odd,) = (each for each in entries if each["name_b64"])
    moved = http.post(f"{path}/files/move", json={"path_b64": odd["name_b64"], "to": f"{HOME}/even"})
    assert moved.status_code == 200, moved.text
    assert http.get(f"{path}/files", params={"path": f"{HOME}/even"}).content == b"odd"
    assert code(http.post(f"{path}/files/move", json={"path_b64": "!", "to": f"{HOME}/x"})) == "invalid_request"
    assert code(http.post(f"{path}/files/move", json={"to": f"{HOME}/x"})) == "invalid_request"


def test_a_folder_is_watched(server: Server, sandbox: Sandbox) -> None:
    sandbox.exec("sh", "-c", f"mkdir -p {HOME}/watched/sub").check()

    async def run() -> list[tuple[str, str, str | None]]:
        url = f"{server.url.replace('http', 'ws')}/v1/sandboxes/{sandbox.id}/files/watch?path={HOME}/watched&recursive=true"
        async with websockets.connect(
            url, additional_headers={"Authorization": f"Bearer {server.key}"}, proxy=None
        ) as socket:
            assert json.loads(await socket.recv())["type"] == "ready"
            script = (
                f"cd {HOME}/watched; echo 1 > a; mv a sub/b; mkdir new; echo 2 > new/c; rm sub/b; cd ..; rm -r watched"
            )
            await asyncio.to_thread(sandbox.exec, "sh", "-c", script)
            seen = []
            async for frame in socket:
                change = json.loads(frame)
                seen.append((change["type"], change["path"].removeprefix(f"{HOME}/watched"), change["target"]))
            return seen

    seen = asyncio.run(asyncio.wait_for(run(), 30))
    assert ("created", "/a", None) in seen
    assert ("moved", "/a", f"{HOME}/watched/sub/b") in seen
    assert ("created", "/new", None) in seen
    assert ("deleted", "/sub/b", None) in seen
    assert seen[-1][0] == "gone"


def test_what_cannot_be_watched(server: Server, sandbox: Sandbox) -> None:
    async def run() -> dict[str, Any]:
        url = f"{server.url.replace('http', 'ws')}/v1/sandboxes/{sandbox.id}/files/watch?path=/none"
        async with websockets.connect(
            url, additional_headers={"Authorization": f"Bearer {server.key}"}, proxy=None
        ) as socket:
            return dict(json.loads(await socket.recv()))

    assert asyncio.run(run())["data"]["code"] == "file_not_found"
