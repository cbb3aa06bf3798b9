"""Health, metrics, images."""

from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from sandbox_api.models.common import time_of
from sandbox_api.routes.context import Use, problems

router = APIRouter()


class Health(BaseModel):
    """Whether the server answers."""

    status: Literal["ok"] = "ok"


class ImageInfo(BaseModel):
    """An image that is ready; size in bytes."""

    id: str
    name: str
    digest: str
    size_bytes: int
    created_at: datetime


class ImageList(BaseModel):
    """The images that are ready; base images beyond them are built on first use."""

    images: list[ImageInfo]


@router.get("/healthz", tags=["system"])
async def healthz() -> Health:
    """The process is up."""
    return Health()


@router.get("/readyz", tags=["system"])
async def readyz() -> Health:
    """The server takes work: it answers only once it has taken over what an earlier one left."""
    return Health()


@router.get("/metrics", tags=["system"], response_class=Response)
async def metrics(use: Use) -> Response:
    """Prometheus metrics."""
    use.metrics.sandboxes.set(len(use.registry.live))
    use.metrics.tell_pool(use.host.shelves())
    use.metrics.gateway_starts.set(use.host.networks.gateway_starts)
    return Response(use.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/images", tags=["images"], responses=problems())
async def images(use: Use) -> ImageList:
    """The images that are ready."""
    return ImageList(
        images=[
            ImageInfo(id=i.id, name=i.name, digest=i.digest, size_bytes=i.size, created_at=time_of(i.created_at))  # type: ignore[arg-type]  # not None
            for i in use.host.images()
        ]
    )
