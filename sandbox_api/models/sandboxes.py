"""Sandboxes over the wire."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sandbox_api.host.interface import DEFAULT
from sandbox_api.lifecycle import Reason, State
from sandbox_api.models.buckets import MountedBucket
from sandbox_api.models.common import (
    Command,
    Environment,
    ForeignText,
    Label,
    LabelName,
    Page,
    Seconds,
    Strict,
    Text,
    UserName,
)
from sandbox_api.models.gpus import AskedGpu
from sandbox_api.models.network import AskedPolicy, asked
from sandbox_api.models.volumes import MountedVolume, MountPath


class Resources(Strict):
    """cpu in cores; memory_mb and disk_mb in MiB; pids: processes and threads of one user inside; GPUs."""

    cpu: Annotated[float, Field(gt=0, le=256, allow_inf_nan=False)] = DEFAULT.cpu
    memory_mb: Annotated[int, Field(ge=64, le=1 << 20)] = DEFAULT.memory_mb
    disk_mb: Annotated[int, Field(ge=16, le=1 << 20)] = DEFAULT.disk_mb
    pids: Annotated[int, Field(ge=16, le=32768)] = DEFAULT.pids
    gpu: AskedGpu | None = None


class CreateSandbox(Strict):
    """A new sandbox; with `command` it is a job that ends with that command, with `snapshot` it goes on from there."""

    image: Annotated[Text, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "python"
    command: Command | None = None
    name: Annotated[Text, Field(max_length=128)] | None = None
    labels: Annotated[dict[LabelName, Label], Field(max_length=64)] = {}
    env: Environment = {}
    workdir: Annotated[Text, Field(pattern=r"^/", max_length=4095)] | None = None
    user: UserName = "user"
    namespaces: bool = False
    timeout_s: Seconds = 300.0
    idle_timeout_s: Seconds | None = None
    park_after_s: Seconds | None = None
    resources: Resources = Resources()
    snapshot: Annotated[str, Field(pattern=r"^snp[a-z2-7]{26}$")] | None = None
    network: AskedPolicy | None = None
    volumes: Annotated[dict[MountPath, MountedVolume], Field(max_length=16)] = {}
    buckets: Annotated[dict[MountPath, MountedBucket], Field(max_length=8)] = {}

    @property
    def asked_network(self) -> dict[str, Any] | str | None:
        """The policy as its parser takes it."""
        return asked(self.network)


class SandboxGpu(BaseModel):
    """A GPU that a sandbox has; memory_mb in MiB."""

    uuid: str
    kind: str
    memory_mb: int


class PatchSandbox(Strict):
    """What can be changed later; timeout_s counts from now."""

    labels: Annotated[dict[LabelName, Label], Field(max_length=64)] | None = None
    timeout_s: Seconds | None = None
    idle_timeout_s: Seconds | None = None
    park_after_s: Seconds | None = None


class Termination(BaseModel):
    """Why a sandbox ended; exit_code is the command's, for a job."""

    reason: Reason
    exit_code: int | None = None
    detail: ForeignText = ""


class Sandbox(BaseModel):
    """A sandbox as it stands."""

    model_config = ConfigDict(use_enum_values=True)

    id: str
    state: State
    image: str
    image_digest: str | None
    name: str | None
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    idle_timeout_s: float | None
    park_after_s: float | None
    paused_by: Literal["request", "idle"] | None
    resources: Resources
    gpus: list[SandboxGpu]
    namespaces: bool
    network: dict[str, Any]
    parent: str | None
    snapshot: str | None
    main: str | None
    termination: Termination | None


class SandboxPage(Page):
    """Some of the sandboxes, the newest first."""

    sandboxes: list[Sandbox]


class Stats(BaseModel):
    """What a sandbox uses now: CPU seconds so far, bytes, processes inside. Its disk is part of its memory."""

    cpu_s: float
    memory_bytes: int
    memory_peak_bytes: int
    memory_limit_bytes: int
    processes: int
    rx_bytes: int = 0
    tx_bytes: int = 0
