"""/v1/sandboxes/{id}/exec and …/execs."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from sandbox_api.models.execs import Exec, ExecPage, ExecRequest, SignalRequest, StdinReceipt
from sandbox_api.problems import not_found
from sandbox_api.readable import readable
from sandbox_api.routes.context import ExecId, SandboxId, Tenant, Use, problems
from sandbox_api.services.cursor import decode_cursor, encode_cursor
from sandbox_api.services.exec_views import describe_exec, describe_with_output

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["execs"])
_OUTPUT_MAX = 16 << 20


@router.post("/exec", responses=problems(403, 409, 429, 503, 504))
async def exec_(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: ExecRequest) -> Exec:
    """Run something; with `wait` this answers when its process has ended."""
    record = await use.execs.start(tenant, sandbox_id, request)
    if request.wait and record.state != "exited":
        await use.execs.wait(record)
        record = await use.execs.get(tenant, sandbox_id, record.id)
    return await describe_with_output(record, use.execs.log_path(record), request.max_output_bytes)


@router.get("/execs", responses=problems())
async def list_(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> ExecPage:
    """A sandbox's execs, the newest first, without their output."""
    sandbox = await use.sandboxes.get(tenant, sandbox_id)
    records = await use.registry.store.execs(sandbox.id, before=decode_cursor(cursor), limit=limit + 1)
    following = None
    if len(records) > limit:
        records = records[:limit]
        following = encode_cursor(records[-1].created_at, records[-1].id)
    told = [record for record in records if record.state != "starting"]
    shown = readable(told, lambda record: describe_exec(record, use.execs.log_path(record), None))
    return ExecPage(execs=[*shown], next_cursor=following)


@router.get("/execs/{exec_id}", responses=problems())
async def get(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    exec_id: ExecId,
    max_output_bytes: Annotated[int, Query(ge=0, le=_OUTPUT_MAX)] = 65536,
) -> Exec:
    """An exec with head and tail of its output."""
    record = await use.execs.get(tenant, sandbox_id, exec_id)
    return await describe_with_output(record, use.execs.log_path(record), max_output_bytes)


@router.post("/execs/{exec_id}/signal", status_code=204, responses=problems(409))
async def signal(use: Use, tenant: Tenant, sandbox_id: SandboxId, exec_id: ExecId, request: SignalRequest) -> None:
    """Send a signal to the process, with group (the default) to all that it started."""
    await use.registry.usable(tenant, sandbox_id)
    record = await use.execs.get(tenant, sandbox_id, exec_id)
    if record.role == "run":
        await use.contexts.signal(record, int(request.signal))
    else:
        await use.execs.signal(record, int(request.signal), group=request.group)


@router.post("/execs/{exec_id}/stdin", responses=problems(409))
async def stdin(
    use: Use, tenant: Tenant, sandbox_id: SandboxId, exec_id: ExecId, request: Request, eof: bool = False
) -> StdinReceipt:
    """Send the body's bytes to the process; with eof its input ends there."""
    await use.registry.usable(tenant, sandbox_id)
    record = await use.execs.get(tenant, sandbox_id, exec_id)
    accepted, closed = await use.execs.write_input(record, request.stream(), eof=eof)
    return StdinReceipt(accepted_bytes=accepted, closed=closed)


@router.get("/execs/{exec_id}/output", responses=problems(), response_class=Response)
async def output(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    exec_id: ExecId,
    stream: Literal["stdout", "stderr"] = "stdout",
    from_: Annotated[int, Query(alias="from", ge=0, le=1 << 62)] = 0,
    limit: Annotated[int, Query(ge=1, le=_OUTPUT_MAX)] = 1 << 20,
) -> Response:
    """Raw bytes of a stream from an offset on; X-Next-Offset tells where to go on.

    X-Omitted-Bytes counts what lay at the offset and was dropped by the log's bound.
    """
    record = await use.execs.get(tenant, sandbox_id, exec_id)
    try:
        begin, data = await use.execs.output(record, 1 if stream == "stdout" else 2, from_, limit)
    except FileNotFoundError:
        raise not_found("exec") from None
    headers = {"X-Next-Offset": str(begin + len(data))}
    if begin > from_:
        headers["X-Omitted-Bytes"] = str(begin - from_)
    return Response(data, media_type="application/octet-stream", headers=headers)
