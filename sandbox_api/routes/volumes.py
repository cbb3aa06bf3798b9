"""/v1/volumes, and volumes in sandboxes."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from sandbox_api.archives import MEDIA_TYPES, Format, packed
from sandbox_api.models.files import FileList
from sandbox_api.models.volumes import CreateVolume, RestoreVolume, SnapshotVolume, Volume, VolumePage, VolumePath
from sandbox_api.readable import readable
from sandbox_api.routes.context import SandboxId, Tenant, Use, problems
from sandbox_api.routes.files import listed
from sandbox_api.services.volumes import describe

router = APIRouter(tags=["volumes"])
Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Inside = Annotated[str, Query(alias="path", max_length=4095)]


@router.post("/v1/volumes", status_code=201, responses=problems(409, 429))
async def create(use: Use, tenant: Tenant, request: CreateVolume) -> Volume:
    """Make an empty volume."""
    return describe(await use.volumes.create(tenant, request))


@router.get("/v1/volumes", responses=problems())
async def list_(use: Use, tenant: Tenant) -> VolumePage:
    """The tenant's volumes, by name."""
    return VolumePage(volumes=[*readable(await use.volumes.all(tenant), describe)])


@router.get("/v1/volumes/{name}", responses=problems())
async def get(use: Use, tenant: Tenant, name: Name) -> Volume:
    """Look at a volume."""
    return describe(await use.volumes.get(tenant, name))


@router.delete("/v1/volumes/{name}", status_code=204, responses=problems(409))
async def delete(use: Use, tenant: Tenant, name: Name) -> None:
    """Delete a volume and its snapshots; sandboxes keep the files that they have."""
    await use.volumes.delete(tenant, name)


@router.get("/v1/volumes/{name}/files", responses=problems(409), response_class=Response)
async def read(use: Use, tenant: Tenant, name: Name, path: Inside) -> Response:
    """A file of the volume, as it was committed last."""
    return await _stream(await use.volumes.read(tenant, name, path), "application/octet-stream")


@router.get("/v1/volumes/{name}/files/list", responses=problems(409), response_model=FileList)
async def list_files(use: Use, tenant: Tenant, name: Name, path: Inside = "/") -> Response:
    """What a folder of the volume holds."""
    return await listed(await use.volumes.list_folder(tenant, name, path), path, in_order=False)


@router.get("/v1/volumes/{name}/archive", responses=problems(409), response_class=Response)
async def download(
    use: Use, tenant: Tenant, name: Name, path: Inside = "/", how: Annotated[Format, Query(alias="format")] = "tar"
) -> Response:
    """A tar archive of a folder's contents, or of one file."""
    return await _stream(packed(await use.volumes.download(tenant, name, path), how), MEDIA_TYPES[how])


@router.put("/v1/volumes/{name}/archive", responses=problems(409, 507))
async def upload(use: Use, tenant: Tenant, name: Name, request: Request, path: Inside = "/") -> Volume:
    """Lay a tar archive (plain, gzip or zstd) over the volume's files, in a folder of it."""
    return describe(await use.volumes.upload(tenant, name, path, request.stream()))


@router.post("/v1/volumes/{name}/snapshots", status_code=201, responses=problems(429))
async def snapshot(use: Use, tenant: Tenant, name: Name, request: SnapshotVolume) -> Volume:
    """Keep the volume's files as they are now."""
    return describe(await use.volumes.snapshot(tenant, name, request.name))


@router.post("/v1/volumes/{name}/restore", responses=problems(409))
async def restore(use: Use, tenant: Tenant, name: Name, request: RestoreVolume) -> Volume:
    """Let the volume's files be again what a snapshot kept."""
    return describe(await use.volumes.restore(tenant, name, request.snapshot))


@router.post("/v1/sandboxes/{sandbox_id}/volumes/commit", responses=problems(409, 507))
async def commit(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: VolumePath) -> Volume:
    """Let a volume's files be what lies in the sandbox now."""
    return describe(await use.volumes.commit(tenant, sandbox_id, request.path))


@router.post("/v1/sandboxes/{sandbox_id}/volumes/reload", responses=problems(409, 507))
async def reload(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: VolumePath) -> Volume:
    """Let the sandbox have a volume's files as they were committed last; its own changes are lost."""
    return describe(await use.volumes.reload(tenant, sandbox_id, request.path))


async def _stream(contents: AsyncIterator[bytes], media_type: str) -> StreamingResponse:
    """An answer that begins once the first piece is there, so that an error is one."""
    first = await anext(contents, b"")

    async def all_of_it() -> AsyncIterator[bytes]:
        yield first
        async for piece in contents:
            yield piece

    return StreamingResponse(all_of_it(), media_type=media_type)
