"""Images in files: what `docker save` writes, and OCI image layouts, in a folder or an archive.

Names that such a file gives are looked up in its own list of members, or are digests: they are never paths of the host.
Sources: OCI image-spec, image-layout.md; moby/image/spec v1.2 (manifest.json).
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from common.text import clean_json
from fs.errors import ImageInvalid

_DOCUMENT_MAX: Final = 8 << 20
_MEMBERS_MAX: Final = 10_000
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_PIECE: Final = 1 << 20


class Members(Protocol):
    """The files of an image's file."""

    def open(self, name: str) -> BinaryIO | None:
        """One of them; None if there is no such."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: its name for people, where it lies, and the digest that it has to have there, if any is given."""

    title: str
    members: Members
    name: str
    digest: str | None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Its bytes as they lie there, checked first."""
        if self.digest is not None:
            with self._opened() as file:
                found = hashlib.sha256()
                while piece := file.read(_PIECE):
                    found.update(piece)
            if f"sha256:{found.hexdigest()}" != self.digest:
                raise ImageInvalid(f"layer {self.title} is not what its digest says", hint="the archive is damaged")
        with self._opened() as file:
            yield file

    def _opened(self) -> BinaryIO:
        if (file := self.members.open(self.name)) is None:
            raise ImageInvalid(f"layer {self.title} is missing", hint="the archive is cut short")
        return file


@dataclass(frozen=True, slots=True)
class Saved:
    """An image in a file: its config as OCI has it, and its layers, the lowest first."""

    config: dict[str, Any]
    layers: tuple[Layer, ...]


@contextmanager
def saved_image(path: Path) -> Iterator[Saved | None]:
    """The image in a folder or archive; None if it is no image, but perhaps a root file system."""
    with ExitStack() as stack:
        members: Members
        if path.is_dir():
            members = _Folder(path)
        else:
            file = stack.enter_context(path.open("rb"))
            if file.read(512)[257:262] != b"ustar":  # compressed: only a root file system is
                yield None
                return
            members = _Archive(stack.enter_context(_open(path)))
        if (raw := _document(members, "manifest.json")) is not None and not _document(members, "oci-layout"):
            yield _docker(members, raw)
        elif _document(members, "oci-layout") is not None:
            yield _layout(members)
        else:
            yield None


@contextmanager
def _open(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as archive:
            yield archive
    except tarfile.TarError as error:
        raise ImageInvalid(f"the archive is damaged: {error}", hint="it is cut short, or no tar archive") from error


class _Archive:
    """The members of an image's archive. One of very many is a root file system, and not looked through."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._found: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(archive):
            if number > _MEMBERS_MAX:
                self._found = {}
                return
            self._found[member.name.removeprefix("./")] = member

    def open(self, name: str) -> BinaryIO | None:
        member = self._found.get(name)
        for _ in range(2):  # `docker save` of old links one layer to another's
            if member is None or not (member.issym() or member.islnk()):
                break
            target = os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname))
            member = self._found.get(member.linkname) or self._found.get(target)
        if member is None or not member.isreg():
            return None
        return self._archive.extractfile(member)  # type: ignore[return-value]  # it reads


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> BinaryIO | None:
        if not (name in ("oci-layout", "index.json") or re.fullmatch(r"blobs/sha256/[0-9a-f]{64}", name)):
            return None
        try:
            return os.fdopen(os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
        except OSError:
            return None


def _document(members: Members, name: str, digest: str | None = None) -> Any:
    file = members.open(name)
    if file is None:
        return None
    with file:
        raw = file.read(_DOCUMENT_MAX + 1)
    if len(raw) > _DOCUMENT_MAX:
        raise ImageInvalid(f"{name} is longer than {_DOCUMENT_MAX >> 20} MiB")
    if digest is not None and f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
        raise ImageInvalid(f"{name} is not what its digest says", hint="the archive is damaged")
    try:
        return clean_json(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise ImageInvalid(f"{name} is no JSON", hint="the archive is damaged") from error


def _docker(members: Members, raw: Any) -> Saved:
    try:
        if len(raw) != 1:
            raise ImageInvalid(f"the archive holds {len(raw)} images", hint="save one at a time")
        config = _document(members, str(raw[0]["Config"]))
        names = [str(name) for name in raw[0]["Layers"]]
        return Saved(dict(config), tuple(Layer(name[:80], members, name, None) for name in names))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ImageInvalid("manifest.json does not say where the layers are") from error


def _layout(members: Members) -> Saved:
    try:
        found = _document(members, "index.json")["manifests"]
        for _ in range(3):
            ours = [each for each in found if _is_ours(each)]
            if len(ours) != 1:
                raise ImageInvalid(f"the layout holds {len(ours)} images for linux/amd64", hint="export one at a time")
            manifest = _document(members, *_blob(ours[0]))
            if "manifests" not in manifest:
                break
            found = manifest["manifests"]
        config = _document(members, *_blob(manifest["config"]))
        blobs = [_blob(each) for each in manifest["layers"]]
        return Saved(dict(config), tuple(Layer(digest[:19], members, name, digest) for name, digest in blobs))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageInvalid("the layout does not say where the layers are", hint="it is damaged") from error


def _is_ours(descriptor: Any) -> bool:
    platform = descriptor.get("platform")
    return platform is None or (platform.get("os"), platform.get("architecture")) == ("linux", "amd64")


def _blob(descriptor: Any) -> tuple[str, str]:
    digest = str(descriptor["digest"])
    if (match := _DIGEST.fullmatch(digest)) is None:
        raise ImageInvalid(f"a blob is named {digest[:80]!r}", hint="only sha256 digests are read")
    return f"blobs/sha256/{match[1]}", digest
