"""/v1/sandboxes/{id}/files: by PID 1's own program, as the sandbox's user, in the sandbox's view."""

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from isolation.files import Entry
from sandbox_api.models.common import Strict, Text, UserName
from sandbox_api.models.files import FileInfo, FileList
from sandbox_api.problems import Problem, invalid
from sandbox_api.routes.context import SandboxId, Services, Tenant, Use, problems

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}/files", tags=["files"])
_RANGE = re.compile(r"^bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))$")

PathParameter = Annotated[str, Query(alias="path", min_length=1, max_length=4095)]
UserParameter = Annotated[UserName | None, Query(alias="user")]


def checked_path(path: str) -> str:
    """An absolute path without `..`; 422 otherwise."""
    if "\0" in path:
        raise invalid("the path contains NUL", "leave it out")
    if not path.startswith("/"):
        raise invalid(f"{path[:100]!r} is not absolute", "start it with /, for example /home/user/notes.txt")
    if ".." in path.split("/"):
        raise invalid("the path contains '..'", "name the place itself")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise invalid("the path is not UTF-8") from None
    return path if path == "/" else path.rstrip("/")


async def _user(use: Services, tenant: str, sandbox_id: str, user: str | None) -> str:
    live = await use.registry.usable(tenant, sandbox_id)
    return user or live.record.user


@router.get("", responses=problems(403, 409, 416), response_class=Response)
async def read(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    path: PathParameter,
    user: UserParameter = None,
    range_: Annotated[str | None, Header(alias="Range", max_length=100)] = None,
) -> Response:
    """A file's bytes; one `Range` of bytes is honoured."""
    path = checked_path(path)
    offset, length = _parse_range(range_)
    who = await _user(use, tenant, sandbox_id, user)
    contents = use.host.files.read(sandbox_id, path, offset, length, who)
    entry = await anext(contents)
    assert isinstance(entry, Entry)
    headers = {"Accept-Ranges": "bytes", "X-Isobox-Mode": f"{entry.mode:04o}"}
    if range_ is None:
        # A file may grow or shrink while it is read: no Content-Length is promised but for what was asked for.
        return StreamingResponse(_pieces(contents), media_type="application/octet-stream", headers=headers)
    begin = max(0, entry.size + offset) if offset < 0 else offset
    if begin >= entry.size and entry.size >= 0:
        await contents.aclose()  # type: ignore[attr-defined]  # it is an async generator
        raise Problem(
            416, "range_not_satisfiable", f"the file has {entry.size} bytes", hint="ask for a range inside it"
        )
    end = entry.size if length < 0 else min(entry.size, begin + length)
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{entry.size}"
    return StreamingResponse(_pieces(contents), 206, media_type="application/octet-stream", headers=headers)


async def _pieces(contents: AsyncIterator[Entry | bytes]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(contents):  # type: ignore[type-var]  # it is an async generator
        async for piece in contents:
            assert isinstance(piece, bytes)
            yield piece


def _parse_range(text: str | None) -> tuple[int, int]:
    """(offset, length) of a Range header; a negative offset counts from the end, length -1 means all."""
    if text is None:
        return 0, -1
    match = _RANGE.match(text.strip())
    if match is None:
        raise Problem(416, "range_not_satisfiable", "Range is not bytes=FIRST-LAST", hint="ask for one range of bytes")
    first, last, suffix = match.groups()
    if suffix is not None:
        return -int(suffix), -1
    if last and int(last) < int(first):
        raise Problem(416, "range_not_satisfiable", "Range ends before it begins")
    return int(first), int(last) - int(first) + 1 if last else -1


@router.put("", status_code=201, responses=problems(403, 409, 507))
async def write(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    request: Request,
    path: PathParameter,
    user: UserParameter = None,
    mode: Annotated[str | None, Query(pattern=r"^[0-7]{3,4}$")] = None,
) -> FileInfo:
    """Replace a file by the body, all or nothing; parent folders are made. mode is octal, 0644 for a new file."""
    path = checked_path(path)
    who = await _user(use, tenant, sandbox_id, user)
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else -1
    bits = None if mode is None else int(mode, 8)
    entry = await use.host.files.write(sandbox_id, path, size, bits, request.stream(), who)
    return FileInfo.of(entry, path)


@router.delete("", status_code=204, responses=problems(403, 409))
async def delete(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    path: PathParameter,
    user: UserParameter = None,
    recursive: bool = False,
) -> None:
    """Delete a file, or a folder: an empty one, or with recursive any."""
    path = checked_path(path)
    if path == "/":
        raise invalid("the root folder cannot be deleted", "terminate the sandbox instead")
    who = await _user(use, tenant, sandbox_id, user)
    await use.host.files.remove(sandbox_id, path, recursive, who)


@router.get("/list", responses=problems(403, 409))
async def list_(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    path: PathParameter,
    user: UserParameter = None,
    depth: Annotated[int, Query(ge=1, le=16)] = 1,
) -> FileList:
    """What a folder holds, depth levels of it."""
    path = checked_path(path)
    who = await _user(use, tenant, sandbox_id, user)
    entries = await use.host.files.list_folder(sandbox_id, path, depth, who)
    infos = [FileInfo.of(entry, f"{path.rstrip('/')}/{entry.name}") for entry in entries]
    return FileList(entries=sorted(infos, key=lambda info: info.path))


@router.get("/stat", responses=problems(403, 409))
async def stat(
    use: Use, tenant: Tenant, sandbox_id: SandboxId, path: PathParameter, user: UserParameter = None
) -> FileInfo:
    """A file's own data; a link is not followed."""
    path = checked_path(path)
    who = await _user(use, tenant, sandbox_id, user)
    return FileInfo.of(await use.host.files.stat(sandbox_id, path, who), path)


class MakeDirectory(Strict):
    """A folder to make."""

    path: Annotated[Text, Field(min_length=1, max_length=4095)]
    parents: bool = True
    user: UserName | None = None


@router.post("/mkdir", status_code=201, responses=problems(403, 409))
async def mkdir(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: MakeDirectory) -> FileInfo:
    """Make a folder, with parents (the default) those above it too; one that is there already is fine then."""
    path = checked_path(request.path)
    who = await _user(use, tenant, sandbox_id, request.user)
    return FileInfo.of(await use.host.files.mkdir(sandbox_id, path, request.parents, who), path)
