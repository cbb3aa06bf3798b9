"""Images whose contents lie in other stores, and this machine's in theirs."""

import hashlib
import json
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from common.ids import new_id
from common.text import clean_json
from fs import erofs
from fs.errors import StoreCorrupt, UnknownImage
from fs.image import Image, is_inner
from fs.progress import Progress
from fs.store.backend import Backend, Directory
from fs.store.chunks import unpack
from fs.store.recipe import Location, Recipe, decode
from fs.store.remote import open_store
from fs.store.store import Store, read_run, runs
from fs.tree import Node, Piece

if TYPE_CHECKING:
    from fs.images import ImageStore


class Elsewhere:
    """What an image store does with others; every call blocks. Made by `ImageStore`."""

    def __init__(self, images: "ImageStore") -> None:
        self._images = images
        self._packs: dict[str, frozenset[str]] = {}

    def adopt(self, name: str, url: str) -> Image:
        """Take an image that a store elsewhere publishes; its contents stay there until they are read."""
        self._images.check_name(name)
        with closing(open_store(url)) as remote:
            published = remote.get(f"names/{name}")
            if published is None:
                raise UnknownImage(f"there is no image {name!r} in {url}", hint="publish it there first")
            try:
                said = replace(Image(**clean_json(json.loads(published))), origin=url)
                stored = remote.get(f"images/{said.digest.removeprefix('sha256:')}")
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise StoreCorrupt(f"{url} does not say what {name!r} is", hint="publish it there again") from error
            if stored is None:
                raise StoreCorrupt(f"{url} lacks the recipe of image {name!r}", hint="publish it there again")
        with self._images.building(name):
            return self.renew(name, decode(stored, said.digest), said)

    def renew(self, name: str, recipe: Recipe, image: Image) -> Image:
        """An image of contents elsewhere, with our programs in it."""
        assert image.origin is not None
        with closing(open_store(image.origin)) as remote:
            return self._renew(name, recipe, image, remote)

    def _renew(self, name: str, recipe: Recipe, image: Image, remote: Backend) -> Image:
        elsewhere = {placed.piece.digest: at for placed, at in recipe.pieces()}
        origins = self._images.folder / "store" / "origins"
        origins.mkdir(exist_ok=True)
        for pack in {at.pack for at in elsewhere.values()}:
            if not (self._images.folder / "store" / "packs" / pack).exists():
                (origins / pack).write_text(str(image.origin))

        def read(node: Node) -> bytes:
            return b"".join(_fetched(remote, piece, elsewhere[piece.digest]) for piece in node.pieces)

        with self._images.store.writer() as writer:
            layout = recipe.layout
            if image.init != self._images.stamp:
                tree = erofs.read(layout)
                self._images.prepare(tree, writer, read)
                layout = erofs.lay_out(tree)
            digest = writer.commit(layout, elsewhere).digest
            made = replace(image, id=new_id("img"), name=name, digest=digest, init=self._images.stamp, size=layout.size)
            self._images.say(made)
        self._images.write_out(made)
        return made

    def localise(self, image: Image) -> Image:
        """Fetch all contents of an image that lie elsewhere."""
        if image.origin is None:
            return image
        recipe = self._images.recipe(image.digest)
        with closing(open_store(image.origin)) as remote, self._images.store.writer() as writer:
            missing = [each for each in recipe.pieces() if not writer.known(each[0].piece.digest)]
            for run in runs(missing):
                for placed, stored in read_run(remote, run):
                    unpack(stored, placed.piece)
                    writer.move(placed.piece, stored)
            writer.commit(recipe.layout)
            made = replace(image, origin=None)
            self._images.say(made)
        self._images.write_out(made)
        return made

    def publish(self, name: str, url: str, progress: Progress) -> Image:
        """Send an image to a store elsewhere, so that other machines can adopt it; what that has is not sent again."""
        image = self.localise(self._images.ensure(name))
        index = self._images.folder / "published" / hashlib.sha256(url.encode()).hexdigest()[:16]
        index.mkdir(parents=True, exist_ok=True)
        recipe = self._images.recipe(image.digest)
        with closing(open_store(url)) as remote:
            published = Store(index, remote)
            published.believe(set(remote.keys("packs/")))  # somebody may have emptied it
            with published.writer(progress) as writer:
                for placed, at in recipe.pieces():
                    progress.check()
                    if not writer.known(placed.piece.digest):
                        writer.move(placed.piece, self._images.store.stored(at))
                writer.commit(recipe.layout)
            partial = index / f"{new_id('req')}.name"
            partial.write_text(json.dumps(asdict(image)))
            remote.put(f"names/{name}", partial)
            partial.unlink()
        return image

    def blob(self, key: str, offset: int, length: int) -> bytes | None:
        """A part of what other machines may read here, the machine's images alone; None if there is no such."""
        kind, _, rest = key.partition("/")
        if kind == "names":
            image = self._images.named(rest)
            return None if image is None or is_inner(rest) else json.dumps(asdict(image)).encode()
        shared = {image.digest.removeprefix("sha256:"): image for image in self._images.all() if image.origin is None}
        if kind == "images" and rest not in shared:
            return None
        if kind == "packs" and not any(rest in self._packs_of(image.digest) for image in shared.values()):
            return None
        path = self._images.folder / "store" / kind / rest
        if kind not in ("images", "packs") or not path.is_file():
            return None
        return Directory(self._images.folder / "store").read(key, offset, length)

    def _packs_of(self, digest: str) -> frozenset[str]:
        if digest not in self._packs:
            self._packs[digest] = frozenset(at.pack for at in self._images.recipe(digest).locations)
        return self._packs[digest]


def _fetched(remote: Backend, piece: Piece, at: Location) -> bytes:
    return unpack(remote.read(f"packs/{at.pack}", at.offset, at.length), piece)
