"""/v1/snapshots, and copying a sandbox."""

from typing import Annotated

from fastapi import APIRouter, Query

from sandbox_api.models.snapshots import CreateSnapshot, Fork, ForkRequest, Snapshot, SnapshotPage
from sandbox_api.readable import readable
from sandbox_api.routes.context import SandboxId, SnapshotId, Tenant, Use, problems
from sandbox_api.services.copies import describe
from sandbox_api.services.sandboxes import describe as describe_sandbox

router = APIRouter(prefix="/v1", tags=["snapshots"])


@router.post("/sandboxes/{sandbox_id}/snapshots", status_code=201, responses=problems(409, 507))
async def create(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: CreateSnapshot) -> Snapshot:
    """Copy a sandbox as it stands and keep the copy; the sandbox goes on."""
    return describe(await use.copies.snapshot(tenant, sandbox_id, request))


@router.post("/sandboxes/{sandbox_id}/fork", status_code=201, responses=problems(409, 429, 507))
async def fork(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: ForkRequest) -> Fork:
    """Children that go on side by side with the sandbox, from one copy of it."""
    children, errors = await use.copies.fork(tenant, sandbox_id, request)
    return Fork(sandboxes=[describe_sandbox(each) for each in children], errors=errors)


@router.get("/snapshots", responses=problems())
async def list_(
    use: Use,
    tenant: Tenant,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> SnapshotPage:
    """Snapshots, the newest first."""
    records, cursor = await use.copies.search(tenant, cursor, limit)
    return SnapshotPage(snapshots=[*readable(records, describe)], next_cursor=cursor)


@router.get("/snapshots/{snapshot_id}", responses=problems())
async def get(use: Use, tenant: Tenant, snapshot_id: SnapshotId) -> Snapshot:
    """Look at a snapshot."""
    return describe(await use.copies.get(tenant, snapshot_id))


@router.delete("/snapshots/{snapshot_id}", status_code=204, responses=problems())
async def delete(use: Use, tenant: Tenant, snapshot_id: SnapshotId) -> None:
    """Delete a snapshot; sandboxes made of it go on."""
    await use.copies.delete(tenant, snapshot_id)
