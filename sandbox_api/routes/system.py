"""Health, metrics."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from sandbox_api.routes.context import Operator, Use, problems

router = APIRouter()


class Health(BaseModel):
    """Whether the server answers."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", tags=["system"])
async def healthz() -> Health:
    """The process is up."""
    return Health()


@router.get("/readyz", tags=["system"])
async def readyz() -> Health:
    """The server takes work: it answers only once it has taken over what an earlier one left."""
    return Health()


@router.get("/metrics", tags=["system"], responses=problems(403), response_class=Response)
async def metrics(use: Use, _: Operator) -> Response:
    """Prometheus metrics, of all tenants: for the operator's key."""
    use.metrics.sandboxes.set(len(use.registry.live))
    use.metrics.tell_pool(use.host.shelves())
    use.metrics.tell_functions(use.functions.facts())
    use.metrics.tell_gpus(use.gpus.usage_of())
    use.metrics.gateway_starts.set(use.host.networks.gateway_starts)
    return Response(use.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
