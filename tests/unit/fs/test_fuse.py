import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs import fuse


def packet(opcode: int, body: bytes = b"", node: int = 1, unique: int = 7) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 0, 0, 0) + body


def test_an_init_takes_what_it_knows_of_what_is_offered() -> None:
    body = struct.pack("<IIIII44x", 7, 45, 131072, 0xFFFFFFFF, 0xFFFFFFFF)
    answer, resends = fuse.init(fuse.parse(packet(fuse.INIT, body)))
    assert resends
    major, minor, readahead, flags = struct.unpack_from("<IIII", answer, 16)
    assert (major, minor, readahead) == (7, 40, fuse.MAX_READ)
    assert flags & ~(1 | 1 << 18 | 1 << 22 | 1 << 30) == 0
    assert len(answer) == 16 + 64
    older, resends = fuse.init(fuse.parse(packet(fuse.INIT, struct.pack("<IIII", 7, 31, 65536, 1))))
    assert not resends
    assert struct.unpack_from("<IIII", older, 16)[1] == 31
    refused, _ = fuse.init(fuse.parse(packet(fuse.INIT, struct.pack("<IIII", 8, 0, 0, 0))))
    assert struct.unpack_from("<Ii", refused) == (16, -71)


def test_answers_have_the_kernels_sizes() -> None:
    request = fuse.parse(packet(fuse.LOOKUP, b"name\0"))
    assert request.name == b"name"
    file = fuse.Attributes(5, 0o100644, 4096)
    for answer, size in (
        (fuse.entry(request, file), 128),
        (fuse.created(request, file, 9, 1), 144),
        (fuse.attributes(request, file), 104),
        (fuse.opened(request), 16),
        (fuse.written(request, 7), 8),
        (fuse.init_gvisor(request), 64),
        (fuse.statfs(request), 80),
        (fuse.error(request, 5), 0),
        (fuse.resend(), 0),
    ):
        assert len(answer) == 16 + size
        assert struct.unpack_from("<I", answer)[0] == len(answer)


def test_writes_sizes_and_names() -> None:
    body = struct.pack("<QQIIQII", 8, 4096, 5, 0, 0, 0, 0) + b"12345"
    request = fuse.parse(packet(fuse.WRITE, body))
    assert (request.handle, request.written) == (8, (4096, b"12345"))
    assert fuse.parse(packet(fuse.CREATE, struct.pack("<4I", 0o102, 0, 0, 0) + b"new\0")).named(16) == b"new"
    assert fuse.parse(packet(fuse.RENAME, struct.pack("<Q", 9) + b"a\0b\0")).renamed == (9, b"a", b"b")
    for valid, size in ((0, None), (8, 123), (9, 123)):
        body = struct.pack("<IIQQ64x", valid, 0, 0, 123)
        assert fuse.parse(packet(fuse.SETATTR, body)).new_size == size


def test_a_read_is_bounded() -> None:
    body = struct.pack("<QQIIQII", 0, 123, 1 << 31, 0, 0, 0, 0)
    assert fuse.parse(packet(fuse.READ, body)).range == (123, fuse.MAX_READ)


@given(st.binary(max_size=200))
def test_what_the_kernel_would_not_send(raw: bytes) -> None:
    if len(raw) < 40 or struct.unpack_from("<I", raw)[0] != len(raw):
        with pytest.raises(ValueError, match="packet"):
            fuse.parse(raw)
