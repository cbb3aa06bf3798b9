"""What an image's name means to a tenant: one of its own, or one of the machine's."""

from fs.errors import UnknownImage
from fs.image import is_inner
from sandbox_api.host.interface import Host, ImageFacts
from sandbox_api.problems import Problem, not_found
from sandbox_api.store.records import ImageRecord
from sandbox_api.store.store import Store


class Catalog:
    """Looks images up. The machine knows a tenant's image by its id, so that tenants' names never meet."""

    def __init__(self, host: Host, store: Store) -> None:
        self._host = host
        self._store = store

    async def find(self, tenant: str, name: str) -> ImageFacts:
        """The image of that name or id, ready for use; UnknownImage if there is none."""
        record = await self.record(tenant, name)
        if record is None and is_inner(name):
            raise UnknownImage(f"there is no image {name!r}", hint="list the images to see which there are")
        return await self._host.images.ensure(name if record is None else record.id)

    async def record(self, tenant: str, name: str) -> ImageRecord | None:
        """The tenant's own of that name or id, if it is ready."""
        record = await self._store.image(tenant, name)
        if record is not None:
            if record.state != "ready":
                raise Problem(409, "image_not_ready", f"image {name} is {record.state}", hint="see its log")
            return record
        return await self._store.image_named(tenant, name)

    async def own(self, tenant: str, id_: str) -> ImageRecord:
        """One of the tenant's, by id, or its newest of that name; 404."""
        record = await self._store.image(tenant, id_) or await self._store.image_named(tenant, id_)
        if record is None:
            raise not_found("image")
        return record
