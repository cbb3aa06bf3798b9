"""Frames of a server's websocket (RFC 6455), each message redacted and framed anew. No I/O.

What cannot be understood here is refused: extensions (compression is one), masked frames, unknown opcodes.
"""

import struct
from typing import Final

from netpolicy.gateway.redact import Needles, Redactor

_FIN, _RESERVED, _OPCODE, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_CONTROL_MAX: Final = 125


class FrameRefused(ValueError):
    """What a server sent is not a plain frame; the text says why."""


class Frames:
    """The frames of one connection, from the server to the client."""

    def __init__(self, needles: Needles) -> None:
        self._needles = needles
        self._data = bytearray()
        self._left = 0
        """Bytes of the frame of a message that have yet to come."""
        self._final = False
        self._message: Redactor | None = None
        self._opcode = _CONTINUATION
        """Of the next frame that goes out: a message's own, then that of its continuations."""
        self.found = 0

    def feed(self, data: bytes) -> bytes:
        """Take what came; returns what goes on. FrameRefused."""
        self._data += data
        passed = bytearray()
        while self._step(passed):
            pass
        return bytes(passed)

    def _step(self, passed: bytearray) -> bool:
        if self._left:
            piece = bytes(self._data[: self._left])
            del self._data[: len(piece)]
            self._left -= len(piece)
            self._payload(piece, passed)
            return bool(piece)
        return self._head(passed)

    def _head(self, passed: bytearray) -> bool:
        data = self._data
        if len(data) < 2:
            return False
        length, offset = data[1] & _LENGTH, 2
        if data[0] & _RESERVED or data[1] & _MASKED:
            raise FrameRefused("a frame with an extension or a mask")
        if length >= 126:
            offset += 2 if length == 126 else 8
            if len(data) < offset:
                return False
            length = int.from_bytes(data[2:offset])
        opcode, final = data[0] & _OPCODE, bool(data[0] & _FIN)
        if opcode in (_CLOSE, _PING, _PONG):
            if length > _CONTROL_MAX or not final:
                raise FrameRefused("a control frame that is too long, or not whole")
            if len(data) < offset + length:
                return False
            passed += self._frame(opcode, self._all(bytes(data[offset : offset + length])), final=True)
            del data[: offset + length]
            return True
        if opcode not in (_CONTINUATION, _TEXT, _BINARY) or (opcode == _CONTINUATION) != (self._message is not None):
            raise FrameRefused("a frame out of order, or of an unknown kind")
        if opcode != _CONTINUATION:
            self._message, self._opcode = Redactor(self._needles), opcode
        del data[:offset]
        self._left, self._final = length, final
        if not length:
            self._payload(b"", passed)
        return True

    def _payload(self, piece: bytes, passed: bytearray) -> None:
        message = self._message
        assert message is not None
        out = message.feed(piece)
        final = self._final and not self._left
        if final:
            out += message.flush()
            self.found += message.found
            self._message = None
        if out or final:
            passed += self._frame(self._opcode, out, final=final)
            self._opcode = _CONTINUATION

    def _all(self, payload: bytes) -> bytes:
        redactor = Redactor(self._needles)
        clean = redactor.all(payload)
        self.found += redactor.found
        return clean

    def _frame(self, opcode: int, payload: bytes, *, final: bool) -> bytes:
        first, size = (_FIN if final else 0) | opcode, len(payload)
        if size < 126:
            return bytes((first, size)) + payload
        if size < 1 << 16:
            return struct.pack(">BBH", first, 126, size) + payload
        return struct.pack(">BBQ", first, 127, size) + payload
