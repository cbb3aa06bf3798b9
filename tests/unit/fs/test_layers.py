import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Callable

import pytest
import zstandard
from archives import archive, files, info

from fs.errors import ImageInvalid
from fs.oci.layers import apply
from fs.tree import Limits, Piece, Tree

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
