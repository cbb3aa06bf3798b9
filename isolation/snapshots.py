"""Snapshots on disk: what a checkpoint or a layer holds, and the manifest without which it counts for nothing.

    snapshots/ID/              0700
      checkpoint.img           the kernel's state          } of memory
      pages_meta.img           where the pages belong      }
      pages.img                memory and changed files    }
      layer.tar                changed files as an image layer, of files alone
      manifest.json            what wrote it, and the files' sizes and digests; written last
    snapshots/ID.partial/      being written, or what a crash left of that: never read

Whoever keeps a snapshot keeps its digest (the manifest's): it is opened only if the manifest is the one that was
written, the files are those that it names, and this machine can run it.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from isolation.errors import SnapshotUnusable

MEMORY: Final = ("checkpoint.img", "pages_meta.img", "pages.img")
LAYER: Final = ("layer.tar",)
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Maker:
    """What a checkpoint can only be restored by: the runsc release and platform, and a CPU with these features."""

    release: str
    platform: str
    cpu: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A snapshot that is whole: its digest and how many bytes it takes on disk."""

    digest: str
    size: int


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """The flags of the first processor in /proc/cpuinfo, sorted."""
    line = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return tuple(sorted(line.partition(":")[2].split()))


def misfit(manifest: dict[str, object], here: Maker) -> str | None:
    """Why what this manifest describes cannot be restored here; None if it can. No I/O."""
    if manifest.get("format") != _FORMAT:
        return f"its format is {manifest.get('format')}, this version reads {_FORMAT}"
    files = manifest.get("files")
    names = set(files) if isinstance(files, dict) else set()
    if names == set(LAYER):
        return None  # files are files everywhere
    if names != set(MEMORY):
        return "its manifest names other files than a snapshot has"
    made = manifest.get("maker")
    if not isinstance(made, dict):
        return "its manifest does not say what wrote it"
    if (made.get("release"), made.get("platform")) != (here.release, here.platform):
        return (
            f"runsc {made.get('release')} ({made.get('platform')}) wrote it, here is {here.release} ({here.platform})"
        )
    if missing := sorted(set(made.get("cpu") or ()) - set(here.cpu)):
        return f"this CPU lacks {', '.join(missing[:8])}"
    return None


class Copy:
    """The files of a snapshot, open; they have no names yet, or never get any. Close it when done."""

    def __init__(self, folder: Path, names: Sequence[str] = MEMORY) -> None:
        """Files without names in folder: nothing is left of them, whatever happens."""
        self.names = tuple(names)
        self.fds: list[int] = []
        try:
            for _ in names:
                self.fds.append(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            self.close()
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            raise SnapshotUnusable(
                f"the file system of {folder} cannot hold files without names (O_TMPFILE)",
                hint="put the state directory on ext4, xfs, btrfs or tmpfs",
            ) from error

    def emptied(self) -> list[int]:
        """The descriptors, empty, for an attempt to write."""
        for fd in self.fds:
            # Not without need: ext4 writes a file that was ever truncated out to the disk when it is closed.
            if os.fstat(fd).st_size:
                os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        return self.fds

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(os.fstat(fd).st_size for fd in self.fds)

    @contextlib.contextmanager
    def reading(self) -> Iterator[list[int]]:
        """Descriptors of their own, at the beginning: each restore reads at its own pace."""
        fds = [os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC) for fd in self.fds]
        try:
            yield fds
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """Let go of the files."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class _Opened(Copy):
    """The files of a stored snapshot."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.fds = []
        try:
            for name in names:
                self.fds.append(os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError:
            self.close()
            raise


class SnapshotFolder:
    """Snapshots below one folder; `seal` and `open` block, for as long as it takes to read all bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._verified: dict[str, tuple[tuple[int, ...], ...]] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def blank(self, names: Sequence[str] = MEMORY) -> Copy:
        """A copy to write into, on the disk where `seal` can name it."""
        return Copy(self._folder, names)

    def seal(self, id_: str, copy: Copy, maker: Maker) -> Sealed:
        """Name what was written. OSError where the disk is full; nothing is left then."""
        partial, final = self._folder / f"{id_}.partial", self._folder / id_
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        try:
            files = {}
            for name, fd in zip(copy.names, copy.fds, strict=True):
                _name(fd, partial / name)
                files[name] = {"size": os.fstat(fd).st_size, "sha256": _digest(fd)}
                os.fsync(fd)
            manifest = json.dumps({"format": _FORMAT, "maker": asdict(maker), "files": files}).encode()
            with open(partial / "manifest.json", "wb") as file:
                file.write(manifest)
                file.flush()
                os.fsync(file.fileno())
            shutil.rmtree(final, ignore_errors=True)
            os.rename(partial, final)
            _sync_folder(self._folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._verified[id_] = _stamps(final, copy.names)
        return Sealed(hashlib.sha256(manifest).hexdigest(), copy.size)

    def open(self, id_: str, digest: str, here: Maker) -> Copy:
        """Open one for a restore, whole and fitting; SnapshotUnusable says why not."""
        folder = self._folder / id_
        try:
            raw = (folder / "manifest.json").read_bytes()
            if hashlib.sha256(raw).hexdigest() != digest:
                raise SnapshotUnusable(
                    "its manifest is not the one that was written", hint="delete it and make another"
                )
            manifest = json.loads(raw)
            if (why := misfit(manifest, here)) is not None:
                raise SnapshotUnusable(f"the snapshot cannot be restored here: {why}", hint="make another one here")
            opened = _Opened(folder, LAYER if LAYER[0] in manifest["files"] else MEMORY)
        except FileNotFoundError as error:
            raise SnapshotUnusable(f"a file of the snapshot is missing: {error.filename}") from error
        try:
            self._verify(id_, folder, opened, manifest["files"])
        except BaseException:
            opened.close()
            raise
        return opened

    def _verify(self, id_: str, folder: Path, opened: Copy, files: dict[str, dict[str, object]]) -> None:
        # Read once: afterwards the kernel's own stamps (ctime can't be set) tell whether somebody wrote.
        if self._verified.get(id_) == (stamps := _stamps(folder, opened.names)):
            return
        for name, fd in zip(opened.names, opened.fds, strict=True):
            said = files[name]
            if os.fstat(fd).st_size != said["size"] or _digest(fd) != said["sha256"]:
                raise SnapshotUnusable(
                    f"{name} of the snapshot is not what was written", hint="delete the snapshot and make another"
                )
        self._verified[id_] = stamps

    def remove(self, id_: str) -> None:
        """Delete one, whole or not; no error if it is gone."""
        self._verified.pop(id_, None)
        for name in (id_, f"{id_}.partial"):
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def reclaim(self, keep: set[str]) -> list[str]:
        """Delete all but these; returns what went."""
        gone = [path.name for path in self._folder.iterdir() if path.name not in keep]
        for name in gone:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        return gone


def _name(fd: int, path: Path) -> None:
    """Give a file without a name one (linkat(2) by way of /proc, open(2) under O_TMPFILE)."""
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With src_dir_fd Python calls linkat, which can follow; without it link, which does not.
        os.link(str(fd), path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _digest(fd: int) -> str:
    state = hashlib.sha256()
    offset = 0
    while piece := os.pread(fd, 1 << 20, offset):
        state.update(piece)
        offset += len(piece)
    return state.hexdigest()


def _stamps(folder: Path, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    found = [os.lstat(folder / name) for name in names]
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
