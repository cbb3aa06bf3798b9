"""GPUs over the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from gpu.allocate import Ask
from gpu.kinds import KIND
from sandbox_api.models.common import Page, Strict

Kind = Annotated[str, Field(pattern=f"^{KIND.pattern}$")]


class AskedGpu(Strict):
    """GPUs for a sandbox, for it alone: count of one kind, the first of several that can be had; memory_mb in MiB each.

    Where none is free the request waits for wait_s seconds, in its turn; with 0 it is refused at once.
    """

    count: Annotated[int, Field(ge=1, le=64)] = 1
    kind: Kind | Annotated[list[Kind], Field(min_length=1, max_length=8)] = "any"
    memory_mb: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    wait_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.0

    @property
    def ask(self) -> Ask:
        """As the allocator takes it."""
        return Ask(self.count, (self.kind,) if isinstance(self.kind, str) else tuple(self.kind), self.memory_mb)


class Gpu(BaseModel):
    """A GPU or a slice of one (`parent`); sandbox is whose it is, of the caller's own."""

    uuid: str
    kind: str
    name: str
    memory_mb: int
    pci: str
    numa: int | None
    nvlinks: list[str]
    parent: str | None
    state: Literal["free", "used", "cleaning", "quarantined", "sliced"]
    reason: str | None
    sandbox: str | None
    memory_used_mb: int | None
    utilization: int | None
    temperature: int | None
    power_w: float | None


class GpuPage(Page):
    """All GPUs of the machine; problem says why there is none."""

    driver: str
    problem: str
    waiting: int
    gpus: list[Gpu]
