"""Snapshots and forks over the wire."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from sandbox_api.models.common import Label, LabelName, Page, Seconds, Strict, Text
from sandbox_api.models.sandboxes import Sandbox

FORK_MAX = 64


class CreateSnapshot(Strict):
    """A copy to keep: `memory` holds processes, contexts and files, taken in one standstill; `filesystem` files alone.

    Of a `template` (memory) some sandboxes are kept ready, restored and frozen.
    """

    kind: Literal["memory", "filesystem"] = "memory"
    name: Annotated[Text, Field(max_length=128)] | None = None
    ttl_s: Seconds | None = None
    template: bool = False


class Snapshot(BaseModel):
    """A kept copy; size in bytes on disk."""

    id: str
    kind: Literal["memory", "filesystem"]
    name: str | None
    template: bool
    sandbox_id: str
    image: str
    image_digest: str
    digest: str
    size_bytes: int
    created_at: datetime
    expires_at: datetime | None
    execs: list[str]


class SnapshotPage(Page):
    """Some of the snapshots, the newest first."""

    snapshots: list[Snapshot]


class ForkRequest(Strict):
    """How many children; labels and timeout_s are the parent's unless given."""

    count: Annotated[int, Field(ge=1, le=FORK_MAX)] = 1
    labels: Annotated[dict[LabelName, Label], Field(max_length=64)] | None = None
    timeout_s: Seconds | None = None


class ForkError(BaseModel):
    """Why one child is not there."""

    code: str
    detail: str
    hint: str
    retryable: bool


class Fork(BaseModel):
    """The children that run, and an error for each that does not."""

    sandboxes: list[Sandbox]
    errors: list[ForkError]
