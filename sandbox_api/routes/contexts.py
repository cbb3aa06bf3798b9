"""/v1/sandboxes/{id}/contexts and …/run."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from common.ids import is_id
from sandbox_api.models.contexts import Context, ContextList, CreateContext, RunAnywhere, RunRequest
from sandbox_api.models.execs import Exec
from sandbox_api.problems import not_found
from sandbox_api.routes.context import SandboxId, Services, Tenant, Use, problems
from sandbox_api.services.contexts import describe
from sandbox_api.services.exec_views import describe_with_output
from sandbox_api.store.records import ExecRecord

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["contexts"])


async def _context_id(context_id: Annotated[str, Path(max_length=64)]) -> str:
    if not is_id(context_id, "ctx"):
        raise not_found("context")
    return context_id


ContextId = Annotated[str, Depends(_context_id)]


@router.post("/contexts", status_code=201, responses=problems(403, 409, 429, 504))
async def create(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: CreateContext) -> Context:
    """Start an interpreter that keeps its state from run to run; it is ready when this answers."""
    return describe(await use.contexts.create(tenant, sandbox_id, request))


@router.get("/contexts", responses=problems())
async def list_(use: Use, tenant: Tenant, sandbox_id: SandboxId) -> ContextList:
    """A sandbox's contexts, the oldest first."""
    return ContextList(contexts=[describe(each) for each in await use.contexts.all(tenant, sandbox_id)])


@router.delete("/contexts/{context_id}", status_code=204, responses=problems(409))
async def delete(use: Use, tenant: Tenant, sandbox_id: SandboxId, context_id: ContextId) -> None:
    """End a context and what runs in it."""
    await use.contexts.delete(tenant, sandbox_id, context_id)


@router.post("/contexts/{context_id}/run", responses=problems(409, 504))
async def run(use: Use, tenant: Tenant, sandbox_id: SandboxId, context_id: ContextId, request: RunRequest) -> Exec:
    """Run code in a context; with `wait` this answers when it is through. Stream it as an exec of that id."""
    return await _answer(use, tenant, request, await use.contexts.run(tenant, sandbox_id, context_id, request))


@router.post("/run", responses=problems(409, 429, 504))
async def run_anywhere(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: RunAnywhere) -> Exec:
    """Run code in the default context of its language, which is made on first use."""
    record = await use.contexts.run_anywhere(tenant, sandbox_id, request.language, request)
    return await _answer(use, tenant, request, record)


async def _answer(use: Services, tenant: str, request: RunRequest, record: ExecRecord) -> Exec:
    if request.wait and record.state != "exited":
        await use.execs.wait(record)
        record = await use.execs.get(tenant, record.sandbox_id, record.id)
    return await describe_with_output(record, use.execs.log_path(record), request.max_output_bytes)
