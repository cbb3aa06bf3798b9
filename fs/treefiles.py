"""Small files of a tree, read and written whole. Pure: contents go to the store."""

import io
from collections.abc import Callable, Iterable
from typing import Final

from fs.oci.layers import Sink
from fs.tree import LINKS_MAX, Node, Tree, folder

_SIZE_MAX: Final = 4 << 20


class TreeFiles:
    """Reads and writes the files of one tree; `read` gives a node's contents."""

    def __init__(self, tree: Tree, sink: Sink, read: Callable[[Node], bytes]) -> None:
        self.tree = tree
        self._sink = sink
        self._read = read

    def resolve(self, path: bytes) -> bytes | None:
        """Follow the links that a path's last name is; None where they go round in a circle."""
        for _ in range(LINKS_MAX):
            node = self.tree.find(path)
            if node is None or node.kind != "symlink":
                return path
            path = _joined(path.rpartition(b"/")[0], node.target)
        return None

    def find(self, path: bytes) -> Node | None:
        """Return the regular file of that name; None if there is none, or one of more than 4 MiB."""
        node = self.tree.find(path)
        return node if node is not None and node.kind == "file" and node.size <= _SIZE_MAX else None

    def read(self, path: bytes) -> bytes | None:
        """Return a file's contents; None as `find`."""
        node = self.find(path)
        return None if node is None else self._read(node)

    def write(self, path: bytes, contents: bytes, mode: int, uid: int = 0, gid: int = 0) -> None:
        """Put a file there, over whatever has that name."""
        self.tree.put(path, Node("file", mode, uid, gid, pieces=self._sink.add(io.BytesIO(contents))))

    def rewrite(self, path: bytes, contents: bytes, mode: int) -> None:
        """Write a file that keeps the owner and mode that it has; a new one is root's and gets this mode."""
        node = self.find(path)
        if node is None:
            self.write(path, contents, mode)
        else:
            self.write(path, contents, node.mode, node.uid, node.gid)

    def link(self, path: bytes, target: bytes) -> None:
        """Put a symbolic link there."""
        self.tree.put(path, Node("symlink", 0o777, target=target))

    def ensure_folders(self, above: bytes, names: Iterable[bytes], uid: int = 0, gid: int = 0) -> None:
        """Make folders one in the other, as far down as nothing else stands in the way."""
        for name in names:
            above += b"/" + name
            if not self._ensure_folder(above, uid, gid):
                return

    def _ensure_folder(self, path: bytes, uid: int, gid: int) -> bool:
        node = self.tree.find(path)
        if node is None:
            self.tree.put(path, folder(0o755, uid, gid))
            return True
        if node.kind == "symlink" and (resolved := self.resolve(path)) is not None:
            node = self.tree.find(resolved)
        return node is not None and node.kind == "dir"


def _joined(above: bytes, target: bytes) -> bytes:
    """Return where a link in the folder `above` leads, relative to the root; '..' at the root stays there."""
    names: list[bytes] = [] if target.startswith(b"/") else [name for name in above.split(b"/") if name]
    for name in target.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b"."):
            names.append(name)
    return b"/".join(names)
