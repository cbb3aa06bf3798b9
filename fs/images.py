"""The machine's images: a name, what it means, and an EROFS file to start from.

    images/NAME.json           the manifest
    images/DIGEST.erofs        a root file system with its PID 1 inside, written out of the store
    images/DIGEST.names        what it holds, once that was asked for
    images/of/TAG/NAME.json    manifests of one server's own; images/of/TAG/state names its state directory
    images/building/           locks: one builder of a name at a time
    images/store/              contents and recipes (see `fs.store.store`)

An image records how it was prepared, with which programs of ours and which authorities. When that is out of date, it
is made anew on first use out of what the store holds. A base image records its recipe too, and is built anew by
another one.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from common.ids import new_id
from fs import authorities as ca
from fs import bases, erofs, rootfs
from fs.elsewhere import Elsewhere
from fs.errors import ImageError, ImageInvalid, StoreFull, UnknownImage
from fs.guarded import Access
from fs.image import Image, is_inner
from fs.lazy.mount import LazyMount
from fs.oci.archive import saved_image
from fs.oci.layers import apply
from fs.oci.login import Login
from fs.oci.reference import parse
from fs.oci.transfer import load, pull, push
from fs.programs import output_of
from fs.progress import Progress
from fs.store.backend import Directory, disk_errors
from fs.store.recipe import Recipe
from fs.store.store import Collected, Store, Writer
from fs.tree import Limits, Node, Tree

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class ImageStore:
    """Images below one folder, shared by every server of the machine; all calls block."""

    def __init__(
        self,
        folder: Path,
        *,
        guest: Callable[[], tuple[Path, ...]],
        limit_bytes: int = 1 << 62,
        limits: Limits | None = None,
        owner: Path | None = None,
        lazy: LazyMount | None = None,
        stores: tuple[str, ...] = (),
        authorities: tuple[bytes, ...] = (),
    ) -> None:
        """`guest` gives the programs that an image holds, NAME-DIGEST each.

        limit_bytes bounds the store, limits each image. owner is a server's state directory: images that no person
        named (see `is_inner`) are its own, and go when it is gone. stores are URLs of stores elsewhere, whose images
        can be used here; lazy serves them. authorities are certificates (DER) that programs of every image accept.
        """
        self._own: Path | None = None
        if owner is not None:
            self._own = folder / "of" / hashlib.sha256(os.fsencode(owner)).hexdigest()[:16]
            self._own.mkdir(parents=True, exist_ok=True)
            (self._own / "state").write_text(str(owner))
        self.limits = limits or Limits()
        self._fetching = 0
        self._fetching_lock = threading.Lock()
        self.life = Progress()
        """Stopped when the server ends, and with it whatever reads or writes contents."""
        self.folder = folder
        self._guest = guest
        self.elsewhere = Elsewhere(self)
        self._lazy = lazy
        self._stores = stores
        self._authorities = authorities
        self._authorities_stamp = ca.stamp(authorities)
        (folder / "store").mkdir(parents=True, exist_ok=True)
        self.store = Store(folder / "store", Directory(folder / "store"), limit_bytes=limit_bytes, life=self.life)

    # ---- looking

    def path(self, image: Image) -> Path:
        """Its EROFS file."""
        return self.file(image.digest)

    def file(self, digest: str) -> Path:
        """Where the EROFS file of that digest lies, if it is still there."""
        path = self._written(digest)
        return self._lazy.path(digest) if self._served(digest) and self._lazy is not None else path

    def has_file(self, digest: str) -> bool:
        """Whether there is such a file. The mount of lazy images is not asked: its process may just be replaced."""
        return self._written(digest).exists() or self._served(digest)

    def _served(self, digest: str) -> bool:
        """Whether it is to be had part by part alone."""
        if self._lazy is None or not self._lazy.started or self._written(digest).exists():
            return False
        return self.store.has(digest)

    def _written(self, digest: str) -> Path:
        return self.folder / f"{digest.removeprefix('sha256:')}.erofs"

    def names(self, digest: str) -> tuple[Path, int]:
        """A file that lists what an image holds, and a moment (epoch seconds) that all its files are older than.

        For each folder "./FOLDER/" and then its names, all NUL-terminated.
        """
        path = self._written(digest).with_suffix(".names")
        if not path.exists():
            tree = self.tree(digest)
            partial = path.with_name(f"{new_id('img')}.partial")
            listing = bytearray()
            newest = tree.root.mtime
            for name, node in [(b"", tree.root), *tree.walk()]:
                newest = max(newest, node.mtime)
                if node.kind == "dir":
                    listing += b"\0".join([b"./" + name + b"/" if name else b"./", *node.children]) + b"\0"
            partial.write_bytes(listing)
            os.utime(partial, (newest + 1, newest + 1))
            os.replace(partial, path)
        return path, int(path.stat().st_mtime)

    @property
    def stamp(self) -> str:
        """How images are prepared now."""
        stamp = [*(path.name for path in self._guest()), str(rootfs.REVISION)]
        return ".".join([*stamp, f"ca-{self._authorities_stamp}"] if self._authorities else stamp)

    def _is_current(self, image: Image) -> bool:
        """Say whether an image is as it would be made now."""
        stamp, _, recipe = image.init.partition("+")
        return stamp == self.stamp and (not recipe or recipe == _recipe(image.name))

    def tree(self, digest: str) -> Tree:
        """All that an image holds."""
        return erofs.read(self.recipe(digest).layout)

    def recipe(self, digest: str) -> Recipe:
        """What an image is made of; UnknownImage if the store does not know it."""
        if (recipe := self.store.recipe(digest)) is None:
            raise UnknownImage(f"the store has no image {digest[:19]}", hint="build, import or pull it again")
        return recipe

    def all(self) -> list[Image]:
        """The machine's, by name."""
        return sorted(_manifests(self.folder.glob("*.json")), key=lambda i: i.name)

    def named(self, name: str) -> Image | None:
        """What that name means, ready or not."""
        return next(_manifests([self._manifest(name)]), None) if _NAME.fullmatch(name) else None

    def _manifest(self, name: str) -> Path:
        folder = self._own if self._own is not None and is_inner(name) else self.folder
        return folder / f"{name}.json"

    def everybodys(self) -> Iterator[Image]:
        """The machine's and every server's."""
        return _manifests([*self.folder.glob("*.json"), *self.folder.glob("of/*/*.json")])

    def known(self, name: str) -> bool:
        """Whether `ensure` would find or build it."""
        return name in bases.BASES or self.named(name) is not None

    def ready(self, name: str) -> Image | None:
        """The image of that name if it can be used as it is."""
        image = self.named(name)
        return image if image is not None and self._is_current(image) and self.has_file(image.digest) else None

    # ---- making

    def ensure(self, name: str) -> Image:
        """The image of that name, built or renewed where needed; UnknownImage if there is no such."""
        if self._lazy is not None and self.named(name) is None and _NAME.fullmatch(name) and not is_inner(name):
            for url in self._stores:
                with contextlib.suppress(UnknownImage):
                    return self.elsewhere.adopt(name, url)
        if not self.known(name):
            there = sorted({*bases.BASES, *(image.name for image in self.all())})
            raise UnknownImage(f"there is no image {name!r}", hint=f"known are: {', '.join(there)}")
        if (image := self.ready(name)) is not None:
            return image
        with self.building(name):
            if (image := self.ready(name)) is not None:  # somebody was quicker
                return image
            image = self.named(name)
            stored = self.store.recipe(image.digest) if image is not None else None
            if image is not None and stored is not None and self._is_current(image):
                self.write_out(image)
                return image
            if image is not None and stored is not None and image.origin is not None:
                return self.elsewhere.renew(name, stored, image)
            with self.store.writer() as writer:
                tree = erofs.read(stored.layout) if stored is not None else None
                if tree is None or (image is not None and _is_outdated(image, tree)):
                    image = self._build(name, writer)
                else:
                    _, _, recipe = image.init.partition("+") if image is not None else ("", "", "")
                    image = self._seal(name, tree, writer, image.config if image is not None else {}, recipe)
            self.write_out(image)
            return image

    def _build(self, name: str, writer: Writer) -> Image:
        """Build a base image from its recipe."""
        if (base := bases.BASES.get(name)) is None:
            raise UnknownImage(f"the contents of image {name!r} are missing", hint="import it again")
        tree = Tree()
        bases.build(base, tree, writer)
        return self._seal(name, tree, writer, {"env": dict(base.env)}, bases.recipe(name))

    def import_path(self, name: str, source: Path, progress: Progress | None = None) -> Image:
        """Make an image of a root file system or an image in a file; ImageInvalid if it can't become one.

        A folder or a tar archive, compressed or not; what `docker save` writes; an OCI image layout.
        """
        progress = progress or Progress()
        if not source.exists():
            raise ImageInvalid(f"there is no {source}", hint="name a folder or a tar archive with a root file system")

        def fill(tree: Tree, writer: Writer) -> dict[str, Any]:
            with saved_image(source) as saved:
                if saved is not None:
                    return load(saved, tree, writer, limits=self.limits, progress=progress)
            if source.is_dir():
                argv = ["tar", "--create", "--numeric-owner", "--directory", str(source), "."]
                with output_of(argv, deed="read the folder", package="tar") as archive:
                    self._lay(archive, tree, writer, progress)
            else:
                with source.open("rb") as file:
                    self._lay(file, tree, writer, progress)
            return {}

        image = self.make(name, fill, progress)
        self.write_out(image)
        return image

    def _lay(self, archive: BinaryIO, tree: Tree, writer: Writer, progress: Progress) -> None:
        limits, check = self.limits, progress.check
        apply(archive, tree, writer, limits=limits, keep_setuid=True, layered=False, check=check)

    def pull(self, name: str, reference: str, access: Access, *, login: Login | None, progress: Progress) -> Image:
        """Make an image of one in a registry; ImageInvalid, UnknownImage or StoreUnreachable if that can't be."""
        parsed = parse(reference)

        def fill(tree: Tree, writer: Writer) -> dict[str, Any]:
            limits, reserve = self.limits, self._reserved
            return pull(
                *(parsed, access, tree, writer, reserve),
                limits=limits,
                login=login,
                progress=progress,
            )

        with disk_errors("the layers cannot be kept"):
            return self.make(name, fill, progress)

    @contextmanager
    def _reserved(self, size: int) -> Iterator[None]:
        """Room on the disk for what is fetched, of all pulls no more than the store may take: StoreFull."""
        with self._fetching_lock:
            if self._fetching + size > self.store.limit_bytes:
                raise StoreFull(
                    f"{self._fetching >> 20} MiB are being fetched, and this would be {size >> 20} more",
                    hint="wait for others, or have the operator raise ISOBOX_STORE_QUOTA_MB",
                )
            self._fetching += size
        try:
            yield
        finally:
            with self._fetching_lock:
                self._fetching -= size

    def push(self, image: Image, reference: str, access: Access, *, login: Login | None, progress: Progress) -> str:
        """Send an image to a registry, as one layer: the digest of its manifest there."""
        parsed = parse(reference)

        def contents(node: Node) -> Iterator[bytes]:
            return self.store.contents(node.pieces)

        tree = self.tree(image.digest)
        with disk_errors("the layer cannot be packed"):
            return push(parsed, access, tree, contents, image.config, login=login, progress=progress)

    def make(
        self, name: str, fill: Callable[[Tree, Writer], dict[str, Any]], progress: Progress | None = None
    ) -> Image:
        """Make an image of what `fill` puts into a tree; it returns the image's config. `ensure` writes it out."""
        self.check_name(name)
        tree = Tree(limits=self.limits)
        with self.building(name), self.store.writer(progress) as writer:
            config = fill(tree, writer)
            if not tree.root.children:
                raise ImageInvalid(f"image {name!r} would be empty", hint="see what it is made of")
            self._check_size(tree)
            return self._seal(name, tree, writer, config)

    def _check_size(self, tree: Tree) -> None:
        """What layers came to, one build's over another's, is no more than an image may hold."""
        size = sum(node.size for node in {id(node): node for _, node in tree.walk()}.values())
        if size > self.limits.total_bytes:
            raise ImageInvalid(
                f"the image holds {size >> 20} MiB, {self.limits.total_bytes >> 20} is the most",
                hint="leave files out, or have the operator raise ISOBOX_IMAGE_LIMIT_MB",
            )

    def stop(self) -> None:
        """The server ends: whatever reads or writes contents in other threads ends too."""
        self.life.stop()

    def keep(self, name: str, fill: Callable[[Tree, Writer], None]) -> Image:
        """Keep a tree as it is, that nothing starts from: a volume's version."""
        tree = Tree(limits=self.limits)
        with self.building(name), self.store.writer(self.life) as writer:
            fill(tree, writer)
            recipe = writer.commit(erofs.lay_out(tree))
            size = sum(placed.piece.size for placed in recipe.layout.placed)
            image = Image(new_id("img"), name, recipe.digest, "", size, time.time())
            self.say(image)
        return image

    def write_out(self, image: Image) -> None:
        """Have a file to start from: written out, or served part by part."""
        if image.origin is not None:
            if self._lazy is None:
                raise ImageError(f"image {image.name} is served by a server alone", hint="use it in a sandbox")
            self._lazy.start()
        elif not self._written(image.digest).exists():
            self._check_room(image.size)
            self.store.write_out(self.recipe(image.digest), self._written(image.digest))

    def _check_room(self, size: int) -> None:
        """Files to start from take no more disk than the store may: StoreFull."""
        taken = 0
        for path in self.folder.glob("*.erofs"):
            with contextlib.suppress(FileNotFoundError):
                taken += path.stat().st_blocks * 512
        if taken + size > self.store.limit_bytes:
            raise StoreFull(
                f"images that were written out take {taken >> 20} MiB, and this one would take {size >> 20}",
                hint="prune images, or have the operator raise ISOBOX_STORE_QUOTA_MB",
            )

    @staticmethod
    def check_name(name: str) -> None:
        """ImageInvalid if no image can have it."""
        if not _NAME.fullmatch(name):
            raise ImageInvalid(f"{name!r} is no name for an image", hint="use a-z, 0-9, '.', '_' and '-', at most 63")

    def remove(self, name: str) -> None:
        """Forget an image and delete its file; sandboxes that run from it go on."""
        image = self.named(name)
        if image is None:
            raise UnknownImage(f"there is no image {name!r}")
        self._manifest(name).unlink()
        self._release(image.digest)

    def prune(self) -> Collected:
        """Delete files and contents that no image has, and images of servers whose state directory is gone."""

        def needed() -> set[str]:
            for state in self.folder.glob("of/*/state"):
                if not Path(state.read_text()).exists():
                    shutil.rmtree(state.parent)
            digests = {image.digest for image in self.everybodys()}
            kept = {self._written(digest).stem for digest in digests}
            for pattern in ("*.erofs", "*.names", "*.partial"):
                for path in self.folder.glob(pattern):
                    if path.stem not in kept:
                        path.unlink(missing_ok=True)
            return digests

        return self.store.collect(needed)

    def _release(self, digest: str) -> None:
        """A name means this image no longer; without any name it goes."""
        if any(other.digest == digest for other in self.everybodys()):
            return
        self._written(digest).unlink(missing_ok=True)
        self._written(digest).with_suffix(".names").unlink(missing_ok=True)
        self.store.drop(digest)

    @contextmanager
    def building(self, name: str) -> Iterator[None]:
        """One builder of a name at a time."""
        building = self.folder / "building"
        building.mkdir(parents=True, exist_ok=True)
        with open(building / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _seal(self, name: str, tree: Tree, writer: Writer, config: dict[str, Any], recipe: str = "") -> Image:
        older = self.named(name)

        def read(node: Node) -> bytes:
            writer.flush()
            return b"".join(writer.fetch(piece) for piece in node.pieces)

        self.prepare(tree, writer, read)
        committed = writer.commit(erofs.lay_out(tree))
        image = Image(
            older.id if older else new_id("img"),
            name,
            committed.digest,
            f"{self.stamp}+{recipe}" if recipe else self.stamp,
            committed.layout.size,
            time.time(),
            config,
        )
        self.say(image)
        if older is not None and older.digest != image.digest:
            self._release(older.digest)
        return image

    def prepare(self, tree: Tree, writer: Writer, read: Callable[[Node], bytes]) -> None:
        """Give a tree what every image has."""
        programs = {path.name.partition("-")[0]: path.read_bytes() for path in self._guest()}
        rootfs.prepare(tree, programs, writer, read, self._authorities)

    def say(self, image: Image) -> None:
        """From now on its name means this."""
        partial = self.folder / "building" / f"{image.name}.json"
        partial.write_text(json.dumps(asdict(image)))
        os.replace(partial, self._manifest(image.name))


def _recipe(name: str) -> str:
    return bases.recipe(name) if name in bases.BASES else ""


def _is_outdated(image: Image, tree: Tree) -> bool:
    """Say whether an image is a base that another recipe built; one of the same name may be somebody's import."""
    _, _, recipe = image.init.partition("+")
    return image.name in bases.BASES and recipe != _recipe(image.name) and (bool(recipe) or bases.is_built_here(tree))


def _manifests(paths: Iterable[Path]) -> Iterator[Image]:
    for path in paths:
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            yield Image(**json.loads(path.read_text()))
