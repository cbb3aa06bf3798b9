"""A root file system as a value: folders, names and where contents lie. Pure; no file of the host is touched.

Layers are laid over one another here, not on a disk: a path that a stranger's archive names is only ever a key in these
dictionaries, and its links lead nowhere but to other keys.

Source of the rules for whiteouts: OCI image-spec, layer.md ("Representing Changes").
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from fs.errors import ImageInvalid

Kind = Literal["file", "dir", "symlink", "fifo"]

NAME_MAX: Final = 255
PATH_MAX: Final = 4096
DEPTH_MAX: Final = 256
LINKS_MAX: Final = 40
_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a file's contents: the SHA-256 of its bytes, and how many."""

    digest: bytes
    size: int


@dataclass(slots=True, eq=False)
class Node:
    """A file, a folder, a link. One that has several names is one node in several folders. mtime in seconds."""

    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    pieces: tuple[Piece, ...] = ()
    target: bytes = b""
    children: dict[bytes, "Node"] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of contents."""
        return sum(piece.size for piece in self.pieces) if self.kind == "file" else len(self.target)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tree may hold at most: so many names, so many bytes of contents."""

    entries: int = 2_000_000
    total_bytes: int = 64 << 30


def folder(mode: int = 0o755, uid: int = 0, gid: int = 0) -> Node:
    """An empty folder."""
    return Node("dir", mode, uid, gid)


class Tree:
    """A root folder and all below it. Paths are bytes, relative to the root."""

    def __init__(self, root: Node | None = None, limits: Limits | None = None) -> None:
        self.root = root or folder()
        self._limits = limits or Limits()
        self._entries = sum(1 for _ in self.walk())
        self._bytes = 0
        self._layer: set[int] | None = None
        self._opaque: dict[int, Node] = {}

    # ---- looking

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every (path, node) below the root, folders before what they hold, names in byte order."""
        stack = [(b"", self.root)]
        while stack:
            above, node = stack.pop()
            if above:
                yield above, node
            for name in sorted(node.children, reverse=True):
                stack.append((above + b"/" + name if above else name, node.children[name]))

    def find(self, path: bytes) -> Node | None:
        """The node of that name; its last part is not followed, links before it are. None if there is none."""
        parts = split(path)
        if not parts:
            return self.root
        above = self._descend(parts[:-1], make=False)
        return above.children.get(parts[-1]) if above is not None else None

    def _descend(self, parts: list[bytes], *, make: bool) -> Node | None:
        """The folder at the end of these names, following links; with make folders are made where there are none."""
        trail, todo, followed = [self.root], list(reversed(parts)), 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            child = trail[-1].children.get(name)
            if child is not None and child.kind == "symlink":
                followed += 1
                if followed > LINKS_MAX:
                    raise ImageInvalid("links go round in a circle", hint="see the archive's symbolic links")
                if child.target.startswith(b"/"):
                    del trail[1:]
                todo.extend(reversed(child.target.split(b"/")))
                continue
            if child is None or child.kind != "dir":
                if not make:
                    return None
                child = folder()
                self._set(trail[-1], name, child)
            trail.append(child)
            if len(trail) > DEPTH_MAX:
                raise ImageInvalid(f"folders go deeper than {DEPTH_MAX}")
        return trail[-1]

    # ---- changing

    def _count(self) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise ImageInvalid(
                f"more than {self._limits.entries} names", hint="an image of this many files is not supported"
            )

    def take_bytes(self, size: int) -> None:
        """Count contents that come into the tree, and what others replace later too: ImageInvalid beyond the limit."""
        self._bytes += size
        if size < 0 or self._bytes > self._limits.total_bytes:
            raise ImageInvalid(
                f"the archive unpacks to more than {self._limits.total_bytes >> 20} MiB",
                hint="a sparse file counts as what it reads as",
            )

    def _set(self, above: Node, name: bytes, node: Node) -> None:
        if name not in above.children:
            self._count()
        above.children[name] = node
        if self._layer is not None:
            self._layer.add(id(node))

    def put(self, path: bytes, node: Node) -> None:
        """Give a node this name; a folder over a folder keeps what that holds and takes its new rights."""
        parts = split(path)
        if not parts:
            if node.kind != "dir":
                raise ImageInvalid("the root is no folder")
            self.root.mode, self.root.uid, self.root.gid, self.root.mtime = node.mode, node.uid, node.gid, node.mtime
            return
        above = self._descend(parts[:-1], make=True)
        assert above is not None
        there = above.children.get(parts[-1])
        if there is not None and there.kind == "dir" and node.kind == "dir":
            there.mode, there.uid, there.gid, there.mtime = node.mode, node.uid, node.gid, node.mtime
            if self._layer is not None:
                self._layer.add(id(there))
            return
        self._set(above, parts[-1], node)

    def link(self, path: bytes, target: bytes) -> None:
        """Give the file at target a second name."""
        node = self.find(target)
        if node is None or node.kind == "dir":
            raise ImageInvalid(f"{show(path)} is a hard link to {show(target)}, which is no file of the image")
        self.put(path, node)

    def remove(self, path: bytes) -> None:
        """Take a name away, and all below it; one that is not there is no error."""
        parts = split(path)
        above = self._descend(parts[:-1], make=False) if parts else None
        if above is not None and (gone := above.children.pop(parts[-1], None)) is not None:
            self._entries -= 1 + sum(1 for _ in Tree.below(gone))

    @staticmethod
    def below(node: Node) -> Iterator[Node]:
        """All nodes below one."""
        stack = list(node.children.values())
        while stack:
            each = stack.pop()
            yield each
            stack.extend(each.children.values())

    # ---- layers

    def begin_layer(self) -> None:
        """What is put from now on is a layer over what is there."""
        self._layer, self._opaque = set(), {}

    def whiteout(self, path: bytes) -> bool:
        """If this name of a layer is a whiteout, do what it says; False if it is a name like others."""
        above, _, name = path.rpartition(b"/")
        if not name.startswith(_WHITEOUT):
            return False
        if name == _OPAQUE:
            node = self._descend(split(above), make=False)
            if node is not None and id(node) not in self._opaque:  # once a layer: all else in there is the layer's
                self._opaque[id(node)] = node
                self._keep_layer_only(node)
        elif name.startswith(_WHITEOUT + _WHITEOUT):
            raise ImageInvalid(f"{show(path)} is a whiteout of no known kind")
        else:
            hidden = name[len(_WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise ImageInvalid(f"{show(path)} is a whiteout of nothing")
            self.remove(above + b"/" + hidden if above else hidden)
        return True

    def _keep_layer_only(self, node: Node) -> None:
        """Of a folder, keep what this layer put there: whiteouts hide what lies below, wherever in it they stand."""
        mine = self._layer or set()
        for name, child in list(node.children.items()):
            if child.kind == "dir":
                self._keep_layer_only(child)
            if id(child) not in mine and not child.children:
                del node.children[name]
                self._entries -= 1


def split(path: bytes) -> list[bytes]:
    """The names of a path; ImageInvalid for one that leaves the root or that no file system would hold."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if len(path) > PATH_MAX or any(len(part) > NAME_MAX for part in parts):
        raise ImageInvalid(f"{show(path)} is too long a name")
    if b".." in parts:
        raise ImageInvalid(f"{show(path)} leads out of the image", hint="names in an image may not hold '..'")
    if any(b"\0" in part for part in parts):
        raise ImageInvalid("a name holds NUL")
    return parts


def show(path: bytes) -> str:
    """A name for people."""
    return "/" + path.decode(errors="backslashreplace").lstrip("/")[:200]


def without_setuid(node: Node) -> Node:
    """The same file without the bits that would change who runs it."""
    return replace(node, mode=node.mode & ~0o6000) if node.kind == "file" else node


def pieces_of(tree: Tree) -> Iterable[Piece]:
    """Every piece of contents, each as often as it stands there."""
    seen: set[int] = set()
    for _, node in tree.walk():
        if id(node) not in seen:
            seen.add(id(node))
            yield from node.pieces
