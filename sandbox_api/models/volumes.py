"""Volumes over the wire."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from sandbox_api.models.common import Page, Strict, Text

VolumeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
MountPath = Annotated[Text, Field(pattern=r"^/[^/]", max_length=1024)]


class CreateVolume(Strict):
    """A volume: files that outlive sandboxes; quota_mb bounds them (MiB)."""

    name: VolumeName
    quota_mb: Annotated[int, Field(ge=1, le=1 << 20)] = 1024


class MountedVolume(Strict):
    """A volume in a sandbox. With read_only any number may have it, else one sandbox at a time."""

    name: VolumeName
    read_only: bool = False


class VolumeSnapshot(BaseModel):
    """A kept version; size in bytes."""

    id: str
    name: str | None
    size_bytes: int
    created_at: datetime


class Volume(BaseModel):
    """A volume. version counts commits; writer is the sandbox that may commit."""

    id: str
    name: str
    quota_mb: int
    size_bytes: int
    version: int
    writer: str | None
    snapshots: list[VolumeSnapshot]
    created_at: datetime
    updated_at: datetime


class VolumePage(Page):
    """The tenant's volumes, by name."""

    volumes: list[Volume]


class VolumePath(Strict):
    """Where a volume lies in a sandbox."""

    path: MountPath


class SnapshotVolume(Strict):
    """A name for the version that is to be kept."""

    name: Annotated[Text, Field(max_length=128)] | None = None


class RestoreVolume(Strict):
    """The snapshot that the volume is to be again."""

    snapshot: Annotated[str, Field(max_length=64)]
