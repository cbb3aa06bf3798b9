"""What every route has at hand: the services and the caller."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path
from starlette.requests import HTTPConnection

from common.ids import is_id
from common.tasks import TaskOwner
from sandbox_api.auth import Caller
from sandbox_api.host.interface import Host
from sandbox_api.metrics import Metrics
from sandbox_api.problems import Problem, not_found
from sandbox_api.services.contexts import ContextService
from sandbox_api.services.copies import CopyService
from sandbox_api.services.egress import EgressService
from sandbox_api.services.execs import ExecService
from sandbox_api.services.functions.apps import AppService
from sandbox_api.services.functions.runs import RunService
from sandbox_api.services.functions.service import FunctionService
from sandbox_api.services.gpus import GpuService
from sandbox_api.services.images import ImageService
from sandbox_api.services.objects import ObjectService
from sandbox_api.services.parking import Parking
from sandbox_api.services.registry import Registry
from sandbox_api.services.sandboxes import SandboxService
from sandbox_api.services.secrets import SecretService
from sandbox_api.services.uploads import Uploads
from sandbox_api.services.usage import UsageService
from sandbox_api.services.volumes import VolumeService


@dataclass(frozen=True, slots=True)
class Services:
    """Composed once, in app.py."""

    host: Host
    registry: Registry
    sandboxes: SandboxService
    parking: Parking
    copies: CopyService
    contexts: ContextService
    execs: ExecService
    tasks: TaskOwner
    metrics: Metrics
    egress: EgressService
    secrets: SecretService
    images: ImageService
    uploads: Uploads
    volumes: VolumeService
    gpus: GpuService
    usage: UsageService
    functions: FunctionService
    apps: AppService
    runs: RunService
    objects: ObjectService


# Coroutines although they wait for nothing: FastAPI sends a plain function through a thread, 0.2 ms each.


async def _services(connection: HTTPConnection) -> Services:
    found: Services = connection.app.state.services
    return found


async def _caller(connection: HTTPConnection) -> Caller:
    caller: Caller = connection.state.caller
    return caller


async def _tenant(connection: HTTPConnection) -> str:
    caller: Caller = connection.state.caller
    if caller.tenant is None:
        raise Problem(
            403,
            "tenant_key_needed",
            "the operator's key stands for no tenant",
            hint="use a tenant's key; the first one is in the server's state directory, file api-key",
        )
    return caller.tenant


async def _operator(connection: HTTPConnection) -> None:
    if not connection.state.caller.is_operator:
        raise Problem(
            403,
            "operator_key_needed",
            "this is for the server's operator alone: it tells of all tenants, or acts on what is everybody's",
            hint="use the operator's key, which is in the server's state directory, file operator-key",
        )


async def _sandbox_id(sandbox_id: Annotated[str, Path(max_length=64)]) -> str:
    if not is_id(sandbox_id, "sbx"):
        raise not_found("sandbox")
    return sandbox_id


async def _exec_id(exec_id: Annotated[str, Path(max_length=64)]) -> str:
    if not is_id(exec_id, "exe"):
        raise not_found("exec")
    return exec_id


async def _snapshot_id(snapshot_id: Annotated[str, Path(max_length=64)]) -> str:
    if not is_id(snapshot_id, "snp"):
        raise not_found("snapshot")
    return snapshot_id


Use = Annotated[Services, Depends(_services)]
AnyCaller = Annotated[Caller, Depends(_caller)]
"""A tenant or the operator: the route says what it does for each."""
Tenant = Annotated[str, Depends(_tenant)]
Operator = Annotated[None, Depends(_operator)]
SandboxId = Annotated[str, Depends(_sandbox_id)]
ExecId = Annotated[str, Depends(_exec_id)]
SnapshotId = Annotated[str, Depends(_snapshot_id)]

# By reference, not as `model`: FastAPI would build it anew for each of five hundred places, a fifth of a start.
_PROBLEM: dict[str, Any] = {
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented refusals of a route."""
    return dict.fromkeys((400, 401, 404, 413, 422, *statuses), _PROBLEM)
