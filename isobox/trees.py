"""Local folders as tar archives, and back."""

import errno
import gzip
import os
import tarfile
from pathlib import Path
from typing import IO


def pack(source: Path, target: IO[bytes]) -> None:
    """Write a folder's contents, or one file, as a gzipped tar: the same bytes for the same tree."""
    if not source.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    with (
        gzip.GzipFile("", "wb", 1, target, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        if not source.is_dir():
            archive.add(source, source.name, filter=_plain)
            return
        for path in sorted(source.rglob("*")):
            archive.add(path, str(path.relative_to(source)), recursive=False, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without what differs from machine to machine; no devices."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def unpack(source: IO[bytes], target: Path) -> None:
    """Unpack an archive that a stranger made: nothing is written outside of target (tarfile's "data" filter)."""
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=source, mode="r:gz") as archive:
        archive.extractall(target, filter="data")
