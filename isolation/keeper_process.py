"""The keeper: a small process that holds the ends of each sandbox's channel while the server is away.

As containerd's shim does, and systemd's fd store. It speaks over one SOCK_SEQPACKET socket in the state directory,
one packet a word: `put NAME` with descriptors, `drop NAME`, `list` (answered by one packet a name, with its
descriptors, then `end`). It ends when nobody is connected and it holds nothing, or the state directory has gone (its
file `identity`, see common/owners.py): then no server will ever come for what it holds.

Standard library only: it runs by path, isolated from everything, and stays small.
"""

import os
import selectors
import socket
import sys
import time

_FIRST_PEER_WITHIN_S = 10.0
_LOOK_EVERY_S = 1.0


def _serve_packet(peer: socket.socket, held: dict[str, list[int]]) -> bool:
    """Answer one packet; False when the peer is gone."""
    try:
        packet, fds, _, _ = socket.recv_fds(peer, 256, 8)
    except ConnectionError:
        return False
    if not packet:
        return False
    word, _, name = packet.decode().partition(" ")
    if word == "put":
        old, held[name] = held.get(name, []), fds
    else:
        old = fds + (held.pop(name, []) if word == "drop" else [])
    for fd in old:
        os.close(fd)
    if word == "list":
        for each, each_fds in held.items():
            socket.send_fds(peer, [each.encode()], each_fds)
        peer.sendall(b"end")
    else:
        peer.sendall(b"ok")
    return True


def serve(path: str) -> None:
    """Hold descriptors until nobody needs them any more."""
    held: dict[str, list[int]] = {}
    peers: set[socket.socket] = set()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, selectors.DefaultSelector() as selector:
        os.chdir(os.path.dirname(path))  # an address takes 107 bytes, a path more
        path = os.path.basename(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(8)
        if os.fork():  # whoever started us waits for this: it may connect now
            os._exit(0)
        selector.register(listener, selectors.EVENT_READ)
        deadline = time.monotonic() + _FIRST_PEER_WITHIN_S  # for the first one to come
        identity = _open_identity()
        while peers or time.monotonic() < deadline or (held and not _removed(identity)):
            for key, _ in selector.select(timeout=None if peers else _LOOK_EVERY_S if held else 0.5):
                if key.fileobj is listener:
                    peer, _ = listener.accept()
                    peers.add(peer)
                    selector.register(peer, selectors.EVENT_READ)
                    deadline = 0.0
                elif isinstance(key.fileobj, socket.socket) and not _serve_packet(key.fileobj, held):
                    selector.unregister(key.fileobj)
                    peers.discard(key.fileobj)
                    key.fileobj.close()
        if not _removed(identity) and os.path.exists(path):
            os.unlink(path)


def _open_identity() -> int | None:
    """The identity of the state directory that we stand in; None where it has none."""
    try:
        return os.open("identity", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _removed(identity: int | None) -> bool:
    return identity is not None and os.fstat(identity).st_nlink == 0


if __name__ == "__main__":
    serve(sys.argv[1])
