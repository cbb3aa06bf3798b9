"""What every root file system gets before it is an image: PID 1, the default user, mount points, resolver. Pure."""

import io
from collections.abc import Callable, Mapping
from typing import Final

from common import addresses
from fs.errors import ImageInvalid
from fs.oci.layers import Sink
from fs.tree import Node, Tree, folder, show

REVISION: Final = 3
"""Of what is done here: an image of an older one is renewed on first use."""

USER: Final = "user"
UID: Final = 1000
_DATABASE_MAX: Final = 1 << 20
_MOUNT_POINTS: Final = (b"proc", b"sys", b"dev", b"tmp", b"etc", b"home", b".isobox")


def with_line(text: str, key: str, line: str) -> str:
    """A colon-separated database with a line for key: its own, if it has one, else this."""
    if any(each.partition(":")[0] == key for each in text.splitlines()):
        return text
    return text + ("" if text.endswith("\n") or not text else "\n") + line + "\n"


def prepare(tree: Tree, programs: Mapping[str, bytes], sink: Sink, read: Callable[[Node], bytes]) -> None:
    """Make a tree ready for its sandbox; programs are ours, PID 1 among them; read gives a file's contents."""
    for name in _MOUNT_POINTS:
        if (there := tree.root.children.get(name)) is None:
            tree.put(name, folder())
        elif there.kind != "dir":
            raise ImageInvalid(f"{show(name)} of the image is no folder", hint="replace it by a real folder")
    tree.root.children[b"tmp"].mode = 0o1777

    def write(path: bytes, contents: bytes, mode: int) -> None:
        tree.put(path, Node("file", mode, pieces=sink.add(io.BytesIO(contents))))

    def database(path: bytes, empty: str, line: str) -> None:
        node = tree.find(path)
        if node is not None and (node.kind != "file" or node.size > _DATABASE_MAX):
            raise ImageInvalid(f"{show(path)} of the image is no regular file")
        text = read(node).decode(errors="surrogateescape") if node is not None else ""
        write(path, with_line(text or empty, USER, line).encode(errors="surrogateescape"), 0o644)

    shell = "/bin/bash" if any(tree.find(path) for path in (b"bin/bash", b"usr/bin/bash")) else "/bin/sh"
    for title, program in programs.items():
        write(f".isobox/{title}".encode(), program, 0o755)
    database(b"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", f"{USER}:x:{UID}:{UID}::/home/{USER}:{shell}")
    database(b"etc/group", "root:x:0:\n", f"{USER}:x:{UID}:")
    write(b"etc/hosts", b"127.0.0.1 localhost\n", 0o644)
    write(b"etc/resolv.conf", f"nameserver {addresses.GATEWAY}\n".encode(), 0o644)
    home = tree.root.children[b"home"].children.get(USER.encode())
    if home is not None and home.kind != "dir":
        raise ImageInvalid(f"/home/{USER} of the image is no folder", hint="replace it by a real folder")
    tree.put(f"home/{USER}".encode(), folder(home.mode if home else 0o755, UID, UID))
