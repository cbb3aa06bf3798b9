"""/v1/sandboxes/{id}/files: by a program of ours, as the sandbox's user, in the sandbox's view."""

import asyncio
import base64
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, Header, Query, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from starlette.requests import HTTPConnection

from isolation.files import Entry, FileFailed
from sandbox_api.archives import MEDIA_TYPES, Format, packed, unpacked
from sandbox_api.edits import EditMismatch, Replace, apply
from sandbox_api.models.common import UserName
from sandbox_api.models.files import (
    EDIT_MAX,
    ChangeMode,
    Edit,
    Edited,
    FileChange,
    FileInfo,
    FileList,
    MakeDirectory,
    Move,
)
from sandbox_api.problems import Problem, invalid
from sandbox_api.ranges import parse_range
from sandbox_api.routes.context import SandboxId, Services, Tenant, Use, problems
from sandbox_api.routes.streams import accept, send_all

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}/files", tags=["files"])
_PAGE = 1000
_DESCRIBED_HERE = 500

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
        os.fsencode(path)
    except UnicodeEncodeError:
        raise invalid("the path is not UTF-8") from None
    return path if path == "/" else path.rstrip("/")


async def _path(request: HTTPConnection, path: PathParameter) -> str:
    """The path as its bytes say: percent-encoded ones that are no UTF-8 are kept (as surrogates)."""
    if "\ufffd" in path:
        for field in request.scope["query_string"].split(b"&"):
            name, _, value = field.partition(b"=")
            if name == b"path":
                path = os.fsdecode(unquote_to_bytes(value.replace(b"+", b" ")))
    return checked_path(path)


Path = Annotated[str, Depends(_path)]


async def _user(use: Services, tenant: str, sandbox_id: str, user: str | None) -> str:
    live = await use.registry.usable(tenant, sandbox_id)
    return user or live.record.user


@router.get("", responses=problems(403, 409, 416, 503, 504), response_class=Response)
async def read(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    path: Path,
    user: UserParameter = None,
    range_: Annotated[str | None, Header(alias="Range", max_length=100)] = None,
    if_range: Annotated[str | None, Header(alias="If-Range")] = None,
) -> Response:
    """A file's bytes; one `Range` of bytes is honoured, without `If-Range`: files have no validators."""
    wanted = parse_range(range_ if if_range is None else None)
    offset, length = wanted or (0, -1)
    who = await _user(use, tenant, sandbox_id, user)
    contents = use.host.files.read(sandbox_id, path, offset, length, who)
    entry = await anext(contents)
    assert isinstance(entry, Entry)
    headers = {"Accept-Ranges": "bytes", "X-Isobox-Mode": f"{entry.mode:04o}"}
    if wanted is None:
        # A file may grow or shrink while it is read: no Content-Length is promised but for what was asked for.
        return StreamingResponse(_pieces(contents), media_type="application/octet-stream", headers=headers)
    begin = max(0, entry.size + offset) if offset < 0 else offset
    if begin >= entry.size and entry.size >= 0:
        await contents.aclose()  # type: ignore[attr-defined]  # it is an async generator
        raise Problem(
            416,
            "range_not_satisfiable",
            f"the file has {entry.size} bytes",
            hint="ask for a range inside it",
            headers={"Content-Range": f"bytes */{entry.size}"},
        )
    end = entry.size if length < 0 else min(entry.size, begin + length)
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{entry.size}"
    return StreamingResponse(_pieces(contents), 206, media_type="application/octet-stream", headers=headers)


async def _pieces(contents: AsyncIterator[Entry | bytes]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(contents):  # type: ignore[type-var]  # it is an async generator
        async for piece in contents:
            assert isinstance(piece, bytes)
            yield piece


@router.put("", status_code=201, responses=problems(403, 409, 503, 504, 507))
async def write(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    request: Request,
    path: Path,
    user: UserParameter = None,
    mode: Annotated[str | None, Query(pattern=r"^[0-7]{3,4}$")] = None,
) -> FileInfo:
    """Replace a file by the body, all or nothing; parent folders are made. mode is octal, 0644 for a new file."""
    who = await _user(use, tenant, sandbox_id, user)
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else -1
    bits = None if mode is None else int(mode, 8)
    entry = await use.host.files.write(sandbox_id, path, size, bits, request.stream(), who)
    return FileInfo.of(entry, path)


@router.delete("", status_code=204, responses=problems(403, 409, 503, 504))
async def delete(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    path: Path,
    user: UserParameter = None,
    recursive: bool = False,
) -> None:
    """Delete a file, or a folder: an empty one, or with recursive any."""
    if path == "/":
        raise invalid("the root folder cannot be deleted", "terminate the sandbox instead")
    who = await _user(use, tenant, sandbox_id, user)
    await use.host.files.remove(sandbox_id, path, recursive, who)


@router.get("/list", responses=problems(403, 409, 503, 504), response_model=FileList)
async def list_(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    path: Path,
    user: UserParameter = None,
    depth: Annotated[int, Query(ge=1, le=16)] = 1,
    limit: Annotated[int | None, Query(ge=1, le=10_000)] = None,
    after: Annotated[str | None, Query(alias="cursor", max_length=1000)] = None,
) -> Response:
    """What a folder holds, depth levels of it; with limit or cursor a page of one level, in byte order of the names."""
    who = await _user(use, tenant, sandbox_id, user)
    if limit is not None or after is not None:
        if depth != 1:
            raise invalid("pages are of one folder", "leave depth out, or limit and cursor")
        return await _page(use, sandbox_id, path, after or "", limit or _PAGE, who)
    entries = await use.host.files.list_folder(sandbox_id, path, depth, who)
    return await listed(entries, path, in_order=True)


async def listed(entries: list[Entry], path: str, *, in_order: bool, next_cursor: str | None = None) -> Response:
    """A `FileList` of what lies below a path; very many entries are described in a thread. in_order sorts them."""

    def describe() -> str:
        infos = [FileInfo.of(entry, f"{path.rstrip('/')}/{entry.name}") for entry in entries]
        if in_order:
            infos.sort(key=lambda info: info.path)
        return FileList(entries=infos, next_cursor=next_cursor).model_dump_json()

    body = describe() if len(entries) <= _DESCRIBED_HERE else await asyncio.to_thread(describe)
    return Response(body, media_type="application/json")


@router.get("/stat", responses=problems(403, 409, 503, 504))
async def stat(use: Use, tenant: Tenant, sandbox_id: SandboxId, path: Path, user: UserParameter = None) -> FileInfo:
    """A file's own data; a link is not followed."""
    who = await _user(use, tenant, sandbox_id, user)
    return FileInfo.of(await use.host.files.stat(sandbox_id, path, who), path)


async def _page(use: Services, sandbox_id: str, path: str, cursor: str, limit: int, who: str) -> Response:
    try:
        after = os.fsdecode(base64.b64decode(cursor, altchars=b"-_", validate=True))
        if "\0" in after:
            raise ValueError("NUL in a name")
    except ValueError:
        raise invalid("the cursor is none of ours", "use next_cursor of the page before") from None
    entries = await use.host.files.page(sandbox_id, path, after, limit, who)
    more = len(entries) == limit
    next_cursor = base64.urlsafe_b64encode(os.fsencode(entries[-1].name)).decode() if more else None
    return await listed(entries, path, in_order=False, next_cursor=next_cursor)


@router.post("/mkdir", status_code=201, responses=problems(403, 409, 503, 504))
async def mkdir(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: MakeDirectory) -> FileInfo:
    """Make a folder, with parents (the default) those above it too; one that is there already is fine then."""
    path = checked_path(request.located)
    who = await _user(use, tenant, sandbox_id, request.user)
    return FileInfo.of(await use.host.files.mkdir(sandbox_id, path, request.parents, who), path)


@router.post("/move", responses=problems(403, 409, 503, 504, 507))
async def move(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: Move) -> FileInfo:
    """Give a file or folder another name; folders above it are made."""
    path, to = checked_path(request.located), checked_path(request.to)
    who = await _user(use, tenant, sandbox_id, request.user)
    return FileInfo.of(await use.host.files.move(sandbox_id, path, to, request.overwrite, who), to)


@router.post("/copy", status_code=201, responses=problems(403, 409, 503, 504, 507))
async def copy(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: Move) -> FileInfo:
    """Copy a file, or a folder and all that it holds; the copy takes its name when it is whole."""
    path, to = checked_path(request.located), checked_path(request.to)
    who = await _user(use, tenant, sandbox_id, request.user)
    return FileInfo.of(await use.host.files.copy(sandbox_id, path, to, request.overwrite, who), to)


@router.post("/chmod", responses=problems(403, 409, 503, 504))
async def chmod(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: ChangeMode) -> FileInfo:
    """Set permissions; with recursive of all below too. Links are left alone."""
    path = checked_path(request.located)
    who = await _user(use, tenant, sandbox_id, request.user)
    entry = await use.host.files.chmod(sandbox_id, path, int(request.mode, 8), request.recursive, who)
    return FileInfo.of(entry, path)


@router.post("/edit", responses=problems(403, 409, 503, 504, 507))
async def edit(use: Use, tenant: Tenant, sandbox_id: SandboxId, request: Edit) -> Edited:
    """Replace text in a file: all edits or none, and nothing that somebody else wrote meanwhile is lost."""
    path = checked_path(request.located)
    who = await _user(use, tenant, sandbox_id, request.user)
    replacements = [Replace(each.old.encode(), each.new.encode(), each.count) for each in request.edits]
    contents = use.host.files.read(sandbox_id, path, 0, EDIT_MAX + 1, who)
    entry = await anext(contents)
    assert isinstance(entry, Entry)
    found = b"".join([piece async for piece in _pieces(contents)])
    if len(found) > EDIT_MAX:
        raise Problem(413, "file_too_large", f"files of up to {EDIT_MAX >> 20} MiB are edited", hint="use sed inside")
    try:
        changed = apply(found, replacements)
    except EditMismatch as error:
        hint = "see the file as it is now; give more of the text around it, or the right count"
        raise Problem(409, "edit_mismatch", str(error), hint=hint) from None

    async def once() -> AsyncIterator[bytes]:
        yield changed

    entry = await use.host.files.write(sandbox_id, path, len(changed), None, once(), who, changed_ns=entry.mtime_ns)
    return Edited(file=FileInfo.of(entry, path), replaced=sum(each.count for each in replacements))


@router.get("/archive", responses=problems(403, 409, 503, 504), response_class=Response)
async def read_archive(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    path: Path,
    user: UserParameter = None,
    how: Annotated[Format, Query(alias="format")] = "tar",
) -> Response:
    """A tar archive of a folder's contents, or of one file."""
    who = await _user(use, tenant, sandbox_id, user)
    contents = use.host.files.pack(sandbox_id, path, who)
    await anext(contents)
    return StreamingResponse(packed(_pieces(contents), how), media_type=MEDIA_TYPES[how])


@router.put("/archive", status_code=201, responses=problems(403, 409, 503, 504, 507))
async def write_archive(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    request: Request,
    path: Path,
    user: UserParameter = None,
    owners: bool = False,
) -> FileInfo:
    """Unpack a tar archive (plain, gzip or zstd) into a folder, which is made; what it does not name stays.

    With owners, members belong to whom the archive says; that is for root alone.
    """
    who = await _user(use, tenant, sandbox_id, user)
    try:
        entry = await use.host.files.unpack(sandbox_id, path, owners, unpacked(request.stream()), who)
    except FileFailed as error:
        if error.errno == errno.EINVAL:  # guest/tar.c knows no such type of member: of noise as of a device
            hint = "send a tar, tar.gz or tar.zst archive of files, folders and links"
            raise Problem(409, "not_a_file", f"a member that cannot be unpacked: {error.detail}", hint=hint) from error
        raise
    return FileInfo.of(entry, path)


@router.websocket("/watch")
async def watch(
    socket: WebSocket,
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    path: Path,
    user: UserParameter = None,
    recursive: bool = False,
) -> None:
    """What changes in a folder, a JSON object each, from {"type": "ready"} on."""
    who = await _user(use, tenant, sandbox_id, user)
    await accept(socket)
    source = use.host.files.watch(sandbox_id, path, recursive, who)
    await send_all(socket, (FileChange.of(change).model_dump_json() async for change in source))
