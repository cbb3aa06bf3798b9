"""Images of tenants: made of a registry's, of steps, of a snapshot; pushed, compared, deleted."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Final

import structlog

from common.errors import IsoboxError
from common.ids import new_id
from common.tasks import TaskOwner
from fs.bases import BASES
from fs.errors import UnknownImage
from fs.image import STEP
from fs.oci.login import Login
from isolation.execlog import Event, EventType, Gap
from sandbox_api.host.interface import CopyFacts, Difference, Host, ImageFacts
from sandbox_api.models.common import time_of
from sandbox_api.models.images import Copy, CreateImage, Image, ImageFailure, PushImage, RegistrySource
from sandbox_api.output.follow import follow
from sandbox_api.problems import Problem, from_error, not_found
from sandbox_api.services.builder import Builder, StepFailed
from sandbox_api.services.catalog import Catalog
from sandbox_api.services.cursor import decode_cursor, encode_cursor
from sandbox_api.services.openlog import OpenLog
from sandbox_api.services.secrets import SecretService
from sandbox_api.services.uploads import Uploads
from sandbox_api.store.records import ImageRecord
from sandbox_api.store.store import Store

_log = structlog.get_logger(__name__)
_LOG_LIMIT: Final = 16 << 20
_LOG: Final = "build"
_IMAGES_MAX: Final = 1000
_UPLOADS_LOOK_S: Final = 600.0
_DIFFERENCES_MAX: Final = 10_000
_MAKING_MAX: Final = 16
"""Images of one tenant that are being made at a time."""

_END_S: Final = 30.0


class _Making:
    """An image that is being made: whose, its log, and when that is over."""

    def __init__(self, tenant: str, log: OpenLog) -> None:
        self.tenant = tenant
        self.log = log
        self.over = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class ImageService:
    """The use cases of images."""

    def __init__(
        self,
        host: Host,
        store: Store,
        catalog: Catalog,
        builder: Builder,
        secrets: SecretService,
        uploads: Uploads,
        tasks: TaskOwner,
    ) -> None:
        self._uploads = uploads
        self._host = host
        self._store = store
        self._catalog = catalog
        self._builder = builder
        self._secrets = secrets
        self._tasks = tasks
        self._making: dict[str, _Making] = {}

    async def recover(self) -> None:
        """What an earlier server was making when it died was not made."""
        for record in await self._store.unfinished_images():
            log = OpenLog(self._host.execs.log_path(record.id, _LOG), limit=_LOG_LIMIT)
            await self._fail(
                record, log, Problem(500, "server_restarted", "the server was restarted", hint="try again")
            )

    # ---- making

    async def create(self, tenant: str, request: CreateImage) -> ImageRecord:
        """Begin to make an image; its log tells how it goes."""
        if request.name in BASES or any(each.name == request.name for each in self._host.images.all()):
            raise Problem(409, "name_taken", f"{request.name} is an image of the machine's", hint="use another name")
        if len(await self._store.images(tenant, before=None, limit=_IMAGES_MAX + 1)) > _IMAGES_MAX:
            raise Problem(429, "too_many_images", f"{_IMAGES_MAX} images are the most", hint="delete some")
        if sum(making.tenant == tenant for making in self._making.values()) >= _MAKING_MAX:
            raise Problem(
                *(429, "too_many_builds", f"{_MAKING_MAX} images at a time are the most"),
                hint="wait for some, or delete them",
                retryable=True,
            )
        record = ImageRecord(
            new_id("img"),
            tenant,
            request.name,
            "building",
            time.time(),
            request.model_dump(exclude_none=True, by_alias=True),
        )
        await self._check(tenant, request)
        await self._store.save_image(record)
        making = self._making[record.id] = _Making(
            tenant, OpenLog(self._host.execs.log_path(record.id, _LOG), limit=_LOG_LIMIT)
        )
        making.task = self._tasks.spawn(self._make(record, request, making), name=f"image {record.id}")
        return record

    async def _check(self, tenant: str, request: CreateImage) -> None:
        """What can be said at once is said at once."""
        if request.registry is not None:
            await self._login(tenant, request.registry)
        elif request.snapshot is not None:
            found = await self._store.snapshot(tenant, request.snapshot)
            if found is None:
                raise not_found("snapshot")
            if found.kind != "filesystem":
                raise Problem(
                    422, "snapshot_kind", "a memory snapshot is no image", hint="take one with kind=filesystem"
                )
        elif request.build is not None:
            for step in request.build.steps:
                if isinstance(step, Copy) and not self._uploads.has(tenant, step.copy_.upload):
                    hint = "send it first: PUT /v1/uploads/DIGEST"
                    raise Problem(404, "upload_not_found", f"{step.copy_.upload[:19]} was not uploaded", hint=hint)
            if request.build.base not in BASES:
                await self._catalog.find(tenant, request.build.base)

    async def _make(self, record: ImageRecord, request: CreateImage, making: _Making) -> None:
        log = making.log
        try:
            found = await self._run(record, request, log)
            ready = await self._host.images.ensure(found.name)
            record.state, record.digest, record.size = "ready", ready.digest, ready.size
            record.config, record.ended_at = ready.config, time.time()
            await self._store.save_image(record)
            log.append(EventType.EXIT, json.dumps({"state": "ready", "digest": ready.digest}).encode())
        except IsoboxError as error:
            await self._fail(record, log, error)
        except asyncio.CancelledError:
            raise  # it was deleted; or the server ends, and the next one says so in the record
        except Exception as error:
            _log.exception("an image was not made", image=record.id)
            await self._fail(record, log, Problem(500, "internal", f"{type(error).__name__}: {error}"))
        finally:
            log.close()
            making.over.set()
            self._making.pop(record.id, None)

    async def _run(self, record: ImageRecord, request: CreateImage, log: OpenLog) -> ImageFacts:
        if request.build is not None:
            return await self._builder.build(record.tenant, record.id, request.build, log.append)
        if request.registry is not None:
            login = await self._login(record.tenant, request.registry)
            told = self._host.images.pull(record.id, request.registry.reference, login)
        else:
            told = await self._of_snapshot(record, str(request.snapshot))
        found: ImageFacts | None = None
        async for each in told:
            if isinstance(each, str):
                log.append(EventType.STDERR, f"{each}\n".encode())
            else:
                found = each
        assert found is not None
        return found

    async def _of_snapshot(self, record: ImageRecord, id_: str) -> AsyncIterator[str | ImageFacts]:
        snapshot = await self._store.snapshot(record.tenant, id_)
        if snapshot is None:
            raise not_found("snapshot")
        copy = CopyFacts(snapshot.id, snapshot.digest, snapshot.size_bytes, {})
        config = {"env": snapshot.sandbox["env"], "workdir": snapshot.sandbox["workdir"]}
        meant = {name: value for name, value in config.items() if value}
        return self._host.images.derive(record.id, snapshot.sandbox["image_digest"], copy, meant)

    async def _login(self, tenant: str, asked: RegistrySource | PushImage) -> Login | None:
        if (name := asked.secret) is None:
            return None
        value = await self._secrets.value(tenant, (await self._secrets.get(tenant, name)).name)
        if value is None or ":" not in value:
            raise Problem(422, "secret_invalid", f"secret {name} is not USER:PASSWORD", hint="store it again so")
        return Login(value, asked.auth_host)

    async def _fail(self, record: ImageRecord, log: OpenLog, error: IsoboxError) -> None:
        problem = from_error(error)
        more = error.failure if isinstance(error, StepFailed) else {}
        record.state, record.ended_at = "failed", time.time()
        record.failure = {"code": problem.code, "detail": problem.detail, "hint": problem.hint, **more}
        await self._store.save_image(record)
        log.append(EventType.EXIT, json.dumps({"state": "failed", "failure": record.failure}).encode())
        log.close()

    async def watch_uploads(self) -> None:
        """Delete what clients sent and nobody uses."""
        while True:
            self._uploads.expire()
            await asyncio.sleep(_UPLOADS_LOOK_S)

    # ---- looking

    async def get(self, tenant: str, name: str) -> ImageRecord | ImageFacts:
        """One of the tenant's, by id or name, or of the machine's; 404."""
        with contextlib.suppress(Problem):
            return await self._catalog.own(tenant, name)
        for each in self._host.images.all():
            if each.name == name:
                return each
        raise not_found("image")

    async def search(
        self, tenant: str, cursor: str | None, limit: int
    ) -> tuple[list[ImageRecord | ImageFacts], str | None]:
        """The tenant's, the newest first, then the machine's; and where the list goes on."""
        records: list[ImageRecord | ImageFacts] = []
        own = await self._store.images(tenant, before=decode_cursor(cursor), limit=limit + 1)
        records.extend(own[:limit])
        if len(own) > limit:
            return records, encode_cursor(own[limit - 1].created_at, own[limit - 1].id)
        records.extend(self._host.images.all())
        return records, None

    async def diff(self, tenant: str, older: str, newer: str) -> tuple[list[Difference], bool]:
        """What differs between two images, and whether there is more than is told."""
        below, above = await self._catalog.find(tenant, older), await self._catalog.find(tenant, newer)
        return await self._host.images.differences(below.digest, above.digest, _DIFFERENCES_MAX)

    async def wait(self, tenant: str, id_: str, timeout_s: float) -> ImageRecord:
        """Wait until it is ready or has failed, at most timeout_s seconds; answers with it as it is then."""
        record = await self._catalog.own(tenant, id_)
        if (making := self._making.get(record.id)) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await making.over.wait()
        return await self._catalog.own(tenant, record.id)

    async def log(self, tenant: str, id_: str, after: int) -> AsyncIterator[Event | Gap]:
        """What was told while it was made, beyond an event."""
        record = await self._catalog.own(tenant, id_)

        async def changed(seq: int, _follower: str) -> None:
            if (making := self._making.get(record.id)) is not None:
                await making.log.changed(seq)

        return follow(self._host.execs.log_path(record.id, _LOG), after, changed, lambda _: None)

    # ---- and away

    async def push(self, tenant: str, name: str, request: PushImage) -> str:
        """Send an image to a registry: its manifest's digest there."""
        found = await self._catalog.find(tenant, name)
        login = await self._login(tenant, request)
        digest = ""
        async for line in self._host.images.push(found.name, request.reference, login):
            digest = line
        return digest

    async def prune(self, tenant: str | None) -> None:
        """Forget what a tenant's steps came to, or with None all tenants', and everything that no image needs."""
        for key in await self._store.forget_steps(tenant):
            with contextlib.suppress(UnknownImage):
                await self._host.images.remove(STEP + key)
        await self._host.images.prune()

    async def delete(self, tenant: str, id_: str) -> None:
        """Delete one of the tenant's, which ends its making; 409 while a sandbox or a snapshot needs it."""
        record = await self._catalog.own(tenant, id_)
        if (making := self._making.get(record.id)) is not None and making.task is not None:
            making.task.cancel()
            await asyncio.wait([making.task], timeout=_END_S)
            if not making.task.done():
                raise Problem(409, "image_not_ready", "the image is being made still", hint="try again", retryable=True)
            record = await self._catalog.own(tenant, record.id)  # it may have been ready just before
        if record.digest is not None:
            # Others' sandboxes of equal files have names of their own for them, which keep them.
            users = await self._store.image_users(tenant, record.digest)
            if users:
                raise Problem(
                    409,
                    "image_in_use",
                    f"{len(users)} sandboxes or snapshots need it: {', '.join(users[:3])}",
                    hint="terminate or delete them first",
                )
        if record.digest is not None or making is not None:
            with contextlib.suppress(UnknownImage):
                await self._host.images.remove(record.id)
        await self._store.forget_image(record.id)
        self._host.execs.remove_logs(record.id)


def describe(image: ImageRecord | ImageFacts) -> Image:
    """As a client sees it."""
    if isinstance(image, ImageFacts):
        return Image(
            id=image.id,
            name=image.name,
            state="ready",
            source={"machine": True},
            digest=image.digest,
            size_bytes=image.size,
            created_at=time_of(image.created_at),  # type: ignore[arg-type]  # not None
            ended_at=None,
            config=image.config,
            failure=None,
        )
    return Image(
        id=image.id,
        name=image.name,
        state=image.state,
        source={name: value for name, value in image.source.items() if name != "name"},
        digest=image.digest,
        size_bytes=image.size,
        created_at=time_of(image.created_at),  # type: ignore[arg-type]  # not None
        ended_at=time_of(image.ended_at),
        config=image.config,
        failure=ImageFailure(**image.failure) if image.failure else None,
    )
