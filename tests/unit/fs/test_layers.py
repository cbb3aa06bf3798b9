import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Callable

import pytest
import zstandard
from archives import archive, files, info
from hypothesis import given
from hypothesis import strategies as st

from fs.errors import ImageInvalid
from fs.oci import layers
from fs.oci.layers import apply
from fs.progress import Interrupted, Progress
from fs.tree import Limits, Node, Piece, Tree

NO_LIMITS = Limits()


class Memory:
    """A sink that keeps contents."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def add(self, contents: io.BufferedIOBase) -> tuple[Piece, ...]:
        data = contents.read()
        digest = hashlib.sha256(data).digest()
        self.kept[digest] = data
        return (Piece(digest, len(data)),) if data else ()


def laid(*layers: io.BytesIO, limits: Limits = NO_LIMITS, keep_setuid: bool = False) -> dict[str, str]:
    """What is where once these layers lie over one another: contents, link targets, "/" for folders."""
    tree, sink = Tree(limits=limits), Memory()
    for layer in layers:
        apply(layer, tree, sink, limits=limits, keep_setuid=keep_setuid)  # type: ignore[arg-type]
    shown = {}
    for path, node in tree.walk():
        text = b"".join(sink.kept[piece.digest] for piece in node.pieces).decode()
        shown[path.decode()] = {"dir": "/", "symlink": "->" + node.target.decode(), "fifo": "|"}.get(node.kind, text)
    return shown


def test_a_layer_lies_over_what_is_below() -> None:
    below = files(a="1", d__b="2", d__c="3")
    above = archive([(info("d/b"), b"new"), (info("d/.wh.c"), b""), (info("e", tarfile.DIRTYPE), b"")])
    assert laid(below, above) == {"a": "1", "d": "/", "d/b": "new", "e": "/"}


@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_folder_hides_what_is_below_and_nothing_of_its_own_layer(first: bool) -> None:
    below = files(d__old="1", d__sub__old="2", d__keep__old="3", other="4")
    opaque = (info("d/.wh..wh..opq"), b"")
    mine = [(info("d/new"), b"5"), (info("d/keep/new"), b"6")]
    above = archive([opaque, *mine] if first else [*mine, opaque])
    assert laid(below, above) == {"d": "/", "d/new": "5", "d/keep": "/", "d/keep/new": "6", "other": "4"}


def test_whiteouts_of_whole_folders_and_of_nothing() -> None:
    below = files(d__e__f="1", g="2")
    assert laid(below, archive([(info(".wh.d"), b""), (info("x/.wh.nothing"), b"")])) == {"g": "2"}


def test_a_folder_replaced_by_a_file_and_back() -> None:
    assert laid(files(d__x="1"), files(d="2")) == {"d": "2"}
    assert laid(files(d="2"), files(d__x="1")) == {"d": "/", "d/x": "1"}


def test_links_in_names_stay_inside() -> None:
    link = archive([(info("lib", tarfile.SYMTYPE, link="/../../usr/lib"), b""), (info("usr/lib/a"), b"1")])
    assert laid(link, files(lib__b="2")) == {
        "lib": "->/../../usr/lib",
        "usr": "/",
        "usr/lib": "/",
        "usr/lib/a": "1",
        "usr/lib/b": "2",
    }
    out = archive([(info("x", tarfile.SYMTYPE, link="../../../../etc"), b""), (info("x/passwd"), b"evil")])
    assert laid(out) == {"etc": "/", "etc/passwd": "evil", "x": "->../../../../etc"}


def test_hard_links_share_their_file() -> None:
    tree, sink = Tree(), Memory()
    layer = archive([(info("a"), b"1"), (info("b", tarfile.LNKTYPE, link="a"), b"")])
    apply(layer, tree, sink, limits=Limits(), keep_setuid=False)  # type: ignore[arg-type]
    assert tree.find(b"a") is tree.find(b"b")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([(info("../etc/passwd"), b"")], "leads out"),
        ([(info("a/../../b"), b"")], "leads out"),
        ([(info("a/.."), b"")], "leads out"),
        ([(info("x", tarfile.LNKTYPE, link="../../etc/shadow"), b"")], "leads out"),
        ([(info("x", tarfile.LNKTYPE, link="nowhere"), b"")], "no file of the image"),
        (
            [
                (info("a", tarfile.SYMTYPE, link="b"), b""),
                (info("b", tarfile.SYMTYPE, link="a"), b""),
                (info("a/x"), b""),
            ],
            "circle",
        ),
        ([(info("n" * 256), b"")], "too long"),
        ([(info("/".join("d" * 300)), b"")], "deeper"),
        ([(info("x" * 200 + "/" + "/".join(["y" * 200] * 30)), b"")], "too long"),
        ([(info("a/.wh."), b"")], "whiteout of nothing"),
        ([(info("a/.wh..."), b"")], "whiteout of nothing"),
        ([(info("a/.wh..wh.plnk"), b"")], "no known kind"),
        ([(info("x", uid=1 << 40), b"")], "belongs to user"),
        ([(info("x", tarfile.SYMTYPE, link="t" * 4090), b"")], "too long"),
    ],
)
def test_what_no_image_may_hold_is_refused_by_name(members: list[tuple[tarfile.TarInfo, bytes]], words: str) -> None:
    with pytest.raises(ImageInvalid, match=words):
        laid(archive(members))


def test_absolute_names_are_names_inside() -> None:
    assert laid(archive([(info("/etc/motd"), b"1"), (info("./x"), b"2")])) == {"etc": "/", "etc/motd": "1", "x": "2"}


def test_devices_are_left_out_and_setuid_is_stripped() -> None:
    device = info("dev/sda", tarfile.BLKTYPE)
    tree, sink = Tree(), Memory()
    apply(archive([(device, b""), (info("su", mode=0o4755), b"x")]), tree, sink, limits=Limits(), keep_setuid=False)  # type: ignore[arg-type]
    assert tree.find(b"dev/sda") is None
    su = tree.find(b"su")
    assert su is not None
    assert su.mode == 0o755


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress, bytes]
)
def test_every_compression_is_known_by_its_first_bytes(pack: Callable[[bytes], bytes]) -> None:
    assert laid(io.BytesIO(pack(files(a="1", b="2" * 100_000).getvalue()))) == {"a": "1", "b": "2" * 100_000}


def test_gzip_in_several_members_and_padded() -> None:
    raw = files(a="1" * 5000).getvalue()
    assert laid(io.BytesIO(gzip.compress(raw[:3000]) + gzip.compress(raw[3000:]) + bytes(512))) == {"a": "1" * 5000}


@pytest.mark.parametrize(
    "pack", [gzip.compress, zstandard.ZstdCompressor().compress, lzma.compress, bz2.compress, bytes]
)
def test_a_truncated_layer_is_refused(pack: Callable[[bytes], bytes]) -> None:
    import random

    noise = random.Random(1).randbytes(200_000).hex()
    whole = pack(files(a="1", b=noise).getvalue())
    with pytest.raises(ImageInvalid, match=r"cut short|damaged"):
        laid(io.BytesIO(whole[: len(whole) // 2]))


def test_bombs_are_capped() -> None:
    bomb = gzip.compress(archive([(info("zeros"), bytes(8 << 20))]).getvalue())
    with pytest.raises(ImageInvalid, match="unpacks to more than 1 MiB"):
        laid(io.BytesIO(bomb), limits=Limits(total_bytes=1 << 20))
    with pytest.raises(ImageInvalid, match="more than 10 names"):
        laid(files(**{f"f{i}": "" for i in range(11)}), limits=Limits(entries=10))
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(ImageInvalid, match="header of many MiB"):
        laid(io.BytesIO(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20)))


def sparse(size: int, segments: bytes = b"0\n", *, version: str = "1.0") -> io.BytesIO:
    """A file of that size of which nothing lies in the archive, as GNU tar writes one (`tar -S`)."""
    target = io.BytesIO()
    if version == "old":
        member = bytearray(info("holes").tobuf(tarfile.GNU_FORMAT))
        member[156:157] = tarfile.GNUTYPE_SPARSE
        member[257:265] = b"ustar  \0"
        member[386:398], member[398:410] = b"%011o\0" % 0, b"%011o\0" % 0
        member[483:495] = b"\x80" + size.to_bytes(11, "big")
        member[148:156] = b" " * 8
        member[148:156] = b"%06o\0 " % sum(member)
        return io.BytesIO(bytes(member) + bytes(1024))
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member_info = info("holes")
        if version == "1.0":
            major = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "holes"}
            member_info.pax_headers = major | {"GNU.sparse.realsize": str(size)}
            member_info.size = len(segments) + -len(segments) % 512
            tar.addfile(member_info, io.BytesIO(segments + bytes(512)))
        else:
            numbers = {"GNU.sparse.size": str(size), "GNU.sparse.numblocks": "0", "GNU.sparse.map": f"0,0,{size},0"}
            member_info.pax_headers = numbers
            tar.addfile(member_info)
    return io.BytesIO(target.getvalue())


class Counting(Memory):
    """A sink that says how much it was made to read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def add(self, contents: io.BufferedIOBase) -> tuple[Piece, ...]:
        pieces = []
        while data := contents.read(1 << 16):
            self.read += len(data)
            pieces.append(Piece(hashlib.sha256(data).digest(), len(data)))
        return tuple(pieces)


@pytest.mark.parametrize("version", ["1.0", "0.1", "old"])
def test_a_sparse_file_counts_as_what_it_reads_as(version: str) -> None:
    limits = Limits(total_bytes=1 << 20)
    tree, sink = Tree(limits=limits), Counting()
    layer = sparse(1 << 50, version=version)
    assert len(layer.getvalue()) <= 16 << 10
    with pytest.raises(ImageInvalid, match="unpacks to more than 1 MiB"):
        apply(layer, tree, sink, limits=limits, keep_setuid=False)  # type: ignore[arg-type]
    assert sink.read == 0
    tree = Tree(limits=limits)
    for _ in range(3):  # those of several layers are counted together
        apply(sparse(300_000, version=version), tree, sink, limits=limits, keep_setuid=False)  # type: ignore[arg-type]
    assert sink.read == 900_000
    with pytest.raises(ImageInvalid, match="unpacks to more than 1 MiB"):
        apply(sparse(300_000, version=version), tree, sink, limits=limits, keep_setuid=False)  # type: ignore[arg-type]


def test_work_on_a_layer_ends_once_it_is_not_wanted() -> None:
    progress = Progress()

    class Stopping(Memory):
        def add(self, contents: io.BufferedIOBase) -> tuple[Piece, ...]:
            progress.stop()
            return super().add(contents)

    layer = archive([(info("first"), b"1"), (info("second"), bytes(5 << 20))])
    with pytest.raises(Interrupted):
        apply(layer, Tree(), Stopping(), limits=Limits(), keep_setuid=False, check=progress.check)  # type: ignore[arg-type]


def raw_member(kind: bytes, contents: bytes, name: str = "x") -> bytes:
    header = info(name, kind)
    header.size = len(contents)
    return header.tobuf(tarfile.USTAR_FORMAT) + contents + bytes(-len(contents) % 512)


def record(name: str, value: str) -> bytes:
    body = f" {name}={value}\n".encode()
    size = len(body) + 1
    while len(str(size)) + len(body) != size:
        size = len(str(size)) + len(body)
    return str(size).encode() + body


@pytest.mark.parametrize(
    "raw",
    [
        b"".join(raw_member(tarfile.XHDTYPE, record("comment", "c" * 100_000)) for _ in range(20)),
        b"".join(raw_member(tarfile.GNUTYPE_LONGNAME, b"n" * 100_000) for _ in range(20)),
        raw_member(tarfile.XHDTYPE, b"".join(record("GNU.sparse.major", "1") for _ in range(60_000))),
        b"".join(raw_member(tarfile.XHDTYPE, record("a", "b")) for _ in range(5000)),
        sparse(1 << 20, b"400000\n" + b"0\n0\n" * 400_000).getvalue(),
        sparse(1 << 20, b"1" * (2 << 20)).getvalue(),
    ],
)
def test_headers_are_bounded_whatever_they_are_made_of(raw: bytes) -> None:
    with pytest.raises(ImageInvalid, match=r"header of many MiB|damaged"):
        laid(io.BytesIO(raw + raw_member(tarfile.REGTYPE, b"1") + bytes(1024)))


def test_headers_for_all_members_are_not_collected() -> None:
    raw = b"".join(
        raw_member(tarfile.XGLTYPE, record(f"key{n}", "v" * 50_000)) + raw_member(tarfile.REGTYPE, b"1", f"f{n}")
        for n in range(400)
    )
    seen = list[int]()

    class Looking(Memory):
        def add(self, contents: io.BufferedIOBase) -> tuple[Piece, ...]:
            tar = contents.raw.fileobj  # type: ignore[attr-defined]
            seen.append(tar.tell())
            return super().add(contents)

    headers: list[int] = []
    following = layers._next

    def looked(tar: tarfile.TarFile, stream: object) -> object:
        found = following(tar, stream)  # type: ignore[arg-type]
        headers.append(sum(len(value) for value in tar.pax_headers.values()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "_next", looked)
        apply(io.BytesIO(raw + bytes(1024)), Tree(), Looking(), limits=Limits(), keep_setuid=False)  # type: ignore[arg-type]
    assert len(seen) == 400
    assert max(headers) == 0


def test_no_stream_takes_as_much_memory_as_it_is_told_to() -> None:
    plain = files(a="1").getvalue()
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    dictionary = bytearray(lzma.compress(plain, filters=filters))
    with pytest.raises(ImageInvalid, match="damaged"):
        laid(io.BytesIO(dictionary))
    window = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=29, strategy=1)
    ).compressobj()
    with pytest.raises(ImageInvalid, match="damaged"):
        laid(io.BytesIO(window.compress(plain) + window.flush()))


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_streams_one_behind_the_other(pack: Callable[[bytes], bytes]) -> None:
    raw = files(a="1" * 5000).getvalue()
    assert laid(io.BytesIO(pack(raw[:3000]) + pack(raw[3000:]) + bytes(8))) == {"a": "1" * 5000}


@given(st.binary(max_size=2000))
def test_damage_is_told_and_nothing_else_happens(noise: bytes) -> None:
    good = bytearray(raw_member(tarfile.XHDTYPE, record("comment", "c")) + raw_member(tarfile.REGTYPE, b"1"))
    at = len(noise) * 7 % len(good)
    good[at : at + len(noise)] = noise
    for raw in (bytes(good), noise):
        with contextlib.suppress(ImageInvalid):
            laid(io.BytesIO(raw))


def test_a_folder_is_made_opaque_once_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    keeping = Tree._keep_layer_only

    def counted(tree: Tree, node: Node) -> None:
        seen.append(1)
        keeping(tree, node)

    monkeypatch.setattr(Tree, "_keep_layer_only", counted)
    below = files(**{f"d__{n}__x": "1" for n in range(50)})
    opaque = (info("d/.wh..wh..opq"), b"")
    above = archive([*[opaque] * 50, (info("d/new"), b"2"), opaque])
    assert laid(below, above) == {"d": "/", "d/new": "2"}
    assert len(seen) == 51
    below.seek(0)
    above.seek(0)
    again = archive([opaque])  # of the next layer it is another one
    assert laid(below, above, again) == {"d": "/"}
