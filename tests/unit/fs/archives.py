"""Tar archives as a stranger might make them."""

import io
import tarfile
from collections.abc import Iterable

Member = tuple[str, bytes | str | None]


def info(
    name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644, uid: int = 0, mtime: int = 1
) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mode, found.uid, found.mtime = kind, link, mode, uid, mtime
    return found


def archive(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> io.BytesIO:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, contents in members:
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    target.seek(0)
    return target


def files(**contents: str) -> io.BytesIO:
    return archive([(info(name.replace("__", "/")), text.encode()) for name, text in contents.items()])
