"""…/network and /v1/secrets."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from sandbox_api.models.common import time_of
from sandbox_api.models.network import (
    AskedPolicy,
    AuditPage,
    AuditRecord,
    Network,
    PutSecret,
    Secret,
    SecretList,
    asked,
)
from sandbox_api.readable import readable
from sandbox_api.routes.context import SandboxId, Tenant, Use, problems
from sandbox_api.store.records import SandboxRecord, SecretRecord

router = APIRouter(tags=["network"])
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


@router.get("/v1/sandboxes/{sandbox_id}/network", responses=problems())
async def get(use: Use, tenant: Tenant, sandbox_id: SandboxId) -> Network:
    """What may leave a sandbox."""
    return _network(await use.sandboxes.get(tenant, sandbox_id))


@router.put("/v1/sandboxes/{sandbox_id}/network", responses=problems(409, 503))
async def put(use: Use, tenant: Tenant, sandbox_id: SandboxId, policy: Annotated[AskedPolicy, Body()]) -> Network:
    """Another policy from now on: once this has answered, nothing that it refuses gets another byte through."""
    return _network(await use.egress.replace(tenant, sandbox_id, asked(policy)))


@router.get("/v1/sandboxes/{sandbox_id}/network/log", responses=problems(), response_model_exclude_none=True)
async def log(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    after: Annotated[int, Query(alias="from", ge=0, le=1 << 62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    wait_s: Annotated[float, Query(ge=0, le=20)] = 0.0,
) -> AuditPage:
    """What was let through and what was refused, each decision; with wait_s it waits for the next one."""
    records, last = await use.egress.log(tenant, sandbox_id, after, limit, wait_s)
    return AuditPage(records=[*readable(records, lambda record: AuditRecord(**record))], next=last)


@router.get("/v1/secrets", responses=problems())
async def secrets(use: Use, tenant: Tenant) -> SecretList:
    """The names of all secrets."""
    return SecretList(secrets=[_secret(each) for each in await use.secrets.all(tenant)])


@router.put("/v1/secrets/{name}", responses=problems(429))
async def put_secret(use: Use, tenant: Tenant, name: Name, request: PutSecret) -> Secret:
    """Store a secret, or replace it: sandboxes that use it use the new value from now on."""
    record = await use.secrets.put(tenant, name, request.value)
    await use.egress.secret_changed(tenant, name)
    return _secret(record)


@router.get("/v1/secrets/{name}", responses=problems())
async def secret(use: Use, tenant: Tenant, name: Name) -> Secret:
    """Whether there is one of that name; its value is never told."""
    return _secret(await use.secrets.get(tenant, name))


@router.delete("/v1/secrets/{name}", status_code=204, responses=problems())
async def delete_secret(use: Use, tenant: Tenant, name: Name) -> None:
    """Delete a secret: no request carries it any more."""
    await use.secrets.delete(tenant, name)
    await use.egress.secret_changed(tenant, name)


def _network(record: SandboxRecord) -> Network:
    policy = record.network or {"default": "deny"}
    return Network(asked=record.network_asked, policy=policy, generation=record.network_generation)


def _secret(record: SecretRecord) -> Secret:
    created, updated = time_of(record.created_at), time_of(record.updated_at)
    return Secret(name=record.name, created_at=created, updated_at=updated)  # type: ignore[arg-type]  # not None
