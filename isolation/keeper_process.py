"""The keeper: a small process that holds the ends of each sandbox's channel while the server is away.

As containerd's shim does, and systemd's fd store. It speaks over one SOCK_SEQPACKET socket in the state directory,
one packet a word: `put NAME` with descriptors, `drop NAME`, `list` (answered by one packet a name, with its
descriptors, then `end`). It ends when it holds nothing and nobody is connected.

Standard library only: it runs by path, isolated from everything, and stays small.
"""

import os
import selectors
import socket
import sys
import time

_FIRST_PEER_WITHIN_S = 10.0


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
        while held or peers or time.monotonic() < deadline:
            for key, _ in selector.select(timeout=None if held or peers else 0.5):
                if key.fileobj is listener:
                    peer, _ = listener.accept()
                    peers.add(peer)
                    selector.register(peer, selectors.EVENT_READ)
                    deadline = 0.0
                elif isinstance(key.fileobj, socket.socket) and not _serve_packet(key.fileobj, held):
                    selector.unregister(key.fileobj)
                    peers.discard(key.fileobj)
                    key.fileobj.close()
        os.unlink(path)


if __name__ == "__main__":
    serve(sys.argv[1])
