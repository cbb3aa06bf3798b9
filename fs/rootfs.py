"""What every root file system gets before it is an image: PID 1, the default user, mount points, resolver. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from common import addresses
from fs.authorities import lay_in
from fs.conveniences import HOME, UID, USER, add_conveniences, with_line
from fs.errors import ImageInvalid
from fs.oci.layers import Sink
from fs.tree import Node, Tree, folder, show
from fs.treefiles import TreeFiles

REVISION: Final = 5
"""Of what is done here: an image of an older one is renewed on first use."""

_DATABASE_MAX: Final = 1 << 20
HOSTS: Final = "127.0.0.1 localhost\n::1 localhost6 ip6-localhost ip6-loopback\n"
"""The host table; PID 1 adds the sandbox's own name (guest/names.c).

`localhost` is IPv4 alone: what listens on it must be found at 127.0.0.1, where ports are reached from outside.
"""

_MOUNT_POINTS: Final = (b"proc", b"sys", b"dev", b"tmp", b"etc", b"home", b".isobox")


def prepare(
    tree: Tree,
    programs: Mapping[str, bytes],
    sink: Sink,
    read: Callable[[Node], bytes],
    authorities: Sequence[bytes] = (),
) -> None:
    """Make a tree ready for its sandbox.

    programs are ours, PID 1 among them; read gives a file's contents; authorities are certificates (DER) that what
    runs inside accepts.
    """
    for name in _MOUNT_POINTS:
        if (there := tree.root.children.get(name)) is None:
            tree.put(name, folder())
        elif there.kind != "dir":
            raise ImageInvalid(f"{show(name)} of the image is no folder", hint="replace it by a real folder")
    tree.root.children[b"tmp"].mode = 0o1777
    files = TreeFiles(tree, sink, read)

    def database(path: bytes, empty: str, line: str) -> None:
        node = tree.find(path)
        if node is not None and (node.kind != "file" or node.size > _DATABASE_MAX):
            raise ImageInvalid(f"{show(path)} of the image is no regular file")
        text = (files.read(path) or b"").decode(errors="surrogateescape")
        files.write(path, with_line(text or empty, USER, line).encode(errors="surrogateescape"), 0o644)

    shell = "/bin/bash" if any(tree.find(path) for path in (b"bin/bash", b"usr/bin/bash")) else "/bin/sh"
    for title, program in programs.items():
        files.write(f".isobox/{title}".encode(), program, 0o755)
    database(b"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", f"{USER}:x:{UID}:{UID}::{HOME}:{shell}")
    database(b"etc/group", "root:x:0:\n", f"{USER}:x:{UID}:")
    files.write(b"etc/hosts", HOSTS.encode(), 0o644)
    files.write(b"etc/resolv.conf", f"nameserver {addresses.GATEWAY}\n".encode(), 0o644)
    home = tree.root.children[b"home"].children.get(USER.encode())
    if home is not None and home.kind != "dir":
        raise ImageInvalid(f"{HOME} of the image is no folder", hint="replace it by a real folder")
    tree.put(HOME.strip("/").encode(), folder(home.mode if home else 0o755, UID, UID))
    add_conveniences(files)
    lay_in(files, authorities)
