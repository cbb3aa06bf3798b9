"""/v1/gpus and /v1/usage."""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query

from sandbox_api.models.gpus import GpuPage
from sandbox_api.models.usage import UsagePage
from sandbox_api.routes.context import Operator, Tenant, Use, problems

router = APIRouter(tags=["gpus"])
Uuid = Annotated[str, Path(max_length=128)]
Moment = Annotated[float, Query(ge=0, le=1e12, allow_inf_nan=False)]


@router.get("/v1/gpus", responses=problems())
async def list_(use: Use, tenant: Tenant) -> GpuPage:
    """The machine's GPUs, and what each does."""
    return await use.gpus.all(tenant)


@router.post("/v1/gpus/{uuid}/clear", status_code=204, responses=problems(403, 409))
async def clear(use: Use, uuid: Uuid, _: Operator) -> None:
    """Say that a quarantined GPU is well: its memory is overwritten, and it is free. For the operator's key."""
    await use.gpus.clear(uuid)


@router.get("/v1/usage", responses=problems())
async def usage(use: Use, tenant: Tenant, since: Moment = 0.0, until: Moment | None = None) -> UsagePage:
    """What the tenant's sandboxes used that ran at some moment between (seconds since the epoch); kept for 90 days."""
    return await use.usage.all(tenant, since, time.time() if until is None else until)
