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
