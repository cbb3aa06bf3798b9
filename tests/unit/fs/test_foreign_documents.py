"""Documents of registries and archives, however odd, become an image's config or an error that says so."""

import contextlib
import io
import json
import tarfile
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.errors import ImageError, ImageInvalid
from fs.oci import config
from fs.oci.archive import _docker, _document, _layout
from fs.oci.layers import apply
from fs.oci.registry import Blob, _for_this_machine, _json
from fs.tree import Limits, Piece, Tree

WORDS = st.sampled_from(
    [
        "config",
        "Env",
        "Cmd",
        "Entrypoint",
        "User",
        "WorkingDir",
        "manifests",
        "platform",
        "os",
        "architecture",
        "digest",
        "size",
        "layers",
        "linux",
    ]
)
TEXTS = WORDS | st.text(st.characters(), max_size=6) | st.just("sha256:" + "0" * 64)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=5), max_leaves=25
)


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@given(st.dictionaries(WORDS, DOCUMENTS) | st.builds(lambda said: {"config": said}, st.dictionaries(WORDS, DOCUMENTS)))
def test_a_config_is_json_that_can_be_stored_and_sent(raw: dict[str, Any]) -> None:
    json.dumps(config.read(raw), ensure_ascii=False, allow_nan=False).encode()


def test_surrogates_and_nesting_in_a_config() -> None:
    meant = config.read(
        {
            "config": {
                "Env": ["A=\ud800", "\udfff=b"],
                "Cmd": ["\ud800", nested(300)],
                "User": "\udc80",
                "WorkingDir": "/\ud800",
            }
        }
    )
    assert meant == {
        "env": {"A": "\ufffd", "\ufffd": "b"},
        "command": ["\ufffd"],
        "user": "\ufffd",
        "workdir": "/\ufffd",
    }


@given(DOCUMENTS)
def test_a_blob_is_one_or_refused(raw: Any) -> None:
    with contextlib.suppress(ImageError):
        assert Blob.of(raw).size >= 0


@pytest.mark.parametrize("size", ["1e999", "-1e999", "NaN", "-1", '"x"', "null", "[]", "9" * 5000])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(ImageInvalid):
        Blob.of(_json(f'{{"digest": "sha256:{"0" * 64}", "size": {size}}}'.encode()))


@given(st.dictionaries(WORDS, DOCUMENTS) | st.builds(lambda found: {"manifests": found}, DOCUMENTS))
def test_an_index_names_a_manifest_or_is_refused_in_few_words(index: dict[str, Any]) -> None:
    index.setdefault("manifests", [])
    try:
        assert _for_this_machine(index, "an image").startswith("sha256:")
    except ImageInvalid as error:
        f"{error.detail} {error.hint}".encode()
        assert len(error.hint) <= 8192


class Files:
    """The members of an image's file."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def open(self, name: str) -> BinaryIO | None:
        found = self._files.get(name)
        return None if found is None else io.BytesIO(found)


@given(DOCUMENTS, DOCUMENTS)
def test_a_saved_image_is_one_or_refused(manifest: Any, index: Any) -> None:
    files = Files(
        {"manifest.json": json.dumps(manifest).encode(), "index.json": json.dumps(index).encode(), "x": b"{}"}
    )
    for read in (lambda: _docker(files, _document(files, "manifest.json")), lambda: _layout(files)):
        with contextlib.suppress(ImageError):
            read()


class Nothing:
    """Takes contents, and keeps none."""

    def add(self, contents: BinaryIO) -> tuple[Piece, ...]:
        size = sum(len(piece) for piece in iter(lambda: contents.read(1 << 16), b""))
        return (Piece(b"", size),)


def packed() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a", "b" * 200, "ü/ö"):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.pax_headers = 5, 1.5, {"comment": "x"}  # type: ignore[assignment]  # PAX takes it
            archive.addfile(member, io.BytesIO(b"hello"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "a"
        archive.addfile(link)
    return target.getvalue()


PACKED = packed()


@given(
    st.lists(st.tuples(st.integers(0, len(PACKED) - 1), st.integers(0, 255)), max_size=12), st.integers(0, len(PACKED))
)
def test_a_damaged_archive_is_refused_whatever_is_wrong_with_it(changes: list[tuple[int, int]], end: int) -> None:
    damaged = bytearray(PACKED)
    for at, byte in changes:
        damaged[at] = byte
    with contextlib.suppress(ImageError):
        apply(
            io.BytesIO(bytes(damaged[: end or None])),
            Tree(),
            Nothing(),
            limits=Limits(total_bytes=1 << 24),
            keep_setuid=False,
        )


@given(st.binary(max_size=2000), st.sampled_from([b"", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh"]))
def test_noise_is_no_archive(noise: bytes, head: bytes) -> None:
    with contextlib.suppress(ImageError):
        apply(io.BytesIO(head + noise), Tree(), Nothing(), limits=Limits(total_bytes=1 << 24), keep_setuid=False)
