"""EROFS images: a tree's metadata as bytes, and where in the image each file's contents go. Pure.

    block 0            superblock at byte 1024
    from block 1       inodes (the root's first), small folders and links behind their inode; then larger folders
    from `data`        contents, each file at a block of its own, nothing compressed, nothing shared

All metadata lies in one piece at the front, so that whoever serves an image lazily fetches it first: the sentry reads
it through a mapping, where a late error would end it. It reads extended and compact inodes, plain and inline layouts,
no extended attributes (gVisor pkg/erofs/erofs.go); files have to be plain. Written here and not by mkfs.erofs because
a tree need never lie on a disk, the result is the same everywhere, and each piece's place is known (docs/adr/0012).

Source of the format: Linux fs/erofs/erofs_fs.h, Documentation/filesystems/erofs.rst.
"""

import stat
import struct
from dataclasses import dataclass
from typing import Final

from fs.errors import ImageInvalid, StoreCorrupt
from fs.tree import Kind, Node, Piece, Tree

BLOCK: Final = 4096
_BITS: Final = 12
_SUPER_AT: Final = 1024
_SUPER: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHH38s")
_INODE: Final = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT: Final = struct.Struct("<QHBB")
_MAGIC: Final = 0xE0F5E1E2
_EXTENDED: Final = 1
_PLAIN: Final = 0 << 1
_INLINE: Final = 2 << 1
_TYPES: Final[dict[Kind, tuple[int, int]]] = {
    "file": (stat.S_IFREG, 1),
    "dir": (stat.S_IFDIR, 2),
    "fifo": (stat.S_IFIFO, 5),
    "symlink": (stat.S_IFLNK, 7),
}
_KINDS: Final[dict[int, Kind]] = {bits: kind for kind, (bits, _) in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class Placed:
    """A piece of contents and the byte of the image where it begins."""

    offset: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Layout:
    """An image: its metadata (a whole number of blocks), its pieces in the order of their places, its size in bytes."""

    metadata: bytes
    placed: tuple[Placed, ...]
    size: int


def lay_out(tree: Tree) -> Layout:
    """The image of a tree; the same tree gives the same image."""
    nodes, links, parents = _nodes(tree)
    tails = {id(node): _tail_size(node) for node in nodes}
    nids, end = _place_inodes(nodes, tails)
    out = bytearray(end)
    folders: list[tuple[Node, int]] = []  # whose entries take blocks of their own, and the block where those begin
    block = -(-end // BLOCK)
    for node in nodes:
        if node.kind == "dir" and (whole := tails[id(node)] // BLOCK):
            folders.append((node, block))
            block += whole
    data = block
    placed: list[Placed] = []
    addresses = {id(node): at for node, at in folders}
    for node in nodes:
        if node.kind == "file" and node.size:
            addresses[id(node)] = block
            offset = block * BLOCK
            for piece in node.pieces:
                placed.append(Placed(offset, piece))
                offset += piece.size
            block += -(-node.size // BLOCK)
    out.extend(bytes(data * BLOCK - len(out)))
    for ino, node in enumerate(nodes, 1):
        at = nids[id(node)] * 32
        content = _entries(node, parents, nids) if node.kind == "dir" else node.target
        whole = len(content) // BLOCK * BLOCK
        inline = bool(content[whole:])
        size = node.size if node.kind == "file" else len(content)
        _INODE.pack_into(
            out,
            at,
            _EXTENDED | (_INLINE if inline else _PLAIN),
            0,
            _TYPES[node.kind][0] | node.mode & 0o7777,
            0,
            size,
            addresses.get(id(node), 0),
            ino,
            node.uid,
            node.gid,
            node.mtime,
            0,
            links[id(node)],
        )
        out[at + _INODE.size : at + _INODE.size + len(content) - whole] = content[whole:]
        if whole:
            start = addresses[id(node)] * BLOCK
            out[start : start + whole] = content[:whole]
    _SUPER.pack_into(
        out,
        _SUPER_AT,
        *(_MAGIC, 0, 0, _BITS, 0, nids[id(tree.root)], len(nodes), 0, 0, block, 0, 0, bytes(16), bytes(16)),
        *(0, 0, 0, 0, bytes(38)),
    )
    return Layout(bytes(out), tuple(placed), block * BLOCK)


def _nodes(tree: Tree) -> tuple[list[Node], dict[int, int], dict[int, Node]]:
    """All nodes, each once, the root first; how many names each has; each folder's parent."""
    nodes, links, parents = [tree.root], {id(tree.root): 2}, {id(tree.root): tree.root}
    stack = [tree.root]
    while stack:
        above = stack.pop()
        below = []
        for name in sorted(above.children):
            node = above.children[name]
            if id(node) in links:
                if node.kind == "dir":
                    raise ImageInvalid("a folder has two names")
                links[id(node)] += 1
                continue
            nodes.append(node)
            links[id(node)] = 1
            if node.kind == "dir":
                links[id(node)] = 2
                links[id(above)] += 1
                parents[id(node)] = above
                below.append(node)
        stack.extend(reversed(below))
    return nodes, links, parents


def _tail_size(node: Node) -> int:
    """Bytes of a folder's entries or of a link's target."""
    if node.kind == "symlink":
        if len(node.target) >= BLOCK - _INODE.size:
            raise ImageInvalid("the target of a link is too long", hint="at most 4000 bytes")
        return len(node.target)
    if node.kind != "dir":
        return 0
    blocks = _fill([b".", b"..", *node.children])
    return (len(blocks) - 1) * BLOCK + sum(_DIRENT.size + len(name) for name in blocks[-1])


def _fill(names: list[bytes]) -> list[list[bytes]]:
    """Names in byte order, as many to a block as it holds; a last block too full to lie behind an inode is whole."""
    blocks: list[list[bytes]] = [[]]
    used = 0
    for name in sorted(names):
        need = _DIRENT.size + len(name)
        if used + need > BLOCK:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += need
    if used > BLOCK - _INODE.size:
        blocks.append([])
    return blocks


def _place_inodes(nodes: list[Node], tails: dict[int, int]) -> tuple[dict[int, int], int]:
    """Each inode's number (its place in units of 32 bytes), and where they end. An inode and its tail share a block."""
    nids: dict[int, int] = {}
    at = BLOCK
    for node in nodes:
        need = _INODE.size + tails[id(node)] % BLOCK
        if at % BLOCK + need > BLOCK:
            at += -at % BLOCK
        nids[id(node)] = at // 32
        at += -(-need // 32) * 32
    return nids, at


def _entries(node: Node, parents: dict[int, Node], nids: dict[int, int]) -> bytes:
    found = {b".": node, b"..": parents[id(node)], **node.children}
    out = bytearray()
    blocks = _fill(list(found))
    for number, names in enumerate(blocks):
        heads, texts = bytearray(), b"".join(names)
        offset = _DIRENT.size * len(names)
        for name in names:
            child = found[name]
            heads += _DIRENT.pack(nids[id(child)], offset, _TYPES[child.kind][1], 0)
            offset += len(name)
        out += heads + texts
        if number < len(blocks) - 1:
            out += bytes(-len(out) % BLOCK)
    return bytes(out)


# ---- and back


def read(layout: Layout) -> Tree:
    """The tree that an image holds; StoreCorrupt if this module did not write it."""
    try:
        return Tree(_Reader(layout).root())
    except (struct.error, IndexError, KeyError, ValueError, OverflowError, RecursionError) as error:
        raise StoreCorrupt("the image's metadata is damaged", hint="pull or build the image again") from error


class _Reader:
    def __init__(self, layout: Layout) -> None:
        self._bytes = layout.metadata
        self._nodes: dict[int, Node] = {}
        self._pieces = {placed.offset: placed.piece for placed in layout.placed}

    def root(self) -> Node:
        fields = _SUPER.unpack_from(self._bytes, _SUPER_AT)
        if fields[0] != _MAGIC or fields[3] != _BITS:
            raise ValueError("superblock")
        return self._node(fields[5])

    def _node(self, nid: int) -> Node:
        if (known := self._nodes.get(nid)) is not None:
            if known.kind == "dir":
                raise ValueError("a folder of two names")
            return known
        at = nid * 32
        layout, _, mode, _, size, address, _, uid, gid, mtime, _, _ = _INODE.unpack_from(self._bytes, at)
        kind = _KINDS[stat.S_IFMT(mode)]
        node = self._nodes[nid] = Node(kind, mode & 0o7777, uid, gid, mtime)
        if kind == "file":
            node.pieces = self._contents(address * BLOCK, size)
            return node
        whole = size // BLOCK * BLOCK if layout & _INLINE else size
        content = self._bytes[address * BLOCK : address * BLOCK + whole]
        content += self._bytes[at + _INODE.size : at + _INODE.size + size - whole]
        if len(content) != size:
            raise ValueError("contents")
        if kind == "symlink":
            node.target = content
        elif kind == "dir":
            for name, child in _names(content):
                if name not in (b".", b".."):
                    node.children[name] = self._node(child)
        return node

    def _contents(self, offset: int, size: int) -> tuple[Piece, ...]:
        found = []
        while size > 0:
            found.append(piece := self._pieces[offset])
            offset += piece.size
            size -= piece.size
        return tuple(found)


def _names(content: bytes) -> list[tuple[bytes, int]]:
    found = []
    for start in range(0, len(content), BLOCK):
        block = content[start : start + BLOCK]
        count = _DIRENT.unpack_from(block, 0)[1] // _DIRENT.size
        heads = [_DIRENT.unpack_from(block, i * _DIRENT.size) for i in range(count)]
        ends = [head[1] for head in heads[1:]] + [len(block)]
        for head, end in zip(heads, ends, strict=True):
            found.append((block[head[1] : end].rstrip(b"\0"), head[0]))
    return found
