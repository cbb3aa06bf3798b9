import json
from pathlib import Path

import pytest
from archives import archive, info
from hypothesis import given
from hypothesis import strategies as st

from common.text import clean_json
from fs import documents
from fs.errors import ImageInvalid
from fs.oci.archive import saved_image

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
)


@given(VALUES)
def test_a_document_is_read_as_it_was_written(value: object) -> None:
    assert documents.read(json.dumps(value).encode(), "it") == clean_json(value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"[" * 1000 + b"]" * 1000, "it is no JSON"),
        (b"[" * 300_000, "it has more than 200000 values"),
        (b"[" + b"{}," * 300_000 + b"0]", "it has more than 200000 values"),
        (b'"' + b"x" * (5 << 20) + b'"', "it is longer than 4 MiB"),
        (b"\xff", "it is no JSON"),
        (b"", "it is no JSON"),
    ],
)
def test_documents_that_cost_too_much(raw: bytes, words: str) -> None:
    with pytest.raises(ImageInvalid, match=words):
        documents.read(raw, "it")


@pytest.mark.parametrize(
    "document", [b"[]", b"[1]", b"[[]]", b'[{"Config": "x", "Layers": 5}]', b"{}", b"5", b"[" * 300_000, b"null"]
)
def test_a_saved_image_whose_documents_say_anything(tmp_path: Path, document: bytes) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(archive([(info("manifest.json"), document)]).getvalue())
    with pytest.raises(ImageInvalid), saved_image(path) as found:
        assert found is None, found
        raise ImageInvalid("a root file system, then")


@pytest.mark.parametrize("index", [b"[]", b'{"manifests": 5}', b'{"manifests": ["x"]}', b'{"manifests": [{}]}', b"{}"])
def test_a_layout_whose_documents_say_anything(tmp_path: Path, index: bytes) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(archive([(info("oci-layout"), b"{}"), (info("index.json"), index)]).getvalue())
    with pytest.raises(ImageInvalid), saved_image(path):
        raise AssertionError("it is none")


def test_a_saved_image_with_headers_of_many_mebibytes(tmp_path: Path) -> None:
    members = [info(f"f{number}") for number in range(50)]
    for member in members:
        member.pax_headers = {"comment": "c" * (1 << 20)}
    path = tmp_path / "image.tar"
    path.write_bytes(archive([(member, b"") for member in members]).getvalue())
    with pytest.raises(ImageInvalid, match="headers of many MiB"), saved_image(path):
        raise AssertionError("it is none")
