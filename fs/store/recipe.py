"""A recipe: all that is needed to serve an image from the store. Its metadata, its pieces, and where each lies. Pure.

    magic, then one zstd frame of
    length, JSON {"size", "packs"} · length, metadata · for each piece: image offset, size, digest, pack, offset, length

An image's digest is taken of its metadata and its pieces, not of where they lie: compaction moves them.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import zstandard

from fs.erofs import Layout, Placed
from fs.errors import StoreCorrupt
from fs.store import chunks
from fs.tree import Piece

_MAGIC: Final = b"isobox recipe 1\n"
_ROW: Final = struct.Struct("<QI32sIQI")
_LENGTH: Final = struct.Struct("<Q")
_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Location:
    """Where a stored piece lies: a pack, the byte where it begins there, and its stored length."""

    pack: str
    offset: int
    length: int


@dataclass(frozen=True)
class Recipe:
    """An image and the location of each of its pieces, in the order of `layout.placed`."""

    layout: Layout
    locations: tuple[Location, ...]

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the image."""
        found = hashlib.sha256(self.layout.metadata)
        for placed in self.layout.placed:
            found.update(struct.pack("<QI", placed.offset, placed.piece.size))
            found.update(placed.piece.digest)
        return f"sha256:{found.hexdigest()}"

    def pieces(self) -> Iterator[tuple[Placed, Location]]:
        """Each piece and its location, in the image's order."""
        return zip(self.layout.placed, self.locations, strict=True)

    def encode(self) -> bytes:
        """As it is stored."""
        packs = sorted({location.pack for location in self.locations})
        numbers = {pack: number for number, pack in enumerate(packs)}
        head = json.dumps({"size": self.layout.size, "packs": packs}).encode()
        out = bytearray()
        for part in (head, self.layout.metadata):
            out += _LENGTH.pack(len(part)) + part
        for placed, at in zip(self.layout.placed, self.locations, strict=True):
            piece = placed.piece
            out += _ROW.pack(placed.offset, piece.size, piece.digest, numbers[at.pack], at.offset, at.length)
        return _MAGIC + zstandard.ZstdCompressor(level=3).compress(bytes(out))


def decode(stored: bytes, digest: str) -> Recipe:
    """The recipe of the image of that digest; StoreCorrupt for anything else."""
    try:
        found = _decode(stored)
    except (ValueError, KeyError, TypeError, IndexError, struct.error, zstandard.ZstdError) as error:
        raise StoreCorrupt(f"the recipe of image {digest[:19]} cannot be read") from error
    if found.digest != digest:
        raise StoreCorrupt(f"the recipe of image {digest[:19]} is another image's")
    return found


def _decode(stored: bytes) -> Recipe:
    if not stored.startswith(_MAGIC):
        raise ValueError("magic")
    frame = stored[len(_MAGIC) :]
    if not 0 < zstandard.frame_content_size(frame) <= _MAX:
        raise ValueError("size")
    raw = zstandard.ZstdDecompressor().decompress(frame)
    parts, at = [], 0
    for _ in range(2):
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        parts.append(raw[at : at + length])
        at += length
    head = json.loads(parts[0])
    packs, size = [str(pack) for pack in head["packs"]], int(head["size"])
    placed, locations, end = [], [], len(parts[1])
    for offset, length, digest, number, begin, stored_length in _ROW.iter_unpack(raw[at:]):
        if offset < end or offset + length > size:
            raise ValueError("pieces out of order")
        if length > chunks.MAX or stored_length > 2 * chunks.MAX:
            raise ValueError("a piece larger than any that is made")
        end = offset + length
        placed.append(Placed(offset, Piece(digest, length)))
        locations.append(Location(packs[number], begin, stored_length))
    return Recipe(Layout(parts[1], tuple(placed), size), tuple(locations))
