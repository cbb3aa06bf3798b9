"""What is kept of sandboxes and execs; times in seconds since the epoch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from sandbox_api.lifecycle import State


@dataclass(slots=True)
class SandboxRecord:
    """A sandbox. `env` holds what the tenant gave; `resources` and `termination` are as the models have them."""

    id: str
    tenant: str
    state: State
    image: str
    created_at: float
    resources: dict[str, Any]
    timeout_s: float
    user: str
    image_digest: str | None = None
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    command: list[str] | None = None
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    idle_timeout_s: float | None = None
    main: str | None = None
    termination: dict[str, Any] | None = None
    parent: str | None = None
    snapshot: str | None = None
    park_after_s: float | None = None
    paused_by: Literal["request", "idle"] | None = None
    namespaces: bool = False
    """Whether programs inside may create namespaces."""
    copy: dict[str, Any] | None = None
    """While it is paused: name, digest and size of the copy that it will go on from."""
    network_asked: dict[str, Any] | str | None = None
    """The policy as it was asked for: a preset's name says what the operator means by it now, not then."""
    network: dict[str, Any] | None = None
    """The policy that it has."""
    network_generation: int = 0
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Where volumes lie in it: `{"id", "name", "read_only", "version"}` each."""
    gpus: list[dict[str, Any]] = field(default_factory=list)
    """Its GPUs: `{"uuid", "kind", "memory_mb"}` each."""
    buckets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Where buckets lie in it: as the request had them (`models.buckets`), and `address`, by which each is held."""
    placeholders: dict[str, str] = field(default_factory=dict)
    """What stands in its environment in the place of credentials."""
    cpu_s: float = 0.0
    """What it had used when it was paused last."""


@dataclass(slots=True)
class UsageRecord:
    """What a sandbox that has ended used; see `models.usage`."""

    sandbox: str
    tenant: str
    name: str | None
    labels: dict[str, str]
    started_at: float
    ended_at: float
    cpu_s: float
    gpu_s: dict[str, float]


@dataclass(slots=True)
class ExecRecord:
    """An exec. `number` is PID 1's; `starting` until PID 1 has confirmed it, so that nobody was told of it before."""

    id: str
    sandbox_id: str
    number: int
    argv: list[str]
    title: str
    state: Literal["starting", "running", "exited"]
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    deadline: float | None = None
    timeout_s: float | None = None
    overflow: Literal["drop", "block"] = "drop"
    pty: bool = False
    outcome: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    cpu_s: float | None = None
    max_rss_mb: float | None = None
    forked_from: str | None = None
    base: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes of stdout and stderr that its original had written when it was copied."""
    rest: list[str] = field(default_factory=lambda: ["", ""])
    """Of a copied context: what its original's log holds of a frame that the copy goes on in the middle of (base64)."""
    role: Literal["exec", "context", "run"] = "exec"
    context: str | None = None
    """Of a run: the context that it runs in."""
    run: int = 0
    first_seq: int | None = None
    """Of a run: the last event of the context's log before it; None while it waits for its turn."""
    results: list[int] = field(default_factory=list)
    """Of a run: the seqs of its results."""


@dataclass(slots=True)
class ContextRecord:
    """A code context. `exec` is the interpreter's exec; `runs` counts; `reseed` before the next run, in a copy."""

    id: str
    sandbox_id: str
    language: str
    exec: str
    token: str
    created_at: float
    default: bool = False
    runs: int = 0
    reseed: bool = False


@dataclass(slots=True)
class SnapshotRecord:
    """A snapshot. `sandbox` holds what a restored one starts from, `execs` what ran: fields of their records."""

    id: str
    tenant: str
    sandbox_id: str
    created_at: float
    digest: str
    size_bytes: int
    sandbox: dict[str, Any]
    execs: list[dict[str, Any]] = field(default_factory=list)
    contexts: list[dict[str, Any]] = field(default_factory=list)
    kind: Literal["memory", "filesystem"] = "memory"
    name: str | None = None
    template: bool = False
    expires_at: float | None = None


@dataclass(slots=True)
class SecretRecord:
    """A secret of a tenant's; `sealed` is readable with the state directory's key alone."""

    tenant: str
    name: str
    created_at: float
    updated_at: float
    sealed: bytes


@dataclass(slots=True)
class ImageRecord:
    """A tenant's image. The machine knows it by its id; `source` is the request that it was made by."""

    id: str
    tenant: str
    name: str
    state: Literal["building", "ready", "failed"]
    created_at: float
    source: dict[str, Any]
    digest: str | None = None
    size: int = 0
    ended_at: float | None = None
    config: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] | None = None


@dataclass(slots=True)
class VolumeRecord:
    """A volume. Its files are the host's version `ID.version`, none while version is 0; snapshots keep older ones."""

    id: str
    tenant: str
    name: str
    quota_mb: int
    created_at: float
    updated_at: float
    version: int = 0
    size: int = 0
    writer: str | None = None
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    """Each: id, name, version, size, created_at."""

    @property
    def files(self) -> str | None:
        """What the host knows its files by."""
        return f"{self.id}.{self.version}" if self.version else None
