"""What a guest says that JSON has no word for: it is cleaned, and spoils nothing."""

import json
import subprocess
import sys

import httpx
import pytest
from server import Server
from test_bad_input import problem

from isobox import Sandbox

SURROGATE = r"""
class Odd:
    def _repr_mimebundle_(self, include=None, exclude=None):
        deep = 0
        for _ in range(300):
            deep = [deep]
        return {"application/json": {"\ud800": ["\udfff", float("nan"), float("inf"), 10**400, 2**64]}, "application/x-deep": deep, "text/plain": "\ud83d"}

Odd()
"""


def test_a_result_of_a_context_is_json_everywhere(http: httpx.Client, path: str) -> None:
    run = http.post(f"{path}/run", json={"code": SURROGATE})
    assert run.status_code == 200, run.text
    shown = run.json()["results"][0]
    assert shown["application/json"] == {"\ufffd": ["\ufffd", None, None, str(10**400), str(2**64)]}
    assert shown["text/plain"] == "\ufffd"
    assert "nested deeper" in json.dumps(shown["application/x-deep"])
    again = http.get(f"{path}/execs/{run.json()['id']}")
    assert again.json()["results"] == [shown]
    assert run.json()["id"] in {each["id"] for each in http.get(f"{path}/execs").json()["execs"]}
    with http.stream("GET", f"{path}/execs/{run.json()['id']}/stream") as events:
        told = [line for line in events.iter_lines() if line.startswith("data: ")]
    assert not any(word in line for line in told for word in ("NaN", "Infinity"))


@pytest.mark.parametrize(
    ("method", "place", "options"),
    [
        ("GET", "", {}), ("PUT", "", {"content": b"x"}), ("DELETE", "", {}), ("GET", "/list", {}), ("GET", "/stat", {}), ("GET", "/archive", {}),
        ("PUT", "/archive", {"content": b"x"}),
    ],
)  # fmt: skip
def test_an_unknown_user_of_a_file_route_is_told(
    http: httpx.Client, path: str, method: str, place: str, options: dict[str, bytes]
) -> None:
    answer = http.request(method, f"{path}/files{place}", params={"path": "/tmp/x", "user": "nobody-here"}, **options)  # type: ignore[arg-type]
    assert problem(answer, 422)["code"] == "user_unknown"


def test_a_name_that_is_no_text_is_told_as_text(http: httpx.Client, path: str) -> None:
    answer = http.get(f"{path}/files?path=/tmp/%FF%FE")
    assert problem(answer, 404)["code"] == "file_not_found"
    assert "\ufffd" in answer.json()["detail"]


def test_ranges_of_a_file(http: httpx.Client, path: str) -> None:
    http.put(f"{path}/files", params={"path": "/tmp/ten"}, content=b"0123456789").raise_for_status()
    http.put(f"{path}/files", params={"path": "/tmp/none"}, content=b"").raise_for_status()

    def ask(range_: str, name: str = "ten", **headers: str) -> httpx.Response:
        return http.get(f"{path}/files", params={"path": f"/tmp/{name}"}, headers={"Range": range_, **headers})

    for range_, contents, place in (
        ("bytes=0-0", b"0", "bytes 0-0/10"), ("bytes=-1", b"9", "bytes 9-9/10"), ("bytes=-99999999999999999999", b"0123456789", "bytes 0-9/10"),
        ("BYTES=8-", b"89", "bytes 8-9/10"), ("bytes=8-99999999999999999999", b"89", "bytes 8-9/10"), ("bytes=,2-3", b"23", "bytes 2-3/10"),
    ):  # fmt: skip
        answer = ask(range_)
        assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, contents, place)
    for range_ in ("bytes=-0", "bytes=10-", "bytes=99999999999999999999-", "bytes=3-2", "bytes=0-1,3-4", "bytes=x"):
        problem(ask(range_), 416)
    assert ask("bytes=10-").headers["content-range"] == "bytes */10"
    problem(ask("bytes=0-0", "none"), 416)
    for whole in (ask("lines=1-2"), ask("bytes=0-0", **{"If-Range": '"x"'})):
        assert (whole.status_code, whole.content) == (200, b"0123456789")


def test_bytes_that_are_no_archive_are_told(http: httpx.Client, path: str) -> None:
    for noise in (
        b"\x00" * 600,
        bytes(range(256)) * 8,
        b"\x1f\x8b" + b"x" * 50,
        b"\x28\xb5\x2f\xfd" + b"x" * 50,
        b"ustar" * 300,
    ):
        answer = http.put(f"{path}/files/archive", params={"path": "/tmp/noise"}, content=noise)
        assert answer.status_code in (201, 400, 409), answer.text  # blocks of zeroes are an empty archive
        if answer.status_code != 201:
            problem(answer, 400, 409)


def test_the_command_line_shows_no_escape_sequence_of_a_guest(server: Server, sandbox: Sandbox) -> None:
    made = sandbox.exec(
        "sh", "-c", r"mkdir -p /tmp/names && touch /tmp/names/$(printf '[red]x\033]0;title\007\342\200\256[bold]')"
    )
    assert made.exit_code == 0
    environment = server.environment | {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key}

    def isobox(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "isobox.cli.main", *arguments],
            capture_output=True, text=True, env=environment, timeout=60,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    shown = isobox("files", "ls", sandbox.id, "/tmp/names")
    assert r"[red]x\x1b]0;title\x07\u202e[bold]" in shown
    with Sandbox.create(url=server.url, api_key=server.key, name="[/]\x1b[2J[red]", timeout_s=60):
        assert r"[/]\x1b[2J[red]" in isobox("ps")
    missing = isobox("files", "cat", sandbox.id, "/tmp/[/nope]\x1b[31m")
    assert r"[/nope]\x1b[31m" in missing
    for text in (shown, missing):
        assert text.replace("\n", "").isprintable()
