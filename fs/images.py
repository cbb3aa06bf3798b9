"""The machine's images: an EROFS file each, and a manifest that names it.

    images/NAME.json           the manifest
    images/DIGEST.erofs        a root file system with its PID 1 inside
    images/DIGEST.names        what it holds, once that was asked for
    images/building/           what is being made; removed when it is done or found after a crash

An image records how it was prepared, and with which init. When that is out of date, a new EROFS file is made on first
use.
"""

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from common.ids import new_id
from fs import bases, erofs, rootfs
from fs.errors import ImageInvalid, UnknownImage
from fs.programs import run

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is ready for use; size in bytes, created_at in seconds since the epoch."""

    id: str
    name: str
    digest: str
    init: str
    size: int
    created_at: float


class ImageStore:
    """Images below one folder, shared by every server of the machine; all calls block."""

    def __init__(self, folder: Path, *, init: Callable[[], Path]) -> None:
        """`init` gives the path of PID 1's binary, whose name ends in its digest."""
        self._folder = folder
        self._init = init

    def path(self, image: Image) -> Path:
        """Its EROFS file."""
        return self.file(image.digest)

    def file(self, digest: str) -> Path:
        """Where the EROFS file of that digest lies, if it is still there."""
        return self._folder / f"{digest.removeprefix('sha256:')}.erofs"

    def names(self, digest: str) -> tuple[Path, int]:
        """A file that lists what an image holds (see `erofs.names`), and when the image was made (epoch seconds)."""
        image = self.file(digest)
        made = int(image.stat().st_mtime)
        path = image.with_suffix(".names")
        if not path.exists():
            partial = path.with_name(f"{new_id('img')}.partial")
            partial.write_bytes(erofs.names(image))
            os.replace(partial, path)
        return path, made

    def all(self) -> list[Image]:
        """What is there, by name."""
        return sorted(
            (image for path in self._folder.glob("*.json") if (image := self._manifest(path.stem))),
            key=lambda i: i.name,
        )

    def known(self, name: str) -> bool:
        """Whether `ensure` would find or build it."""
        return name in bases.BASES or (_NAME.fullmatch(name) is not None and self._manifest(name) is not None)

    def ready(self, name: str) -> Image | None:
        """The image of that name if it can be used as it is."""
        image = self._manifest(name) if _NAME.fullmatch(name) else None
        return image if image is not None and image.init == _stamp(self._init()) and self.path(image).exists() else None

    def ensure(self, name: str) -> Image:
        """The image of that name, built or renewed where needed; UnknownImage if there is no such."""
        if not self.known(name):
            there = sorted({*bases.BASES, *(image.name for image in self.all())})
            raise UnknownImage(f"there is no image {name!r}", hint=f"known are: {', '.join(there)}")
        if (image := self.ready(name)) is not None:
            return image
        init = self._init()
        with self._building(name) as root:
            if (image := self.ready(name)) is not None:  # somebody was quicker
                return image
            image = self._manifest(name)
            if image is not None and self.path(image).exists():
                erofs.copy_out(self.path(image), root)
            elif name in bases.BASES:
                bases.build(bases.BASES[name], root)
            else:
                raise UnknownImage(f"the file of image {name!r} is missing", hint="import it again")
            return self._seal(name, root, init, image)

    def import_path(self, name: str, source: Path) -> Image:
        """Make an image of a folder or a tar archive (compressed ones too); ImageInvalid if it can't become one."""
        if not _NAME.fullmatch(name):
            raise ImageInvalid(f"{name!r} is no name for an image", hint="use a-z, 0-9, '.', '_' and '-', at most 63")
        if not source.exists():
            raise ImageInvalid(f"there is no {source}", hint="name a folder or a tar archive with a root file system")
        with self._building(name) as root:
            if source.is_dir():
                run(["cp", "-a", "--reflink=auto", str(source), str(root)], deed="copy the folder", package="coreutils")
            else:
                root.mkdir()
                argv = ["tar", "--extract", "--numeric-owner", "--same-permissions", "--directory", str(root)]
                run([*argv, "--file", str(source)], deed="unpack the archive", package="tar")
            if not any((root / name).is_dir() for name in ("bin", "usr", "sbin")) and not any(root.iterdir()):
                raise ImageInvalid(f"{source} is empty")
            return self._seal(name, root, self._init(), None)

    def remove(self, name: str) -> None:
        """Forget an image and delete its file; sandboxes that run from it go on."""
        image = self._manifest(name) if _NAME.fullmatch(name) else None
        if image is None:
            raise UnknownImage(f"there is no image {name!r}")
        (self._folder / f"{name}.json").unlink()
        if all(other.digest != image.digest for other in self.all()):
            self._delete(image)

    def _delete(self, image: Image) -> None:
        self.path(image).unlink(missing_ok=True)
        self.path(image).with_suffix(".names").unlink(missing_ok=True)

    def _manifest(self, name: str) -> Image | None:
        try:
            return Image(**json.loads((self._folder / f"{name}.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    @contextmanager
    def _building(self, name: str) -> Iterator[Path]:
        """A fresh place for a tree; one builder of a name at a time."""
        building = self._folder / "building"
        building.mkdir(parents=True, exist_ok=True)
        with open(building / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in building.glob(f"{name}.*.tree"):
                rootfs.remove_tree(left)
            with tempfile.TemporaryDirectory(prefix=f"{name}.", suffix=".tree", dir=building) as folder:
                yield Path(folder) / "root"

    def _seal(self, name: str, root: Path, init: Path, older: Image | None) -> Image:
        rootfs.prepare(root, init)
        built = root.with_name("image.erofs")
        erofs.make(root, built)
        with built.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        image = Image(
            older.id if older else new_id("img"),
            name,
            f"sha256:{digest}",
            _stamp(init),
            built.stat().st_size,
            time.time(),
        )
        os.replace(built, self.path(image))
        manifest = root.with_name("manifest.json")
        manifest.write_text(json.dumps(asdict(image)))
        os.replace(manifest, self._folder / f"{name}.json")
        if older is not None and older.digest != image.digest:
            self._delete(older)
        return image


def _stamp(init: Path) -> str:
    return f"{init.name}.{rootfs.REVISION}"
