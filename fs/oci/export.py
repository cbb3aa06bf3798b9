"""A tree as one OCI layer, the same bytes for the same tree."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fs.tree import Node, Tree

_TYPES: Final = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "fifo": tarfile.FIFOTYPE}
_OURS: Final = b".isobox"


class _Hashed(io.RawIOBase):
    def __init__(self, target: Any) -> None:
        self._target = target
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self._target.write(data)
        return len(data)


def write_tar(
    tree: Tree, contents: Callable[[Node], Iterator[bytes]], target: Any, *, owner: int | None = None
) -> None:
    """Write a tree as a plain tar archive; with owner (a user's number) all is theirs, and the root is a member."""
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
        seen: dict[int, str] = {}
        for path, node in [*([] if owner is None else [(b".", tree.root)]), *tree.walk()]:
            mine = node if owner is None else replace(node, uid=owner, gid=owner)
            _add(archive, path.decode(errors="surrogateescape"), mine, seen, contents, of=node)


def write_layer(tree: Tree, contents: Callable[[Node], Iterator[bytes]], target: Path) -> str:
    """Write a tree as a gzipped layer: its diff id. Our own PID 1 is left out; the next import adds one."""
    with target.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        hashed = _Hashed(packed)
        with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
            seen: dict[int, str] = {}
            for path, node in tree.walk():
                if path == _OURS or path.startswith(_OURS + b"/"):
                    continue
                _add(archive, path.decode(errors="surrogateescape"), node, seen, contents)
    return f"sha256:{hashed.hash.hexdigest()}"


def _add(
    archive: tarfile.TarFile,
    path: str,
    node: Node,
    seen: dict[int, str],
    contents: Callable[[Node], Iterator[bytes]],
    of: Node | None = None,
) -> None:
    number = id(of or node)
    info = tarfile.TarInfo(path)
    info.mode, info.uid, info.gid, info.mtime = node.mode, node.uid, node.gid, node.mtime
    info.type = _TYPES[node.kind]
    if node.kind != "dir" and number in seen:
        info.type, info.linkname = tarfile.LNKTYPE, seen[number]
        archive.addfile(info)
        return
    seen[number] = path
    if node.kind == "symlink":
        info.linkname = node.target.decode(errors="surrogateescape")
    if node.kind == "file":
        info.size = node.size
        archive.addfile(info, _Joined(contents(node)))  # type: ignore[arg-type]  # it reads
    else:
        archive.addfile(info)


class _Joined:
    """Pieces as one stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        parts = []
        while size:
            if not self._rest:
                self._rest = next(self._pieces, b"")
                if not self._rest:
                    break
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
