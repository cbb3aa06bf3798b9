"""/v1/images."""

import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from sandbox_api.models.images import ChangedFile, CreateImage, Image, ImageDiff, ImagePage, Pushed, PushImage
from sandbox_api.problems import Problem, not_found
from sandbox_api.readable import readable
from sandbox_api.routes.context import AnyCaller, Operator, Tenant, Use, problems
from sandbox_api.routes.streams import After, LastEventId, sse
from sandbox_api.services.images import describe

router = APIRouter(prefix="/v1/images", tags=["images"])
store_router = APIRouter(prefix="/v1/store", tags=["images"])
_STORE_PART = 32 << 20
_STORE_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})")
uploads_router = APIRouter(prefix="/v1/uploads", tags=["images"])
Digest = Annotated[str, Path(pattern=r"^sha256:[0-9a-f]{64}$")]
ImageId = Annotated[str, Path(alias="image", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


@router.post("", status_code=202, responses=problems(409, 429))
async def create(use: Use, tenant: Tenant, request: CreateImage) -> Image:
    """Begin to make an image; `log` and `wait` tell how it goes."""
    return describe(await use.images.create(tenant, request))


@router.get("", responses=problems())
async def list_(
    use: Use,
    tenant: Tenant,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> ImagePage:
    """Images: the tenant's, the newest first, then the machine's; base images beyond them are built on first use."""
    records, cursor = await use.images.search(tenant, cursor, limit)
    return ImagePage(images=[*readable(records, describe)], next_cursor=cursor)


@router.get("/{image}", responses=problems())
async def get(use: Use, tenant: Tenant, image: ImageId) -> Image:
    """Look at an image, by id or name."""
    return describe(await use.images.get(tenant, image))


@router.get("/{image}/wait", responses=problems())
async def wait(
    use: Use, tenant: Tenant, image: ImageId, timeout_s: Annotated[float, Query(ge=0, le=60)] = 20.0
) -> Image:
    """Wait until it is ready or has failed, at most timeout_s seconds; answers with it as it is then."""
    return describe(await use.images.wait(tenant, image, timeout_s))


@router.get("/{image}/log", responses=problems(), response_class=StreamingResponse)
async def log(
    use: Use, tenant: Tenant, image: ImageId, last: LastEventId = None, after: After = 0
) -> StreamingResponse:
    """What is told while it is made, as text/event-stream; Last-Event-ID (or from) says where to go on."""
    return sse(await use.images.log(tenant, image, after if last is None else last))


@router.get("/{image}/diff", responses=problems())
async def diff(
    use: Use, tenant: Tenant, image: ImageId, older: Annotated[str, Query(alias="from", max_length=63)]
) -> ImageDiff:
    """What differs from another image, by path."""
    changes, truncated = await use.images.diff(tenant, older, image)
    return ImageDiff(changes=[ChangedFile.of(each) for each in changes], truncated=truncated)


@router.post("/{image}/push", responses=problems(409, 502))
async def push(use: Use, tenant: Tenant, image: ImageId, request: PushImage) -> Pushed:
    """Send an image to a registry, as one layer."""
    return Pushed(reference=request.reference, digest=await use.images.push(tenant, image, request))


@router.post("/prune", status_code=204, responses=problems())
async def prune(use: Use, caller: AnyCaller) -> None:
    """Delete what builds kept of their steps, and contents that no image has any more.

    The steps are the caller's own; the operator's key deletes those of all tenants.
    """
    await use.images.prune(caller.tenant)


@router.delete("/{image}", status_code=204, responses=problems(409))
async def delete(use: Use, tenant: Tenant, image: ImageId) -> None:
    """Delete an image of the tenant's that nothing needs."""
    await use.images.delete(tenant, image)


@uploads_router.put("/{digest}", status_code=204, responses=problems(507))
async def upload(use: Use, tenant: Tenant, digest: Digest, request: Request) -> None:
    """Send an archive ahead of a build that copies it into an image; it is kept for a day."""
    await use.uploads.put(tenant, digest, request.stream())


@uploads_router.head("/{digest}", responses=problems(), response_class=Response)
async def uploaded(use: Use, tenant: Tenant, digest: Digest) -> Response:
    """Whether it is there (200) or has to be sent (404)."""
    return Response(status_code=200 if use.uploads.has(tenant, digest) else 404)


@store_router.get("/{key:path}", responses=problems(403, 416), response_class=Response)
async def read_store(
    use: Use,
    _: Operator,
    key: Annotated[str, Path(pattern=r"^(names|images|packs)/[a-z0-9._-]{1,64}$")],
    range_: Annotated[str | None, Header(alias="Range", max_length=100)] = None,
) -> Response:
    """Read this node's images from another one: names, recipes, parts of packs. `Range` asks for a part.

    For the operator's key: a pack may hold files of tenants' images beside those of the machine's.
    """
    match = _STORE_RANGE.fullmatch(range_ or f"bytes=0-{_STORE_PART - 1}")
    if match is None or not 0 <= int(match[2]) - int(match[1]) < _STORE_PART:
        hint = f"ask for bytes=FIRST-LAST, {_STORE_PART >> 20} MiB at most"
        raise Problem(416, "range_not_satisfiable", "Range is not one part", hint=hint)
    found = await use.host.images.blob(key, int(match[1]), int(match[2]) - int(match[1]) + 1)
    if found is None:
        raise not_found("image")
    return Response(found, 200 if range_ is None else 206, media_type="application/octet-stream")
