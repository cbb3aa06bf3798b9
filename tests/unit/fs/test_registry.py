"""A registry that answers as it likes."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from stranger import Stranger, answered, drip, stranger

from fs.errors import ImageError, ImageInvalid, StoreUnreachable
from fs.oci.reference import parse
from fs.oci.registry import Blob, Registry
from fs.oci.transfer import pull
from fs.progress import Interrupted, Progress
from fs.tree import Limits, Tree


def registry(where: Stranger, progress: Progress | None = None) -> Registry:
    return Registry(parse(f"{where.host}/x:1"), where.access, progress or Progress())


def manifest_of(answer: bytes) -> None:
    with stranger(lambda _, connection: connection.sendall(answer)) as where, registry(where) as remote:
        remote.manifest()


def index(*manifests: object) -> bytes:
    return answered(json.dumps({"manifests": manifests}).encode())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answered(b"[" * (1 << 20)), "values"),
        (answered(b"[" * 5000), "no JSON"),
        (answered(b"[" + b"[]," * 300_000 + b"[]]"), "more than 200000 values"),
        (answered(b"x" * (5 << 20)), "longer than"),
        (answered(b"{}", headers="Content-Encoding: gzip\r\n"), "is no image"),
        (index("x", [], {"platform": []}, {"platform": "x"}, {"platform": {"os": {}}}), "not made for linux/amd64"),
        (index(*({"platform": {"os": "o" * 400}} for _ in range(100))), "not made for linux/amd64"),
        (answered(json.dumps({"layers": [], "config": "x"}).encode() + b"}"), "no JSON"),
    ],
)
def test_documents_are_bounded_before_they_are_read(answer: bytes, words: str) -> None:
    with pytest.raises(ImageInvalid, match=words) as caught:
        manifest_of(answer)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "token",
    [
        b'{"token": "a\\r\\nX: y"}',
        b'{"token": "\\u00e9"}',
        json.dumps({"token": "t" * 20_000}).encode(),
        *(b"[]", b"nothing", b"[" * 10_000, b" " * (1 << 20)),
    ],
)
def test_a_token_that_cannot_be_sent_is_refused(token: bytes) -> None:
    def answer(head: bytes, connection: socket.socket) -> None:
        if head.startswith(b"GET /token"):
            connection.sendall(answered(token))
        else:
            challenge = f'WWW-Authenticate: Bearer realm="http://{where.host}/token",service="x"\r\n'
            connection.sendall(answered(b"", status="401 Unauthorized", headers=challenge))

    with stranger(answer) as where, registry(where) as remote, pytest.raises(ImageInvalid):
        remote.manifest()


def ended(work: Callable[[], object], stop: Callable[[], None], begun: threading.Event) -> BaseException | None:
    """How work in another thread ends once it is told to."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except ImageError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    stop()
    thread.join(60)
    assert not thread.is_alive()
    return errors[0] if errors else None


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_a_pull_that_drips_ends_when_nobody_wants_it(part: str) -> None:
    begun, progress = threading.Event(), Progress()
    blob = {"digest": "sha256:" + "a" * 64, "size": 1 << 30}
    parts = {
        "manifest": {"layers": [blob | {"digest": "sha256:" + "b" * 64}], "config": blob | {"size": 2}},
        "config": {},
    }

    def answer(head: bytes, connection: socket.socket) -> None:
        asked = "manifest" if b"/manifests/" in head else "config" if b"a" * 64 in head else "layer"
        if asked == part:
            begun.set()
            drip(connection, where.ended)
        else:
            connection.sendall(answered(json.dumps(parts[asked]).encode()))

    with stranger(answer) as where:
        reference = parse(f"{where.host}/x:1")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fs.oci.registry.Registry.config", _config if part == "layer" else Registry.config)

            def work() -> None:
                pull(reference, where.access, Tree(), Never(), nullcontext_of, limits=Limits(), progress=progress)

            error = ended(work, progress.stop, begun)
        assert isinstance(error, Interrupted | StoreUnreachable)


def nullcontext_of(size: int) -> AbstractContextManager[None]:
    return nullcontext()


class Never:
    def add(self, contents: object) -> tuple[()]:
        raise AssertionError("nothing comes that far")


def _config(self: Registry, blob: Blob) -> dict[str, object]:
    return {}


def test_a_download_has_no_more_bytes_than_its_manifest_says(tmp_path: Path) -> None:
    blob = Blob("sha256:" + "a" * 64, 5, "")
    with (
        stranger(lambda _, connection: connection.sendall(answered(b"too long"))) as where,
        registry(where) as remote,
        pytest.raises(ImageInvalid, match="longer than its manifest says"),
    ):
        remote.download(blob, tmp_path / "blob")


def test_a_push_looks_at_the_head_of_an_answer_alone(tmp_path: Path) -> None:
    where: Stranger
    (tmp_path / "blob").write_bytes(b"contents")

    def answer(head: bytes, connection: socket.socket) -> None:
        if head.startswith(b"HEAD"):
            connection.sendall(answered(b"", status="404 Not Found"))
        else:
            drip(connection, where.ended, b"HTTP/1.1 202 Accepted\r\nLocation: /upload\r\n\r\n")

    with stranger(answer) as where, registry(where) as remote:
        remote.upload("sha256:" + "a" * 64, tmp_path / "blob")
        assert [head.split()[0] for head in where.asked] == [b"HEAD", b"POST", b"PUT"]
