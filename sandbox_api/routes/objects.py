"""/v1/dicts and /v1/queues."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from sandbox_api.models.common import time_of
from sandbox_api.models.objects import (
    WAIT_MAX_S,
    ClearQueue,
    CreateObject,
    GetValues,
    Items,
    Keys,
    Lengths,
    Object,
    ObjectPage,
    Put,
    PutItems,
    PutValues,
    Taken,
    Values,
)
from sandbox_api.readable import readable
from sandbox_api.routes.context import Services, Tenant, Use, problems
from sandbox_api.store.objects import Kind, ObjectRecord

router = APIRouter(tags=["objects"])
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Wait = Annotated[float, Query(ge=0, le=WAIT_MAX_S, allow_inf_nan=False)]
Place = Annotated[int, Query(ge=0, le=1 << 53)]


def _describe(use: Services, record: ObjectRecord) -> Object:
    return Object(
        name=record.name,
        created_at=time_of(record.created_at),  # type: ignore[arg-type]  # not None
        ttl_s=record.ttl_s,
        items=use.objects.count(record),
    )


def _common(kind: Kind) -> None:
    """The routes that are the same for both."""
    base = f"/v1/{kind}s"

    async def create(use: Use, tenant: Tenant, name: Name, request: CreateObject) -> Object:
        return _describe(use, use.objects.create(tenant, kind, name, request.ttl_s))

    async def list_(use: Use, tenant: Tenant) -> ObjectPage:
        return ObjectPage(objects=[*readable(use.objects.all(tenant, kind), lambda record: _describe(use, record))])

    async def get(use: Use, tenant: Tenant, name: Name) -> Object:
        return _describe(use, use.objects.get(tenant, kind, name))

    async def delete(use: Use, tenant: Tenant, name: Name) -> None:
        use.objects.delete(tenant, kind, name)

    create.__doc__ = f"Make a {kind}; the one that there is, if there is one."
    list_.__doc__ = f"The tenant's {kind}s, by name."
    get.__doc__ = f"Look at a {kind}."
    delete.__doc__ = f"Delete a {kind} with all that is in it."
    named = f"{base}/{{name}}"
    router.add_api_route(named, create, methods=["PUT"], responses=problems(429), operation_id=f"create_{kind}")
    router.add_api_route(base, list_, methods=["GET"], responses=problems(), operation_id=f"list_{kind}s")
    router.add_api_route(named, get, methods=["GET"], responses=problems(), operation_id=f"get_{kind}")
    router.add_api_route(
        named, delete, methods=["DELETE"], status_code=204, responses=problems(), operation_id=f"delete_{kind}"
    )


_common("dict")
_common("queue")


# ---- dicts


@router.post("/v1/dicts/{name}/get", responses=problems())
async def values(use: Use, tenant: Tenant, name: Name, request: Keys) -> Values:
    """The values of keys."""
    return Values(values=use.objects.values(tenant, name, request))


@router.post("/v1/dicts/{name}/put", responses=problems(507))
async def put(use: Use, tenant: Tenant, name: Name, request: PutItems) -> Put:
    """Set keys to values, all or none."""
    return Put(put=use.objects.put(tenant, name, request))


@router.post("/v1/dicts/{name}/pop", responses=problems())
async def pop(use: Use, tenant: Tenant, name: Name, request: Keys) -> Values:
    """Take keys out: their values."""
    return Values(values=use.objects.pop(tenant, name, request))


@router.get("/v1/dicts/{name}/items", responses=problems())
async def items(use: Use, tenant: Tenant, name: Name, after: Place = 0) -> Items:
    """Some items, from a place on."""
    return use.objects.items(tenant, name, after)


@router.post("/v1/dicts/{name}/clear", status_code=204, responses=problems())
async def clear(use: Use, tenant: Tenant, name: Name) -> None:
    """Delete all items."""
    use.objects.clear(tenant, name)


# ---- queues


@router.post("/v1/queues/{name}/put", status_code=204, responses=problems(409, 507))
async def put_values(use: Use, tenant: Tenant, name: Name, request: PutValues, wait_s: Wait = 0.0) -> None:
    """Put values at the end of a partition, all or none, waiting up to wait_s seconds for room."""
    await use.objects.put_values(tenant, name, request, wait_s)


@router.post("/v1/queues/{name}/get", responses=problems())
async def take(
    use: Use, tenant: Tenant, name: Name, request: GetValues, connection: Request, wait_s: Wait = 0.0
) -> Taken:
    """Take values out of a partition's front, waiting up to wait_s seconds for the first."""
    return Taken(values=await use.objects.take(tenant, name, request, wait_s, connection.is_disconnected))


@router.get("/v1/queues/{name}/items", responses=problems())
async def peek(
    use: Use, tenant: Tenant, name: Name, partition: Annotated[str, Query(max_length=64)] = "", after: Place = 0
) -> Items:
    """What waits in a partition, left there."""
    return use.objects.peek(tenant, name, partition, after)


@router.get("/v1/queues/{name}/lengths", responses=problems())
async def lengths(use: Use, tenant: Tenant, name: Name) -> Lengths:
    """How many values wait, by partition."""
    return Lengths(partitions=use.objects.lengths(tenant, name))


@router.post("/v1/queues/{name}/clear", status_code=204, responses=problems())
async def clear_queue(use: Use, tenant: Tenant, name: Name, request: ClearQueue) -> None:
    """Delete what waits, in a partition or in all."""
    use.objects.clear_queue(tenant, name, request.partition)
