"""/v1/functions and /v1/calls."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse

from sandbox_api.models.functions import (
    AddInputs,
    AppInfo,
    AppPage,
    Call,
    CreateCall,
    CreateFunction,
    Deploy,
    Function,
    FunctionLogs,
    FunctionPage,
    FunctionSandbox,
    RollBack,
    RunAnswer,
    RunNews,
)
from sandbox_api.models.sandboxes import Sandbox
from sandbox_api.readable import readable
from sandbox_api.routes.context import Tenant, Use, problems
from sandbox_api.services.sandboxes import describe

router = APIRouter(tags=["functions"])
FunctionId = Annotated[str, Path(max_length=64)]
CallId = Annotated[str, Path(max_length=64)]
Seq = Annotated[int, Path(ge=0, le=1 << 53)]


@router.post("/v1/functions", status_code=201, responses=problems(403, 429))
async def create(use: Use, tenant: Tenant, request: CreateFunction) -> Function:
    """Make a function; the same again is the one that there is."""
    record = await use.functions.create(tenant, request)
    if request.run is not None:
        await use.runs.made(tenant, request.run, record)
    return use.functions.describe(record)


@router.get("/v1/functions", responses=problems())
async def list_(use: Use, tenant: Tenant) -> FunctionPage:
    """The tenant's functions, the newest first."""
    return FunctionPage(functions=[*readable(await use.functions.all(tenant), use.functions.describe)])


@router.get("/v1/functions/{function_id}", responses=problems())
async def get(use: Use, tenant: Tenant, function_id: FunctionId) -> Function:
    """Look at a function."""
    return use.functions.describe(await use.functions.get(tenant, function_id))


@router.delete("/v1/functions/{function_id}", status_code=204, responses=problems())
async def retire(use: Use, tenant: Tenant, function_id: FunctionId) -> None:
    """Keep no containers of it ready any more, unless an app that is deployed or runs has it; calls go on."""
    record = await use.functions.get(tenant, function_id)
    if not use.runs.is_used(tenant, record.id):
        await use.functions.retire(tenant, record.id)


@router.get("/v1/functions/{function_id}/logs", responses=problems())
async def logs(use: Use, tenant: Tenant, function_id: FunctionId) -> FunctionLogs:
    """What its containers printed for no input: when they began, in web endpoints, in threads."""
    return FunctionLogs(text=await use.functions.said(tenant, function_id))


@router.post("/v1/functions/{function_id}/sandbox", status_code=201, responses=problems(409, 429))
async def sandbox(use: Use, tenant: Tenant, function_id: FunctionId, request: FunctionSandbox) -> Sandbox:
    """A sandbox such as its containers are, without its secrets; its code lies in /tmp/.isobox-function/code."""
    return describe(await use.functions.sandbox(tenant, function_id, request.timeout_s))


@router.post("/v1/functions/{function_id}/calls", status_code=201, responses=problems(409, 507))
async def call(use: Use, tenant: Tenant, function_id: FunctionId, request: CreateCall) -> Call:
    """Call it; with wait_s the answer has the results, if they come in time."""
    return await use.functions.call(tenant, function_id, request)


@router.get("/v1/calls/{call_id}", responses=problems())
async def results(
    use: Use,
    tenant: Tenant,
    call_id: CallId,
    after: Annotated[int, Query(ge=0, le=1 << 53)] = 0,
    wait_s: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False)] = 0.0,
) -> Call:
    """A call and what happened in it beyond after, waiting up to wait_s seconds for something to happen."""
    return await use.functions.results(tenant, call_id, after, wait_s)


@router.post("/v1/calls/{call_id}/inputs", responses=problems(409, 507))
async def add(use: Use, tenant: Tenant, call_id: CallId, request: AddInputs) -> Call:
    """More inputs of a call that was made with more=true."""
    return await use.functions.add(tenant, call_id, request)


@router.get("/v1/calls/{call_id}/values/{seq}", responses=problems(), response_class=Response)
async def value(use: Use, tenant: Tenant, call_id: CallId, seq: Seq) -> Response:
    """A large value's bytes."""
    contents = await use.functions.value(tenant, call_id, seq)
    return StreamingResponse(contents, media_type="application/octet-stream")


@router.delete("/v1/calls/{call_id}", responses=problems())
async def cancel(use: Use, tenant: Tenant, call_id: CallId) -> Call:
    """Cancel it: what waits is not begun, what runs is stopped."""
    return await use.functions.cancel(tenant, call_id)


RunId = Annotated[str, Path(pattern=r"^run[a-z2-7]{26}$")]


@router.put("/v1/runs/{run_id}", responses=problems(409))
async def run_news(
    use: Use,
    tenant: Tenant,
    run_id: RunId,
    request: RunNews,
    wait_s: Annotated[float, Query(ge=0, le=25, allow_inf_nan=False)] = 0.0,
) -> RunAnswer:
    """Say that an app runs here, and hear what its containers want to be made, as soon as there is such a thing."""
    return await use.runs.heard(tenant, run_id, request, wait_s)


@router.delete("/v1/runs/{run_id}", status_code=204, responses=problems())
async def end_run(use: Use, tenant: Tenant, run_id: RunId) -> None:
    """The app runs here no more: what it made is kept ready for it no more."""
    await use.runs.end(tenant, run_id)


AppName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


@router.get("/v1/apps", responses=problems())
async def apps(use: Use, tenant: Tenant) -> AppPage:
    """The tenant's deployed apps."""
    return AppPage(apps=await use.apps.all(tenant))


@router.get("/v1/apps/{name}", responses=problems())
async def app(use: Use, tenant: Tenant, name: AppName) -> AppInfo:
    """Look at an app: what is in force, and all versions."""
    return await use.apps.get(tenant, name)


@router.post("/v1/apps/{name}/deploy", status_code=201, responses=problems(429))
async def deploy(use: Use, tenant: Tenant, name: AppName, request: Deploy) -> AppInfo:
    """Put a new version in force."""
    await use.apps.deploy(tenant, name, request)
    return await use.apps.get(tenant, name)


@router.post("/v1/apps/{name}/rollback", responses=problems(429))
async def roll_back(use: Use, tenant: Tenant, name: AppName, request: RollBack) -> AppInfo:
    """Put an earlier version in force again."""
    await use.apps.roll_back(tenant, name, request.version)
    return await use.apps.get(tenant, name)


@router.post("/v1/apps/{name}/stop", responses=problems())
async def stop(use: Use, tenant: Tenant, name: AppName) -> AppInfo:
    """Keep nothing of it ready, run nothing of it by schedule."""
    await use.apps.stop(tenant, name)
    return await use.apps.get(tenant, name)
