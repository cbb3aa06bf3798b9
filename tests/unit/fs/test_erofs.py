import contextlib
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs import erofs
from fs.errors import ImageInvalid, StoreCorrupt
from fs.tree import Node, Piece, Tree, folder


def piece(data: bytes) -> Piece:
    return Piece(hashlib.sha256(data).digest(), len(data))


names = (
    st.binary(min_size=1, max_size=255)
    .map(lambda raw: raw.replace(b"/", b"-").replace(b"\0", b"_"))
    .filter(lambda n: n not in (b".", b".."))
)
files = st.builds(
    lambda mode, uid, mtime, sizes: Node(
        "file", mode, uid, uid, mtime, tuple(piece(bytes([i]) * s) for i, s in enumerate(sizes))
    ),
    st.integers(0, 0o7777),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 1 << 40),
    st.lists(st.integers(1, 9000), max_size=3),
)
links = st.builds(
    lambda target: Node("symlink", 0o777, target=target),
    st.binary(min_size=1, max_size=4000).map(lambda raw: raw.replace(b"\0", b"x")),
)
fifos = st.builds(lambda: Node("fifo", 0o600))
nodes = st.recursive(
    files | links | fifos,
    lambda below: st.builds(lambda c: Node("dir", 0o755, children=c), st.dictionaries(names, below, max_size=20)),
    max_leaves=40,
)


def same(a: Node, b: Node) -> bool:
    mine = (a.kind, a.mode, a.uid, a.gid, a.mtime, a.pieces, a.target)
    theirs = (b.kind, b.mode, b.uid, b.gid, b.mtime, b.pieces, b.target)
    return (
        mine == theirs
        and a.children.keys() == b.children.keys()
        and all(same(a.children[n], b.children[n]) for n in a.children)
    )


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, nodes, max_size=30))
def test_what_is_laid_out_is_read_back(children: dict[bytes, Node]) -> None:
    root = folder()
    root.children = children
    layout = erofs.lay_out(Tree(root))
    assert layout.metadata == erofs.lay_out(Tree(root)).metadata
    assert len(layout.metadata) % erofs.BLOCK == 0
    ends = [len(layout.metadata)]
    for placed in layout.placed:
        assert placed.offset >= ends[-1]
        ends.append(placed.offset + placed.piece.size)
    assert layout.size >= ends[-1]
    assert same(erofs.read(layout).root, root)


def test_a_file_of_two_names_is_one() -> None:
    tree = Tree()
    tree.put(b"a", Node("file", 0o644, pieces=(piece(b"x" * 5000),)))
    tree.link(b"d/b", b"a")
    layout = erofs.lay_out(tree)
    assert len(layout.placed) == 1
    back = erofs.read(layout)
    assert back.find(b"a") is back.find(b"d/b")


def test_a_folder_of_many_names() -> None:
    tree = Tree()
    for number in range(5000):
        tree.put(f"d/{number:0200d}".encode(), Node("fifo", 0o600))
    folder_ = erofs.read(erofs.lay_out(tree)).find(b"d")
    assert folder_ is not None
    assert len(folder_.children) == 5000


def test_a_link_that_no_block_holds_is_refused() -> None:
    tree = Tree()
    tree.put(b"l", Node("symlink", 0o777, target=b"x" * 4080))
    with pytest.raises(ImageInvalid, match="target of a link"):
        erofs.lay_out(tree)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=40))
def test_damaged_metadata_is_an_error_of_ours(at: int, noise: bytes) -> None:
    tree = Tree()
    for number in range(40):
        tree.put(f"d{number}/f".encode(), Node("file", 0o644, pieces=(piece(b"x"),)))
    layout = erofs.lay_out(tree)
    damaged = bytearray(layout.metadata)
    at %= len(damaged)
    damaged[at : at + len(noise)] = noise
    with contextlib.suppress(StoreCorrupt):
        erofs.read(erofs.Layout(bytes(damaged), layout.placed, layout.size))
