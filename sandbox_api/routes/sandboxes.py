"""/v1/sandboxes."""

from typing import Annotated

from fastapi import APIRouter, Query

from sandbox_api.lifecycle import State
from sandbox_api.models.sandboxes import CreateSandbox, PatchSandbox, Sandbox, SandboxPage, Stats
from sandbox_api.problems import invalid
from sandbox_api.readable import readable
from sandbox_api.routes.context import SandboxId, Tenant, Use, problems
from sandbox_api.services.sandboxes import describe

router = APIRouter(prefix="/v1/sandboxes", tags=["sandboxes"])


@router.post("", status_code=201, responses=problems(403, 409, 429, 500, 507))
async def create(use: Use, tenant: Tenant, request: CreateSandbox) -> Sandbox:
    """Create a sandbox; it runs when this answers."""
    if request.snapshot is not None:
        return describe(await use.copies.create_from(tenant, request))
    return describe(await use.sandboxes.create(tenant, request))


@router.get("", responses=problems())
async def list_(
    use: Use,
    tenant: Tenant,
    label: Annotated[list[Annotated[str, Query(max_length=400)]], Query(max_length=16)] = [],  # noqa: B006 - FastAPI copies it
    state: State | None = None,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> SandboxPage:
    """List sandboxes, the newest first; label=name:value narrows the list and may be repeated."""
    labels = {}
    for each in label:
        name, colon, value = each.partition(":")
        if not colon or not name:
            raise invalid(f"label={each!r} is not name:value", "for example label=project:demo")
        labels[name] = value
    records, cursor = await use.sandboxes.search(tenant, state=state, labels=labels, cursor=cursor, limit=limit)
    return SandboxPage(sandboxes=[*readable(records, describe)], next_cursor=cursor)


@router.get("/{sandbox_id}", responses=problems())
async def get(use: Use, tenant: Tenant, sandbox_id: SandboxId) -> Sandbox:
    """Look at a sandbox."""
    return describe(await use.sandboxes.get(tenant, sandbox_id))


@router.patch("/{sandbox_id}", responses=problems(409))
async def patch(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: PatchSandbox) -> Sandbox:
    """Change labels or time-outs; timeout_s counts from now."""
    return describe(await use.sandboxes.patch(tenant, sandbox_id, request))


@router.delete("/{sandbox_id}", responses=problems())
async def terminate(use: Use, tenant: Tenant, sandbox_id: SandboxId) -> Sandbox:
    """End a sandbox and answer with it as it was at its end; again and again the same."""
    return describe(await use.sandboxes.terminate(tenant, sandbox_id))


@router.post("/{sandbox_id}/pause", responses=problems(409, 507))
async def pause(use: Use, tenant: Tenant, sandbox_id: SandboxId) -> Sandbox:
    """Copy it to disk and free its memory: it goes on from there at a resume, execs and all."""
    return describe(await use.parking.pause(tenant, sandbox_id))


@router.post("/{sandbox_id}/resume", responses=problems(409))
async def resume(use: Use, tenant: Tenant, sandbox_id: SandboxId) -> Sandbox:
    """Let it go on where it was paused."""
    return describe(await use.parking.resume(tenant, sandbox_id))


@router.get("/{sandbox_id}/wait", responses=problems())
async def wait(
    use: Use, tenant: Tenant, sandbox_id: SandboxId, timeout_s: Annotated[float, Query(ge=0, le=3600)] = 60.0
) -> Sandbox:
    """Wait for its end, at most timeout_s seconds; `state` tells whether it has come."""
    return describe(await use.sandboxes.wait(tenant, sandbox_id, timeout_s))


@router.get("/{sandbox_id}/stats", responses=problems(409))
async def stats(use: Use, tenant: Tenant, sandbox_id: SandboxId) -> Stats:
    """What it uses now."""
    return await use.sandboxes.stats(tenant, sandbox_id)
