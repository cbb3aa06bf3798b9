"""Files over the wire."""

import base64
import os
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from isolation.files import Change, Entry
from sandbox_api.models.common import Strict, Text, UserName


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
    """What a folder holds, sorted by path; of a page, where the next one begins."""

    entries: list[FileInfo]
    next_cursor: str | None = None


FilePath = Annotated[Text, Field(min_length=1, max_length=4095)]
EDIT_MAX = 16 << 20


class _Located(Strict):
    """A path inside; path_b64 for one that is not UTF-8 (see name_b64 of listings)."""

    path: FilePath | None = None
    path_b64: Annotated[str, Field(max_length=6000)] | None = None
    user: UserName | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.path_b64 is None):
            raise ValueError("give path or path_b64")
        return self

    @property
    def located(self) -> str:
        """The path, bytes that are no UTF-8 as surrogates."""
        return self.path if self.path is not None else os.fsdecode(base64.b64decode(self.path_b64 or ""))

    @field_validator("path_b64")
    @classmethod
    def _base64(cls, text: str | None) -> str | None:
        if text is not None:
            base64.b64decode(text, validate=True)
        return text


class MakeDirectory(_Located):
    """A folder to make."""

    parents: bool = True


class Move(_Located):
    """A new name, or the copy's; with overwrite, what has that name goes."""

    to: FilePath
    overwrite: bool = False


class ChangeMode(_Located):
    """Permissions, in octal."""

    mode: Annotated[str, Field(pattern=r"^[0-7]{3,4}$")]
    recursive: bool = False


class Replacement(Strict):
    """Text to be replaced, wherever it stands; it has to stand there exactly `count` times."""

    old: Annotated[str, Field(min_length=1, max_length=1 << 20)]
    new: Annotated[str, Field(max_length=1 << 20)]
    count: Annotated[int, Field(ge=1, le=1 << 20)] = 1


class Edit(_Located):
    """Replacements, each made in what the ones before it left."""

    edits: Annotated[list[Replacement], Field(min_length=1, max_length=1000)]


class Edited(BaseModel):
    """The file afterwards, and how many places were replaced."""

    file: FileInfo
    replaced: int


class FileChange(BaseModel):
    """What happened to a file; `overflow` says that some changes were lost, `gone` that the watched folder is."""

    type: Literal["ready", "created", "modified", "deleted", "attributes", "moved", "overflow", "gone"]
    path: str
    target: str | None = None
    path_b64: str | None = None

    @classmethod
    def of(cls, change: Change) -> "FileChange":
        """As the guest's program tells it."""
        return cls(
            type=change.type,  # type: ignore[arg-type]  # one of these, it was checked
            path=_text(change.path),
            target=_text(change.target) if change.target else None,
            path_b64=None if _is_text(change.path) else base64.b64encode(os.fsencode(change.path)).decode(),
        )


def _is_text(name: str) -> bool:
    return name.isprintable() or not any("\udc80" <= character <= "\udcff" for character in name)


def _text(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")
