"""What differs between two trees. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fs.tree import Node, Tree


@dataclass(frozen=True, slots=True)
class Difference:
    """A path that is in one tree alone, or not the same in both; size in bytes, of the newer one where there is one."""

    path: bytes
    change: Literal["added", "changed", "removed"]
    size: int


def compare(older: Tree, newer: Tree) -> Iterator[Difference]:
    """All differences, in byte order within each folder. Times do not count; what is gone is told by its folder."""
    yield from _below(b"", older.root, newer.root)


def _below(above: bytes, older: Node, newer: Node) -> Iterator[Difference]:
    for name in sorted({*older.children, *newer.children}):
        path = above + b"/" + name if above else name
        was, is_ = older.children.get(name), newer.children.get(name)
        if was is None and is_ is not None:
            yield Difference(path, "added", is_.size)
            yield from _below(path, Node("dir", 0), is_)
        elif is_ is None and was is not None:
            yield Difference(path, "removed", was.size)
        elif was is not None and is_ is not None:
            if _says(was) != _says(is_):
                yield Difference(path, "changed", is_.size)
            yield from _below(path, was if was.kind == "dir" else Node("dir", 0), is_)


def _says(node: Node) -> object:
    return node.kind, node.mode, node.uid, node.gid, node.pieces, node.target
