"""A sink that keeps contents in memory."""

import hashlib
import io

from fs.tree import Node, Piece


class Memory:
    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def add(self, contents: io.BytesIO) -> tuple[Piece, ...]:
        data = contents.read()
        digest = hashlib.sha256(data).digest()
        self.kept[digest] = data
        return (Piece(digest, len(data)),)

    def read(self, node: Node) -> bytes:
        return b"".join(self.kept[piece.digest] for piece in node.pieces)
