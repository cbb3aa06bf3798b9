"""Health, metrics."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from common.turns import turn_budget
from sandbox_api.models.common import ProblemDocument
from sandbox_api.problems import Problem
from sandbox_api.routes.context import Operator, Use, problems

router = APIRouter()


class Health(BaseModel):
    """Whether the server answers."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", tags=["system"])
async def healthz() -> Health:
    """The process is up."""
    return Health()


class Readiness(Health):
    """Whether the server takes work, and what dead servers left on its machine (`isobox doctor --sweep`)."""

    leftovers: list[str] = []


@router.get("/readyz", tags=["system"], responses={503: {"model": ProblemDocument}})
async def readyz(use: Use) -> Readiness:
    """Sandboxes can be created; 503 with the reasons while they cannot."""
    left = use.host.leftovers
    if reasons := use.host.problems():
        why = "; ".join([*reasons, *(f"left by a dead server: {words}" for words in left)])
        raise Problem(503, "not_ready", why, hint="run `isobox doctor` on the server's machine", retryable=True)
    return Readiness(leftovers=left)


@router.get("/metrics", tags=["system"], responses=problems(403), response_class=Response)
async def metrics(use: Use, _: Operator) -> Response:
    """Prometheus metrics, of all tenants: for the operator's key."""
    use.metrics.sandboxes.set(len(use.registry.live))
    use.metrics.tell_pool(use.host.shelves())
    use.metrics.tell_functions(use.functions.facts())
    use.metrics.tell_gpus(use.gpus.usage_of())
    use.metrics.turn_largest.set(turn_budget().largest)
    use.metrics.gateway_starts.set(use.host.networks.gateway_starts)
    return Response(use.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
