"""Files over the wire."""

import base64
import os
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel

from isolation.files import Entry


class FileInfo(BaseModel):
    """A file as lstat tells it; size in bytes, mode in octal. A name that is not UTF-8 is whole in name_b64."""

    name: str
    path: str
    type: Literal["file", "dir", "symlink", "other"]
    size: int
    mode: str
    uid: int
    gid: int
    modified_at: datetime
    target: str | None = None
    name_b64: str | None = None

    @classmethod
    def of(cls, entry: Entry, path: str) -> "FileInfo":
        """An entry that lies at path."""
        name = path.rstrip("/").rpartition("/")[2] or "/"
        return cls(
            name=_text(name),
            path=_text(path),
            type=entry.type,
            size=entry.size,
            mode=f"{entry.mode:04o}",
            uid=entry.uid,
            gid=entry.gid,
            modified_at=datetime.fromtimestamp(max(-(1 << 35), min(entry.mtime_ns / 1e9, 1 << 37)), UTC),
            target=_text(entry.target) if entry.type == "symlink" else None,
            name_b64=None if _is_text(path) else base64.b64encode(os.fsencode(path)).decode(),
        )


class FileList(BaseModel):
    """What a folder holds, sorted by path."""

    entries: list[FileInfo]


def _is_text(name: str) -> bool:
    return name.isprintable() or not any("\udc80" <= character <= "\udcff" for character in name)


def _text(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")
